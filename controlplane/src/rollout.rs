//! The rollout reconciler: a change goes from stage to stage while nothing speaks against it, and is taken back otherwise.
//!
//! What is staged is in no table but `rollouts` until it reaches all edges: a control plane that starts anew tells the same
//! edges the same.

use crate::action::ActionError;
use crate::action::rollout_steps as steps;
use crate::context::Context;
use crate::staging::{Health, Seen, Told, Verdict, decide};
use crate::store::edges;
use crate::store::rollouts::{self, RUNNING, Rollout};
use crate::store::{PgConnection, StoreError, leader};
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use turnpike_config::log::Audience;
use uuid::Uuid;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(250);

/// Between two looks at how edges do, which reads the log of requests.
const HEALTH_EVERY: Duration = Duration::from_secs(2);

/// How edges did when they were last looked at, and of which stage.
#[derive(Debug, Default)]
struct LastLook(Option<(Uuid, i32, Instant, (Health, Health))>);

impl LastLook {
    async fn health(
        &mut self,
        connection: &mut PgConnection,
        rollout: &Rollout,
        audience: &Audience,
        since: DateTime<Utc>,
    ) -> Result<(Health, Health), StoreError> {
        if let Some((id, stage, at, health)) = self.0
            && (id, stage) == (rollout.id, rollout.stage)
            && at.elapsed() < HEALTH_EVERY
        {
            return Ok(health);
        }
        let health = rollouts::health(connection, audience, since).await?;
        self.0 = Some((rollout.id, rollout.stage, Instant::now(), health));
        Ok(health)
    }
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let (mut away, mut last) = (false, LastLook::default());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(EVERY) => {}
        }
        match reconcile(&context, &mut last).await {
            Ok(()) => away = false,
            Err(error) => {
                if !away {
                    warn!(%error, "the rollout under way cannot be looked after; trying again");
                }
                away = true;
            }
        }
    }
}

async fn reconcile(context: &Context, last: &mut LastLook) -> Result<(), ActionError> {
    // Seldom there: one look without the right to do anything is cheap.
    if rollouts::changes_under_way(&mut *context.store.read().await?).await?.is_none() {
        return Ok(());
    }
    let Some(leading) = leader::try_lead(&context.store, leader::ROLLOUT).await? else { return Ok(()) };
    let result = step(context, last).await;
    leading.end().await?;
    result
}

async fn step(context: &Context, last: &mut LastLook) -> Result<(), ActionError> {
    let (rollout, seen) = {
        let mut connection = context.store.read().await?;
        let Some(rollout) = rollouts::under_way(&mut connection).await? else { return Ok(()) };
        let seen = look(context, &mut connection, &rollout, last).await?;
        (rollout, seen)
    };
    let Some(stage) = rollout.present() else { return Ok(()) };
    match decide(stage, &rollout.rules, &seen) {
        Verdict::Halt(reason) => {
            warn!(rollout = %rollout.id, reason, "a rollout does harm; taking it back");
            steps::halt(context, rollout.id, &reason).await
        }
        Verdict::Hold => {
            info!(rollout = %rollout.id, stage = rollout.stage, "every edge of the stage serves by it");
            note(context, Rollout { held_since: Some(Utc::now()), note: None, ..rollout }).await
        }
        Verdict::Wait(what) if rollout.note.as_ref() != Some(&what) => {
            note(context, Rollout { note: Some(what), ..rollout }).await
        }
        Verdict::Advance if rollout.state == RUNNING => steps::advance(context, rollout.id).await,
        Verdict::Wait(_) | Verdict::Advance => Ok(()),
    }
}

/// Writes down how a rollout is, unless somebody was faster.
async fn note(context: &Context, rollout: Rollout) -> Result<(), ActionError> {
    let mut edit = context.feed.edit(steps::AUTHOR).await?;
    let now = rollouts::get(edit.connection(), rollout.id).await?;
    if now.is_some_and(|now| (now.state, now.stage) == (rollout.state.clone(), rollout.stage)) {
        rollouts::update(edit.connection(), &rollout).await?;
    }
    edit.commit().await?;
    Ok(())
}

async fn look(
    context: &Context,
    connection: &mut PgConnection,
    rollout: &Rollout,
    last: &mut LastLook,
) -> Result<Seen, StoreError> {
    let audience = rollout.told();
    let told = edges::connected(connection).await?;
    let told = told.into_iter().filter(|edge| audience.includes(&edge.name, &edge.region));
    let now = Utc::now();
    let told: Vec<Told> = told
        .map(|edge| Told {
            waited_s: now.signed_duration_since(edge.linked_at.max(rollout.told_at)).num_seconds(),
            holds: edge.holds >= rollout.told_version,
            nack: edge.last_nack.filter(|_| edge.nacked_version.is_some_and(|at| at >= rollout.told_version)),
            name: edge.name,
        })
        .collect();
    let health = match rollout.held_since {
        Some(since) => last.health(connection, rollout, &audience, since).await?,
        None => Default::default(),
    };
    Ok(Seen {
        told,
        overtaken: overtaken(context, rollout),
        held_s: rollout.held_since.map(|since| now.signed_duration_since(since).num_seconds()),
        health,
    })
}

/// A change of it that no edge is told apart any more.
fn overtaken(context: &Context, rollout: &Rollout) -> Option<String> {
    let published = context.feed.current();
    // What was staged a moment ago may not have come round yet.
    if published.at().version < u64::try_from(rollout.told_version).unwrap_or(u64::MAX) {
        return None;
    }
    let lost = rollout.changes.iter().find(|change| !published.is_staged(change))?;
    Some(lost.subject().to_string())
}
