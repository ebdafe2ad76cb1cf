//! Answers a request without a node, if an equal one has been answered or is being answered.

mod listen;

use crate::cache::{self, Facts, Fence, Follower, Join, LeaderGuard, Plan, Scope, StoredAnswer, Wanted};
use crate::edge::Edge;
use crate::fill::Fill;
use crate::forward::recorded;
use crate::limit::{Charges, Need, Refused, Within, micros};
use crate::reject::Reject;
use crate::request::{Cached, Metered, Request, Served};
use crate::{meter, respond};
use bytes::Bytes;
use listen::Heard;
use pingora::protocols::http::ServerSession as Session;
use std::sync::Arc;
use std::time::{Duration, Instant};
use turnpike_config::{CacheStatus, Tokens, headers};

/// Others that are waited for, one after the other, before the request goes to a node whoever else does.
const FLIGHTS: usize = 3;
/// Between the events of a stream that is to come at the speed of a model.
const PACE: Duration = Duration::from_millis(20);

/// Whether a node has to be asked.
pub(crate) enum Reuse {
    Answered,
    /// Yes, and the answer is to be kept if there is a fill.
    Node(Option<Box<Fill>>),
}

/// Looks for an answer, here and in the region, and gives it to the client. `body` is what a node would get, `most` what its
/// answer may use.
pub(crate) async fn reuse(
    edge: &Arc<Edge>,
    session: &mut Session,
    request: &mut Request,
    body: &Bytes,
    most: Tokens,
) -> Result<Reuse, Reject> {
    let Some((wanted, plan)) = wanted(session, request, body) else { return Ok(Reuse::Node(None)) };
    let mut seeker = Seeker { edge, session, request, wanted, plan, most };
    seeker.enter().await?;
    seeker.seek().await
}

/// What answer would do, and how it is to be given; notes what the cache does if that is nothing.
fn wanted(session: &Session, request: &mut Request, body: &Bytes) -> Option<(Wanted, Plan)> {
    let metered = request.metered.as_mut()?;
    let (ask, model) = (metered.ask.as_ref()?, metered.model.as_ref()?);
    let (policy, head) = (&metered.cache_policy(), &session.req_header().headers);
    let facts = Facts { temperature: ask.temperature };
    let plan = cache::plan(policy, head, metered.endpoint, facts);
    let organization = (metered.key.record.organization, metered.key.org.record.cache_generation);
    let scope = Scope {
        organization: (!policy.public).then_some(organization),
        model: &model.record.id,
        version: metered.version(),
        model_generation: policy.generation,
        endpoint: metered.endpoint,
    };
    let key = if plan == Plan::BYPASS { None } else { cache::key(&scope, body) };
    let spoken_of = policy.enabled || head.contains_key(headers::CACHE);
    let status = if key.is_some() { CacheStatus::Miss } else { CacheStatus::Bypass };
    metered.cached = (key.is_some() || spoken_of).then_some(Cached { status, key, age_s: 0, served: None });
    let key = key?;
    let ttl = Duration::from_secs(policy.ttl_s.into());
    let purged_at_ms = request.snapshot.purged_at_ms(&key);
    Some((Wanted { key, ttl, max_age_s: plan.max_age_s, purged_at_ms }, plan))
}

/// A request that looks for its answer.
struct Seeker<'a> {
    edge: &'a Arc<Edge>,
    session: &'a mut Session,
    request: &'a mut Request,
    wanted: Wanted,
    plan: Plan,
    most: Tokens,
}

