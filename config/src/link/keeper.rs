//! A link to each control plane: one is used, and the others stand by to take its place at once.

use super::streams::Link;
use super::transport::{self, Dialer, QUIC_PATIENCE, connect_tcp};
use super::{Identity, LinkError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{interval, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// Between two attempts, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A link that stood for so long was no failure.
const STOOD: Duration = Duration::from_secs(1);
/// Where UDP is blocked, it is not tried for so long.
const UDP_PAUSE: Duration = Duration::from_secs(300);
/// A peer that was silent for so long, although it is asked for signs of life, is left for another.
const SILENCE: Duration = Duration::from_millis(1_600);
/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(200);

/// Links to some addresses.
#[derive(Debug)]
pub struct Links {
    standing: watch::Receiver<Vec<Option<Link>>>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Links {
    /// Keeps a link to each of these, until dropped.
    pub fn keep(addresses: &[String], identity: Identity) -> Self {
        let identity = Arc::new(identity);
        let (standing, receiver) = watch::channel(vec![None; addresses.len()]);
        let standing = Arc::new(standing);
        let keeper = |(index, address): (usize, &String)| {
            let keeper = Keeper {
                index,
                address: address.clone(),
                attentive: addresses.len() > 1,
                identity: Arc::clone(&identity),
                standing: Arc::clone(&standing),
                blocked: None,
            };
            AbortOnDropHandle::new(tokio::spawn(keeper.run()))
        };
        Self { standing: receiver, _tasks: addresses.iter().enumerate().map(keeper).collect() }
    }

    /// The first that stands, in the order of the addresses, once one does.
    pub async fn first(&mut self) -> Link {
        loop {
            let found = self.standing.borrow_and_update().iter().flatten().find(|link| !link.is_closed()).cloned();
            if let Some(link) = found {
                return link;
            }
            if self.standing.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Until nothing comes over a link any more, while another one stands: a killed peer says no goodbye.
    pub async fn silent(&self, link: &Link) {
        let (mut last, mut since) = (link.received(), Instant::now());
        let mut looks = interval(LOOK);
        loop {
            looks.tick().await;
            let now = link.received();
            if now != last || now.is_none() {
                (last, since) = (now, Instant::now());
            }
            let is_other = |other: &Link| other.id() != link.id() && !other.is_closed();
            if since.elapsed() > SILENCE && self.standing.borrow().iter().flatten().any(is_other) {
                return;
            }
        }
    }
}

/// Keeps a link to one address.
struct Keeper {
    index: usize,
    address: String,
    attentive: bool,
    identity: Arc<Identity>,
    standing: Arc<watch::Sender<Vec<Option<Link>>>>,
    /// When nobody answered by UDP, but somebody by TCP.
    blocked: Option<Instant>,
}

impl Keeper {
    async fn run(mut self) {
        let (mut pause, longest) = BACKOFF;
        loop {
            match self.connect().await {
                Ok(link) => {
                    let began = Instant::now();
                    let transport = link.transport().name();
                    tracing::info!(control = self.address, transport, "linked to the control plane");
                    self.put(Some(link.clone()));
                    let reason = link.closed().await;
                    self.put(None);
                    if began.elapsed() >= STOOD {
                        pause = BACKOFF.0;
                    }
                    tracing::warn!(control = self.address, reason, retry_in = ?pause, "a link to the control plane ended");
                }
                Err(error) => {
                    tracing::warn!(%error, retry_in = ?pause, "no link to the control plane; serving goes on");
                }
            }
            sleep(jittered(pause, uuid::Uuid::new_v4().as_u128())).await;
            pause = (pause * 2).min(longest);
        }
    }

    fn put(&self, link: Option<Link>) {
        self.standing.send_modify(|standing| {
            if let Some(place) = standing.get_mut(self.index) {
                *place = link;
            }
        });
    }

    /// By QUIC, or where UDP is blocked by TCP.
    async fn connect(&mut self) -> Result<Link, LinkError> {
        if self.blocked.is_some_and(|since| since.elapsed() < UDP_PAUSE)
            && let Ok(link) = connect_tcp(&self.address, &self.identity).await
        {
            return Ok(link);
        }
        let quic = async {
            let remote = transport::resolve(&self.address).await?;
            let dialer = Dialer::bind(remote.is_ipv4())?;
            let dialer = if self.attentive { dialer.attentive() } else { dialer };
            dialer.dial(&self.address, remote, &self.identity).await
        };
        if let Ok(answered) = timeout(QUIC_PATIENCE, quic).await {
            let link = answered?;
            self.blocked = None;
            return Ok(link);
        }
        let link = connect_tcp(&self.address, &self.identity).await?;
        if self.blocked.replace(Instant::now()).is_none() {
            tracing::warn!(control = self.address, "nobody answers by UDP; is it blocked? Using TCP");
        }
        Ok(link)
    }
}

/// Between half of `pause` and all of it, so that those that lost the same control plane do not come back as one.
fn jittered(pause: Duration, random: u128) -> Duration {
    let half = pause / 2;
    let spread = half.as_nanos().max(1);
    half + Duration::from_nanos(u64::try_from(random % spread).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_the_upper_half() {
        let pause = Duration::from_secs(4);
        for random in [0, 1, 1_999_999_999, 2_000_000_000, u128::MAX] {
            let jittered = jittered(pause, random);
            assert!(jittered >= pause / 2 && jittered <= pause, "{jittered:?}");
        }
        assert_eq!(jittered(Duration::ZERO, 7), Duration::ZERO);
    }
}
