//! Nodes and edges, as the operator sees and switches them.

use super::{ActionError, Operator, audit};
use crate::admission::Role;
use crate::context::Context;
use crate::feed::Edit;
use crate::roster::LiveReport;
use crate::store::edges::{self, Edge, Listed};
use crate::store::nodes::{self, Node};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use turnpike_config::Change;
use utoipa::ToSchema;

/// A node with what it reports.
#[derive(Serialize, ToSchema)]
pub(crate) struct NodeView {
    /// As stored.
    #[serde(flatten)]
    pub(crate) node: Node,
    /// Whether its link to this control plane is up.
    pub(crate) connected: bool,
    /// Its latest report, while its link is up.
    pub(crate) report: Option<LiveReport>,
}

fn view(context: &Context, node: Node) -> NodeView {
    let live = context.nodes.get(&node.name);
    NodeView { connected: live.is_some(), report: live.and_then(|live| live.report), node }
}

/// Switches a node off (edges send it nothing new) or on again.
pub(crate) async fn set_enabled(
    context: &Context,
    operator: Operator,
    name: &str,
    enabled: bool,
) -> Result<NodeView, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let before = nodes::get(edit.connection(), name).await?;
    let before = before.ok_or_else(|| ActionError::not_found("node", name))?;
    let after = set_enabled_in(&mut edit, operator, before, enabled).await?;
    edit.commit().await?;
    Ok(view(context, after))
}

/// The same as part of a larger change.
pub(super) async fn set_enabled_in(
    edit: &mut Edit<'_>,
    operator: Operator,
    before: Node,
    enabled: bool,
) -> Result<Node, ActionError> {
    let name = &before.name;
    let after = nodes::set_enabled(edit.connection(), name, enabled).await?;
    let after = after.ok_or_else(|| ActionError::not_found("node", name))?;
    let action = if enabled { "node.enable" } else { "node.disable" };
    audit(edit, operator, action, ("node", name), json!({})).await?;
    let record = after.record()?;
    if record != before.record()? {
        edit.push(Change::PutNode(record));
    }
    Ok(after)
}

/// One node.
pub(crate) async fn get(context: &Context, name: &str) -> Result<NodeView, ActionError> {
    let node = nodes::get(&mut *context.store.read().await?, name).await?;
    Ok(view(context, node.ok_or_else(|| ActionError::not_found("node", name))?))
}

/// A page of nodes.
pub(crate) async fn list(context: &Context, after: Option<&str>, limit: i64) -> Result<Vec<NodeView>, ActionError> {
    let nodes = nodes::list(&mut *context.store.read().await?, after, limit).await?;
    Ok(nodes.into_iter().map(|node| view(context, node)).collect())
}

/// A page of edges.
pub(crate) async fn list_edges(
    context: &Context,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<EdgeView>, ActionError> {
    let listed = edges::list(&mut *context.store.read().await?, after, limit).await?;
    let now = Utc::now();
    Ok(listed.into_iter().map(|edge| EdgeView::new(edge, now)).collect())
}

/// An edge that is behind for longer than this has something the matter, seconds.
const LATE_S: i64 = 5;

/// An edge with how it does.
#[derive(Serialize, ToSchema)]
pub(crate) struct EdgeView {
    /// As last seen.
    #[serde(flatten)]
    pub(crate) edge: Edge,
    /// `healthy`, `behind` (for more than 5 s), `refusing` (the last version it was given) or `away`.
    health: &'static str,
    /// Versions that it does not serve by yet; what is for other edges counts as well.
    lag_versions: i64,
    /// Seconds since the first of them was made.
    lag_seconds: i64,
}

impl EdgeView {
    fn new(Listed { edge, behind, behind_since }: Listed, now: DateTime<Utc>) -> Self {
        let lag_seconds = behind_since.map_or(0, |since| now.signed_duration_since(since).num_seconds().max(0));
        let health = match &edge {
            away if !away.connected => "away",
            refusing if refusing.last_nack.is_some() => "refusing",
            _ if lag_seconds > LATE_S => "behind",
            _ => "healthy",
        };
        Self { edge, health, lag_versions: behind, lag_seconds }
    }
}

/// Removes an edge that is retired, so that nothing waits for usage of it any more. Usage that it has not shipped is lost
/// to its month; should the edge come back, it is known anew. Owners only.
pub(crate) async fn delete_edge(context: &Context, operator: Operator, name: &str) -> Result<(), ActionError> {
    if operator.role < Role::Owner {
        return Err(ActionError::Forbidden(Role::Owner));
    }
    let mut edit = context.feed.edit(operator.name()).await?;
    let edge = edges::get(edit.connection(), name).await?.ok_or_else(|| ActionError::not_found("edge", name))?;
    // That of this process is newer than what is noted.
    if context.edges.get(name).is_some() || !edges::delete(edit.connection(), name).await? {
        return Err(ActionError::Conflict(format!("edge {name} is connected: stop it before it is removed")));
    }
    let details = json!({"complete_to": edge.complete_to, "began_to": edge.began_to});
    audit(&mut edit, operator, "edge.delete", ("edge", name), details).await?;
    edit.commit().await?;
    Ok(())
}