impl Seeker<'_> {
    /// Takes what a request takes within its model.
    async fn enter(&mut self) -> Result<(), Reject> {
        self.charge_with(async |charges, within| charges.enter(within).await).await
    }

    /// Takes what an answer costs that is given again, if the model charges for it.
    async fn charge(&mut self, usage: Tokens) -> Result<(), Reject> {
        let began_ms = self.request.arrived_unix_ms;
        let spend = micros(self.metered()?.reuse_cost(began_ms, usage).pico);
        self.charge_with(async |charges, within| {
            charges.reserve(within, Need { least_tokens: 0, tokens: 0, spend }).await
        })
        .await
    }

    async fn charge_with(
        &mut self,
        take: impl AsyncFnOnce(&mut Charges, &Within<'_>) -> Result<(), Refused>,
    ) -> Result<(), Reject> {
        let metered = self.metered()?;
        let model = metered.model.clone().ok_or(Reject::Internal)?;
        let mut charges = std::mem::take(&mut metered.charges);
        let taken = take(&mut charges, &metered.within(&model)).await;
        metered.charges = charges;
        Ok(taken?)
    }

    async fn seek(&mut self) -> Result<Reuse, Reject> {
        if self.plan.lookup
            && let Some(answer) = self.kept()
            && self.give(&answer, CacheStatus::Hit).await?
        {
            return Ok(Reuse::Answered);
        }
        for _ in 0..FLIGHTS {
            let now_ms = self.request.arrived_unix_ms;
            match self.edge.cache.join(self.wanted.key, now_ms) {
                Join::Leader(leader) => return self.lead(leader).await,
                Join::Follower(follower) if !self.would_take(&follower) => break,
                Join::Follower(follower) => match self.listen(follower).await? {
                    Heard::Everything => return Ok(Reuse::Answered),
                    Heard::Nothing { rejoin: true } => {}
                    Heard::Nothing { rejoin: false } => break,
                },
            }
        }
        self.fill(None, None)
    }

    /// Whether an answer will do that somebody asked for earlier.
    fn would_take(&self, follower: &Follower) -> bool {
        self.plan.lookup && self.wanted.accepts_of(follower.asked_at_ms(), self.request.arrived_unix_ms)
    }

    /// Asks the region before a node is asked.
    async fn lead(&mut self, leader: LeaderGuard) -> Result<Reuse, Reject> {
        let answer = match self.find().await {
            Ok(answer) => answer,
            Err(fence) => return self.fill(Some(leader), fence),
        };
        leader.finish(Arc::clone(&answer));
        if self.give(&answer, CacheStatus::Hit).await? { Ok(Reuse::Answered) } else { self.fill(None, None) }
    }

    /// An answer, or else leave to make it.
    async fn find(&self) -> Result<Arc<StoredAnswer>, Option<Fence>> {
        if !self.plan.lookup {
            return Err(None);
        }
        // Somebody may have got it between the first look and the join.
        match self.kept() {
            Some(answer) => Ok(answer),
            None => self.edge.cache.claim(&self.wanted, self.request.arrived_unix_ms).await,
        }
    }

    fn kept(&self) -> Option<Arc<StoredAnswer>> {
        self.edge.cache.get(&self.wanted, self.request.arrived_unix_ms)
    }

    fn fill(&self, leader: Option<LeaderGuard>, fence: Option<Fence>) -> Result<Reuse, Reject> {
        let endpoint = self.request.metered.as_ref().ok_or(Reject::Internal)?.endpoint;
        let fill = Fill::new(self.wanted, endpoint, self.request.arrived_unix_ms, leader, fence);
        Ok(Reuse::Node(Some(Box::new(fill))))
    }

    fn metered(&mut self) -> Result<&mut Metered, Reject> {
        self.request.metered.as_mut().ok_or(Reject::Internal)
    }

    /// Gives a whole answer to the client; false if it cannot be given in the form that he wants.
    async fn give(&mut self, answer: &StoredAnswer, status: CacheStatus) -> Result<bool, Reject> {
        let (plan, metered) = (self.plan, self.metered()?);
        let Some(ask) = &metered.ask else { return Ok(false) };
        let pieces = if ask.stream {
            answer.events(metered.endpoint, ask.include_usage)
        } else {
            answer.json(metered.endpoint).map(|document| vec![document])
        };
        let (Some(pieces), streamed) = (pieces, ask.stream) else { return Ok(false) };
        let usage = answer.tokens();
        self.charge(usage).await?;
        self.note(status, answer.stored_at_ms, usage)?;
        let written = if streamed && plan.paced {
            self.write_paced(pieces).await
        } else {
            let whole = if let [one] = &*pieces { one.clone() } else { pieces.concat().into() };
            self.write_whole(whole, streamed).await
        };
        if written.is_err() {
            // It must not look as if the answer had ended.
            self.session.shutdown().await;
        }
        // A client that left is no error of ours: what he has had is in the books.
        self.served()?.complete = written.is_ok();
        Ok(true)
    }

    /// Notes that no node is asked. `made_at_ms` is Unix milliseconds.
    fn note(&mut self, status: CacheStatus, made_at_ms: u64, usage: Tokens) -> Result<(), Reject> {
        let age_s = self.request.arrived_unix_ms.saturating_sub(made_at_ms) / 1_000;
        let cached = self.metered()?.cached.as_mut().ok_or(Reject::Internal)?;
        cached.status = status;
        cached.age_s = if status == CacheStatus::Hit { age_s } else { 0 };
        cached.served = Some(Served { usage, ..Served::default() });
        Ok(())
    }

    fn served(&mut self) -> Result<&mut Served, Reject> {
        self.metered()?.cached.as_mut().and_then(|cached| cached.served.as_mut()).ok_or(Reject::Internal)
    }

    async fn write_whole(&mut self, body: Bytes, streamed: bool) -> pingora::Result<()> {
        let length = body.len();
        self.write_head(streamed, Some(length)).await?;
        self.account(length).await?;
        self.session.write_response_body(body, true).await
    }

    async fn write_paced(&mut self, pieces: Vec<Bytes>) -> pingora::Result<()> {
        self.write_head(true, None).await?;
        for piece in pieces {
            self.session.write_response_body(piece, false).await?;
            tokio::time::sleep(PACE).await;
        }
        self.account(0).await?;
        self.session.write_response_body(Bytes::new(), true).await
    }

    /// An answer that costs something is in the journal before its last `unsent` bytes go out.
    async fn account(&mut self, unsent: usize) -> pingora::Result<()> {
        let metered = self.request.metered.as_mut();
        let costs = |metered: &Metered| metered.cache_policy().price_permille > 0;
        let Some(metered) = metered.filter(|metered| costs(metered)) else { return Ok(()) };
        if let Some(served) = metered.cached.as_mut().and_then(|cached| cached.served.as_mut()) {
            served.complete = true;
        }
        match meter::conclude(self.edge, self.session, self.request, unsent, None) {
            Some(written) => recorded(written).await,
            None => Ok(()),
        }
    }

    async fn write_head(&mut self, streamed: bool, length: Option<usize>) -> pingora::Result<()> {
        let head = respond::reused_head(self.request, streamed, length, self.edge.now_ns());
        self.session.write_response_header(head).await?;
        if let Ok(served) = self.served() {
            served.first_byte_at = Some(Instant::now());
        }
        Ok(())
    }
}
