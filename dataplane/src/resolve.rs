//! Finds out what became of requests whose engine's count never reached this edge, from the ledger of the node that worked
//! on them: requests that a crash of this process ended, and answers that were broken off.

mod ledger;

use crate::clock::{millis, since_epoch};
use crate::edge::Edge;
use crate::journal::{Intent, Permit};
use crate::limit::micros;
use crate::unsettled::{BrokenOff, Jobs};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use ledger::{Known, Ledgers};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use turnpike_config::link::{Identity, LinkError};
use turnpike_config::wire::LedgerState;
use turnpike_config::{Price, RequestStatus, Tokens, UsageEvent};

/// For an answer that was broken off a moment ago; afterwards the edge's own count stands.
const PATIENCE: Duration = Duration::from_secs(10);
/// For a request of an earlier life: as long as nodes keep their ledgers. Afterwards it costs nothing.
const KEPT: Duration = Duration::from_secs(48 * 3600);
/// And for so long in this life, which may be the first in days.
const TRIED: Duration = Duration::from_secs(600);
/// So long one holds open what budgets are told; what it may have cost was reserved.
const HELD: Duration = Duration::from_secs(900);
/// Between two questions about one request: at first, and at most for each kind.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE_ORPHAN: Duration = Duration::from_secs(30);

/// Resolves until stopped; what is left then is recorded by the edge's own count, or left for the next life.
pub(crate) async fn run(
    edge: Arc<Edge>,
    identity: Identity,
    mut jobs: Jobs,
    orphans: Vec<(Intent, Permit)>,
    stop: CancellationToken,
) -> Result<(), LinkError> {
    let ledgers = Ledgers::new(&identity)?;
    if !orphans.is_empty() {
        tracing::warn!(requests = orphans.len(), "the last life of this edge ended before these requests did");
    }
    let (edge, ledgers, stop) = (&*edge, &ledgers, &stop);
    let mut orphaned: FuturesUnordered<_> =
        orphans.into_iter().map(|(intent, permit)| orphan(edge, ledgers, intent, permit, stop)).collect();
    let mut broken = FuturesUnordered::new();
    loop {
        tokio::select! {
            job = jobs.recv() => match job {
                Some(job) => broken.push(broken_off(edge, ledgers, job, stop)),
                None => break,
            },
            Some(()) = broken.next() => {}
            Some(()) = orphaned.next() => {}
            () = stop.cancelled() => {
                jobs.close();
                if jobs.is_empty() { break }
            }
        }
    }
    while broken.next().await.is_some() {}
    Ok(())
}

/// Of a request that ended a moment ago.
async fn broken_off(edge: &Edge, ledgers: &Ledgers, job: BrokenOff, stop: &CancellationToken) {
    let BrokenOff { mut event, price, charges, permit, written } = job;
    let node = event.node.clone().unwrap_or_default();
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    let found = loop {
        match ledgers.ask(&edge.snapshot.load(), &node, event.id).await {
            Ok(Known::Entry(LedgerState::Begun, _)) | Err(_) if began.elapsed() < PATIENCE && !stop.is_cancelled() => {}
            Ok(known) => break Some(known),
            Err(error) => {
                tracing::warn!(node, event = %event.id, %error, "no word of an answer that broke off: by our own count");
                break None;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    match found {
        Some(Known::Entry(state @ (LedgerState::Counted | LedgerState::Seen), tokens)) => {
            count(&mut event, price, tokens);
            event.estimated = state == LedgerState::Seen;
        }
        Some(Known::Entry(LedgerState::Refused, _)) => count(&mut event, price, Tokens::default()),
        // What the client had, a node has made, whatever it remembers.
        Some(Known::Nothing) if event.completion_tokens == 0 => count(&mut event, price, Tokens::default()),
        // It still runs there, or nobody knows.
        Some(Known::Entry(LedgerState::Begun | LedgerState::Lost, _) | Known::Nothing) | None => {}
    }
    edge.metrics.broken_off.inc();
    let (tokens, cost) = (event.total_tokens(), micros(event.cost.pico));
    let recorded = permit.record(event);
    charges.settle(tokens, cost);
    recorded.wait().await;
    let _ = written.send(());
}

fn count(event: &mut UsageEvent, price: Price, tokens: Tokens) {
    event.prompt_tokens = tokens.prompt;
    event.completion_tokens = tokens.completion;
    event.cached_tokens = tokens.cached;
    event.cost = price.cost(tokens);
    event.estimated = false;
}

/// Of a request that this process did not live to see the end of.
async fn orphan(edge: &Edge, ledgers: &Ledgers, intent: Intent, mut permit: Permit, stop: &CancellationToken) {
    let mut pause = FIRST_PAUSE;
    let began = Instant::now();
    let mut told = false;
    let known = loop {
        let tried = began.elapsed();
        let age = millis(since_epoch()).saturating_sub(intent.id.unix_ms());
        let is_hopeless = age >= millis(KEPT) && tried >= TRIED;
        if tried >= HELD {
            permit.let_go();
        }
        match ledgers.ask(&edge.snapshot.load(), &intent.node, intent.id).await {
            Ok(Known::Entry(LedgerState::Lost, _)) => break None,
            Ok(Known::Entry(LedgerState::Begun, _)) if is_hopeless => break None,
            Ok(Known::Entry(LedgerState::Begun, _)) => {}
            Ok(known) => break Some(known),
            Err(error) if !is_hopeless => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(node = intent.node, event = %intent.id, %error, "asking what became of a request");
                }
            }
            Err(_) => break None,
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The intent stays in the journal for the next life.
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE_ORPHAN);
    };
    edge.metrics.orphans.inc();
    drop(permit.record(event_of(edge, intent, known)));
}

/// The event of a request that a crash of this edge ended. `None`: nobody knows how many tokens it had; it costs nothing.
fn event_of(edge: &Edge, intent: Intent, known: Option<Known>) -> UsageEvent {
    let code = if known.is_some() { "edge_lost" } else { "usage_unknown" };
    let (used, estimated) = match known {
        Some(Known::Entry(state, tokens)) => (tokens, state == LedgerState::Seen),
        Some(Known::Nothing) => (Tokens::default(), false),
        None => (Tokens::default(), true),
    };
    UsageEvent {
        id: intent.id,
        organization: intent.organization,
        api_key: intent.api_key,
        model: Some(intent.model),
        model_version: Some(intent.model_version),
        endpoint: intent.endpoint,
        status: RequestStatus::Error,
        http_status: 0,
        error_code: Some(code.to_owned()),
        error_message: None,
        prompt_tokens: used.prompt,
        completion_tokens: used.completion,
        estimated,
        cost: intent.price.cost(used),
        request_bytes: intent.request_bytes,
        response_bytes: 0,
        processing_ms: 0,
        queue_ms: 0,
        total_ms: 0,
        first_byte_ms: None,
        region: edge.settings.region.clone(),
        edge: edge.name.clone(),
        node: Some(intent.node),
        user_agent: None,
        client_ip: None,
        streamed: intent.streamed,
        retries: 0,
        cache: None,
        price_version: intent.price_version,
        cached_tokens: used.cached,
        shadow: false,
    }
}
