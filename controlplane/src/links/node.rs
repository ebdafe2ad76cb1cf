//! Conversations with a node: registration, reports, and what its silence means.

use super::{REFUSED, Stream};
use crate::context::Context;
use crate::feed::FeedError;
use crate::roster::{LiveReport, NodeLive};
use crate::store::config_log;
use crate::store::nodes::{self, Node};
use chrono::Utc;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use turnpike_config::NodeUrl;
use turnpike_config::link::{Link, LinkError, read_frame, write_frame};
use turnpike_config::wire::{NodeHello, NodeReply, NodeReport};
use turnpike_config::{Change, NodeState};
use uuid::Uuid;

/// How often a node reports, milliseconds.
const REPORT_EVERY_MS: u32 = 1_000;
/// A node that reports nothing this long is closed, though its link may be up.
const REPORT_DEADLINE: Duration = Duration::from_secs(10);
/// A node that reconnects within this time was never lost.
const GRACE: Duration = Duration::from_secs(2);
/// Most (model, version) pairs of one node.
const MAX_SERVES: usize = 256;
/// Most GPUs of one node.
const MAX_GPUS: usize = 64;
/// Most slots of one node.
const MAX_SLOTS: u32 = 1_000_000;
/// Longest text that a node gives of itself, bytes.
const MAX_TEXT: usize = 255;

