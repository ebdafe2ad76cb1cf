//! Rollouts: documents that reach some edges before they reach all.

use super::declared::{Apply, Documents, PlannedStep, plan};
use super::rollout_steps::taken_back;
use super::{ActionError, Operator, audit, sound_reason};
use crate::context::Context;
use crate::feed::Edit;
use crate::staging::{HOLD_S, Rules, Stage, stages_mistake};
use crate::store::edges;
use crate::store::rollouts::{self, ABORTED, PAUSED, RUNNING, Rollout};
use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::types::Json;
use turnpike_config::Change;
use utoipa::ToSchema;
use uuid::Uuid;

/// What is to be, and by which stages.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StartRollout {
    /// What there is to be.
    documents: Documents,
    /// Also take away what is not declared, as for documents that are applied at once.
    #[serde(default)]
    prune: bool,
    /// Who is told before all are; one connected edge, then its region, if absent.
    stages: Option<Vec<Stage>>,
    /// When it is halted and taken back.
    #[serde(default)]
    rules: Rules,
    /// Why, for whoever reads the log.
    reason: Option<String>,
}

/// A rollout that was started.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StartedRollout {
    /// As it is.
    #[serde(flatten)]
    pub(crate) rollout: Rollout,
    /// Records that differ.
    pub(crate) steps: Vec<PlannedStep>,
}

/// Starts one: the first stage is told.
pub(crate) async fn start(
    context: &Context,
    operator: Operator,
    input: StartRollout,
) -> Result<StartedRollout, ActionError> {
    let StartRollout { documents, prune, stages, rules, reason } = input;
    let reason = sound_reason(reason.as_deref())?;
    let apply = Apply { documents: documents.clone(), prune, ..Apply::default() };
    let (changes, steps) = rehearse(context, operator, &apply).await?;
    let mut edit = context.feed.edit(operator.name()).await?;
    if let Some(other) = rollouts::under_way(edit.connection()).await? {
        return Err(ActionError::Conflict(format!("rollout {} is under way; finish or abort it first", other.id)));
    }
    let stages = match stages {
        Some(stages) => stages,
        None => usual_stages(&mut edit).await?,
    };
    if let Some((path, reason)) = stages_mistake(&stages) {
        return Err(ActionError::field(&path, reason));
    }
    let id = Uuid::now_v7();
    edit.for_rollout(id);
    edit.because(reason.clone().unwrap_or_else(|| format!("rollout {id}")));
    for change in &changes {
        edit.push_to(stages[0].audience(), change.clone());
    }
    let now = Utc::now();
    let rollout = Rollout {
        id,
        author: operator.name(),
        reason,
        documents: json!(documents),
        prune,
        changes: Json(changes),
        stages: Json(stages),
        rules: Json(rules),
        state: RUNNING.to_owned(),
        stage: 0,
        told_version: edit.version_after(),
        told_at: now,
        held_since: None,
        note: None,
        created_at: now,
        updated_at: now,
    };
    rollouts::insert(edit.connection(), &rollout).await?;
    audit(&mut edit, operator, "rollout.start", ("rollout", &id.to_string()), json!({"reason": rollout.reason}))
        .await?;
    edit.commit().await?;
    Ok(StartedRollout { rollout, steps })
}

/// What edges would be told if it were applied now, with nothing done.
async fn rehearse(
    context: &Context,
    operator: Operator,
    apply: &Apply,
) -> Result<(Vec<Change>, Vec<PlannedStep>), ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let (steps, _) = plan(&mut edit, operator, apply).await?;
    let changes: Vec<Change> = edit.changes().cloned().collect();
    edit.check().await?;
    if changes.is_empty() {
        return Err(ActionError::Conflict("edges would be told nothing new: apply it without a rollout".to_owned()));
    }
    for change in &changes {
        let at_once = match change {
            urgent if urgent.is_urgent() => "takes something away, which waits for no stage",
            Change::PutOrg(org) if org.budget.is_some() => "has a budget, of which edges are told all the time",
            Change::PutNode(_) | Change::DropNode(_) => "says itself how it is",
            _ => continue,
        };
        let detail = format!("{} {at_once}: apply that on its own, at once", change.subject());
        return Err(ActionError::field("documents", detail));
    }
    Ok((changes, steps))
}

/// One connected edge, then its region.
async fn usual_stages(edit: &mut Edit<'_>) -> Result<Vec<Stage>, ActionError> {
    let edges = edges::connected(edit.connection()).await?;
    let Some(canary) = edges.into_iter().min_by(|a, b| a.name.cmp(&b.name)) else {
        return Err(ActionError::Conflict("no edge is connected that could be the first: name stages".to_owned()));
    };
    let hold_s = HOLD_S;
    Ok(vec![
        Stage { edges: vec![canary.name], regions: Vec::new(), hold_s },
        Stage { edges: Vec::new(), regions: vec![canary.region], hold_s },
    ])
}

/// What an operator can do to a rollout under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RolloutAct {
    /// It stays where it is; harm is still looked for.
    Pause,
    /// It goes on.
    Resume,
    /// It is taken back.
    Abort,
}

/// Does it.
pub(crate) async fn act(
    context: &Context,
    operator: Operator,
    id: Uuid,
    act: RolloutAct,
) -> Result<Rollout, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let rollout = rollouts::get(edit.connection(), id).await?;
    let rollout = rollout.ok_or_else(|| ActionError::not_found("rollout", id))?;
    if !rollout.is_under_way() {
        return Err(ActionError::Conflict(format!("rollout {id} is over: {}", rollout.state)));
    }
    let (name, rollout) = match act {
        RolloutAct::Pause => ("rollout.pause", Rollout { state: PAUSED.to_owned(), ..rollout }),
        RolloutAct::Resume => ("rollout.resume", Rollout { state: RUNNING.to_owned(), ..rollout }),
        RolloutAct::Abort => {
            edit.because(format!("rollout {id} aborted"));
            ("rollout.abort", taken_back(&mut edit, rollout, ABORTED, None).await?)
        }
    };
    rollouts::update(edit.connection(), &rollout).await?;
    audit(&mut edit, operator, name, ("rollout", &id.to_string()), json!({})).await?;
    edit.commit().await?;
    Ok(rollout)
}

/// One rollout.
pub(crate) async fn get(context: &Context, id: Uuid) -> Result<Rollout, ActionError> {
    let rollout = rollouts::get(&mut *context.store.read().await?, id).await?;
    rollout.ok_or_else(|| ActionError::not_found("rollout", id))
}

/// A page of rollouts, the newest first.
pub(crate) async fn list(context: &Context, before: Option<Uuid>, limit: i64) -> Result<Vec<Rollout>, ActionError> {
    Ok(rollouts::newest(&mut *context.store.read().await?, before, limit).await?)
}
