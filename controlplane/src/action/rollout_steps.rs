//! The steps of a rollout, each in one transaction with what edges are told.

use super::declared::{Apply, Documents, plan};
use super::{ActionError, Operator};
use crate::admission::Role;
use crate::context::Context;
use crate::feed::Edit;
use crate::store::rollouts::{self, DONE, HALTED, RUNNING, Rollout};
use chrono::Utc;
use tracing::{info, warn};
use uuid::Uuid;

/// Author of what the reconciler does by itself.
pub(crate) const AUTHOR: &str = "rollout";

/// Tells the next stage, or all.
pub(crate) async fn advance(context: &Context, id: Uuid) -> Result<(), ActionError> {
    let mut edit = context.feed.edit(AUTHOR).await?;
    let Some(rollout) = running(&mut edit, id).await? else { return Ok(()) };
    edit.for_rollout(id);
    edit.because(why(&rollout));
    match rollout.next().cloned() {
        Some(stage) => {
            for change in rollout.changes.iter() {
                edit.push_to(stage.audience(), change.clone());
            }
            let told_version = edit.version_after();
            let (stage, told_at) = (rollout.stage + 1, Utc::now());
            info!(rollout = %id, stage, "a rollout goes on");
            let rollout = Rollout { stage, told_version, told_at, held_since: None, note: None, ..rollout };
            rollouts::update(edit.connection(), &rollout).await?;
            edit.commit().await?;
            Ok(())
        }
        None => finish(context, edit, rollout).await,
    }
}

/// Applies it for all.
async fn finish(context: &Context, mut edit: Edit<'_>, rollout: Rollout) -> Result<(), ActionError> {
    let id = rollout.id;
    let applied = async {
        let documents: Documents = serde_json::from_value(rollout.documents.clone())
            .map_err(|error| ActionError::Internal(format!("documents of a rollout: {error}")))?;
        let input = Apply { documents, prune: rollout.prune, ..Apply::default() };
        plan(&mut edit, Operator { role: Role::Owner }, &input).await?;
        let rollout = Rollout { state: DONE.to_owned(), note: None, ..rollout };
        rollouts::update(edit.connection(), &rollout).await?;
        Ok(edit.commit().await?)
    };
    match applied.await {
        Ok(version) => {
            info!(rollout = %id, version, "a rollout has reached every edge");
            Ok(())
        }
        // The database is away: the same again.
        Err(error @ ActionError::Store(_)) => Err(error),
        Err(error) => {
            warn!(rollout = %id, %error, "a rollout cannot be finished; taking it back");
            halt(context, id, &format!("it cannot be applied any more: {error}")).await
        }
    }
}

/// Takes it back because it does harm.
pub(crate) async fn halt(context: &Context, id: Uuid, reason: &str) -> Result<(), ActionError> {
    let mut edit = context.feed.edit(AUTHOR).await?;
    let rollout = rollouts::get(edit.connection(), id).await?;
    let Some(rollout) = rollout.filter(Rollout::is_under_way) else { return Ok(()) };
    edit.because(format!("rollout {id} halted: {reason}"));
    let rollout = taken_back(&mut edit, rollout, HALTED, Some(reason.to_owned())).await?;
    rollouts::update(edit.connection(), &rollout).await?;
    edit.commit().await?;
    Ok(())
}

/// Gives everybody who was told what all others have. The rollout as it is then is for the caller to write.
pub(crate) async fn taken_back(
    edit: &mut Edit<'_>,
    rollout: Rollout,
    state: &str,
    note: Option<String>,
) -> Result<Rollout, ActionError> {
    edit.for_rollout(rollout.id);
    let base = edit.routing().await?;
    for change in rollout.changes.iter().rev() {
        let subject = change.subject();
        if let Some(back) = base.record(&subject).or_else(|| subject.dropped()) {
            edit.push_to(rollout.told(), back);
        }
    }
    Ok(Rollout { state: state.to_owned(), note, ..rollout })
}

async fn running(edit: &mut Edit<'_>, id: Uuid) -> Result<Option<Rollout>, ActionError> {
    Ok(rollouts::get(edit.connection(), id).await?.filter(|rollout| rollout.state == RUNNING))
}

fn why(rollout: &Rollout) -> String {
    let reason = rollout.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("rollout {}{reason}", rollout.id)
}