/// Serves a node's registration until its link ends.
pub(super) async fn serve(
    name: &str,
    hello: NodeHello,
    mut stream: Stream,
    link: &Link,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<(), LinkError> {
    if let Err(reason) = validate(&hello) {
        warn!(node = name, reason, "a node was refused");
        write_frame(&mut stream.send, &NodeReply::Refused(reason)).await?;
        // One that does not listen is left behind.
        let _ = timeout(REPORT_DEADLINE, stream.send.finish()).await;
        return Ok(());
    }
    let session = context.nodes.enter(name, link.clone(), NodeLive::default());
    context.metrics.nodes_connected.set(context.nodes.len());
    let result = tokio::select! {
        () = stop.cancelled() => Ok(()),
        reason = link.closed() => Err(LinkError::Lost(reason)),
        result = registered(name, hello, session, &mut stream, link, context) => result,
    };
    if context.nodes.leave(name, session) {
        context.metrics.nodes_connected.set(context.nodes.len());
        after_link(name, context, stop).await;
    }
    result
}

/// Whether a registration makes sense; the reason is for the node's operator.
fn validate(hello: &NodeHello) -> Result<(), String> {
    let texts = [("region", &hello.region), ("engine", &hello.engine), ("build", &hello.build)];
    if let Some((what, _)) = texts.iter().find(|(_, text)| text.is_empty() || text.len() > MAX_TEXT) {
        return Err(format!("{what}: expected 1 to {MAX_TEXT} bytes"));
    }
    if NodeUrl::parse(&hello.url).is_none() {
        return Err(format!("url «{}»: expected http(s)://host:port; check http.advertise", hello.url));
    }
    if !(1..=MAX_SLOTS).contains(&hello.slots) {
        return Err(format!("slots {}: expected 1 to {MAX_SLOTS}; check queue.slots", hello.slots));
    }
    if hello.serves.is_empty() || hello.serves.len() > MAX_SERVES {
        return Err(format!("serves: expected 1 to {MAX_SERVES} entries of the form model@version"));
    }
    if hello.gpus.len() > MAX_GPUS {
        return Err(format!("gpus: expected at most {MAX_GPUS}"));
    }
    let bad = hello.serves.iter().find(|s| [&s.model, &s.version].iter().any(|t| t.is_empty() || t.len() > 100));
    bad.map_or(Ok(()), |s| Err(format!("serves «{}@{}»: a name has 1 to 100 bytes", s.model, s.version)))
}

async fn registered(
    name: &str,
    hello: NodeHello,
    session: u64,
    stream: &mut Stream,
    link: &Link,
    context: &Context,
) -> Result<(), LinkError> {
    let mut written = match register(name, &hello, context).await {
        Ok(state) => Some(state),
        Err(error) => {
            // Not a refusal: the node is to come back, as after any lost link.
            warn!(node = name, %error, "a node could not be registered");
            link.close(REFUSED, "the registration could not be stored; try again");
            return Ok(());
        }
    };
    info!(node = name, url = hello.url, engine = hello.engine, "node registered");
    write_frame(&mut stream.send, &NodeReply::Welcome { report_every_ms: REPORT_EVERY_MS }).await?;
    loop {
        let report = timeout(REPORT_DEADLINE, read_frame::<NodeReport>(&mut stream.recv))
            .await
            .map_err(|_| LinkError::Lost("the node does not report".to_owned()))??;
        let Some(report) = report else { return Ok(()) };
        context.metrics.observe_node(name, &report);
        context.reported.add(name, &hello, &report, Utc::now());
        let live = NodeLive { report: Some(LiveReport::new(Utc::now(), &report)) };
        context.nodes.set(name, session, live);
        let state = match report.state {
            // These two are for the control plane to say.
            NodeState::Lost | NodeState::Disabled => NodeState::Unhealthy,
            state => state,
        };
        if written != Some(state) {
            match set_state(name, state, context).await {
                Ok(()) => written = Some(state),
                // The next report tries again.
                Err(error) => warn!(node = name, state = state.name(), %error, "a node's state could not be stored"),
            }
        }
    }
}

/// Stores a registration. Until the node has reported, it keeps the state it had, or is not trusted with requests.
async fn register(name: &str, hello: &NodeHello, context: &Context) -> Result<NodeState, FeedError> {
    let mut edit = context.feed.edit(format!("node:{name}")).await?;
    let known = nodes::get(edit.connection(), name).await?;
    let before = known.as_ref().map(Node::record).transpose()?;
    let state = match known.as_ref().map(Node::reported).transpose()? {
        None | Some(NodeState::Lost) => NodeState::Unhealthy,
        Some(state) => state,
    };
    let now = Utc::now();
    let node = Node {
        id: Uuid::now_v7(),
        name: name.to_owned(),
        region: hello.region.clone(),
        url: hello.url.clone(),
        engine: hello.engine.clone(),
        state: state.name().to_owned(),
        slots: i32::try_from(hello.slots).unwrap_or(i32::MAX),
        serves: json!(hello.serves),
        gpus: json!(hello.gpus),
        metadata: json!({ "build": hello.build }),
        enabled: true,
        last_seen_at: None,
        linked_to: Some(context.id),
        created_at: now,
        updated_at: now,
    };
    let record = nodes::upsert(edit.connection(), &node).await?.record()?;
    if before.as_ref() != Some(&record) {
        edit.push(Change::PutNode(record));
    }
    edit.commit().await?;
    Ok(state)
}

/// Stores a node's state and tells the edges, if it is another than before.
pub(super) async fn set_state(name: &str, state: NodeState, context: &Context) -> Result<(), FeedError> {
    let mut edit = context.feed.edit(format!("node:{name}")).await?;
    let Some(before) = nodes::get(edit.connection(), name).await? else { return Ok(()) };
    if before.reported()? == state {
        return Ok(());
    }
    if let Some(after) = nodes::set_state(edit.connection(), name, state).await? {
        let record = after.record()?;
        if record != before.record()? {
            edit.push(Change::PutNode(record));
        }
    }
    config_log::trim_passing(edit.connection()).await?;
    edit.commit().await?;
    info!(node = name, state = state.name(), "node state");
    Ok(())
}

/// A node's link ended: it is lost unless it comes back soon. When this process stops, its nodes go elsewhere or come
/// back, and nothing is known about them.
async fn after_link(name: &str, context: &Context, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => return,
        () = sleep(GRACE) => {}
    }
    if context.nodes.get(name).is_some() {
        return;
    }
    context.metrics.forget_node(name);
    if let Err(error) = lose(name, context).await {
        // The watch over silent nodes comes to the same end later.
        warn!(node = name, %error, "a lost node could not be noted yet");
    }
}

/// Notes that a node is lost, unless it has turned to another control plane meanwhile.
async fn lose(name: &str, context: &Context) -> Result<(), FeedError> {
    let node = nodes::get(&mut *context.store.read().await?, name).await?;
    if node.is_some_and(|node| node.linked_to == Some(context.id)) {
        set_state(name, NodeState::Lost, context).await?;
    }
    Ok(())
}
