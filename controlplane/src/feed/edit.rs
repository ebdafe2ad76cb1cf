//! A change in the making.

use super::{Feed, FeedError, recent};
use crate::store::config_log::{self, Head, NewEntry};
use crate::store::rollouts;
use crate::store::{PgConnection, StoreError, Tx};
use std::collections::HashSet;
use turnpike_config::change::net;
use turnpike_config::log::{Audience, Entry};
use turnpike_config::push::MAX_DELTA;
use turnpike_config::{Change, Routing, World as _};
use uuid::Uuid;

/// Rows and log in one transaction, rolled back unless committed.
pub(crate) struct Edit<'f> {
    feed: &'f Feed,
    tx: Tx,
    head: Head,
    entries: Vec<Entry>,
    author: String,
    reason: Option<String>,
    rollout: Option<Uuid>,
}

impl<'f> Edit<'f> {
    pub(super) const fn new(feed: &'f Feed, tx: Tx, head: Head, author: String, reason: Option<String>) -> Self {
        Self { feed, tx, head, entries: Vec::new(), author, reason, rollout: None }
    }

    /// It belongs to a rollout, which may change what it has staged.
    pub(crate) const fn for_rollout(&mut self, id: Uuid) {
        self.rollout = Some(id);
    }

    /// The version that the next change will have.
    pub(crate) const fn next_version(&self) -> u64 {
        self.head.at.version + self.entries.len() as u64 + 1
    }

    /// The version that edges will know once this is committed.
    pub(crate) fn version_after(&self) -> i64 {
        i64::try_from(self.head.at.version + self.entries.len() as u64).unwrap_or(i64::MAX)
    }

    /// The connection inside the transaction.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Notes what edges must be told.
    pub(crate) fn push(&mut self, change: Change) {
        self.entries.push(Entry { change, audience: None });
    }

    /// Notes what some edges must be told.
    pub(crate) fn push_to(&mut self, audience: Audience, change: Change) {
        self.entries.push(Entry { change, audience: Some(audience) });
    }

    /// Says why, for whoever reads the log.
    pub(crate) fn because(&mut self, reason: impl Into<String>) {
        self.reason = Some(reason.into());
    }

    /// What edges are to be told so far.
    pub(crate) fn changes(&self) -> impl Iterator<Item = &Change> {
        self.entries.iter().map(|entry| &entry.change)
    }

    /// Checks the changes as a commit would, and makes none of them. Returns the present version.
    pub(crate) async fn check(mut self) -> Result<u64, FeedError> {
        self.validated().await?;
        self.tx.rollback().await.map_err(StoreError::from)?;
        Ok(self.head.at.version)
    }

    /// Commits the rows and their changes, or neither. Returns the version at which edges will know.
    pub(crate) async fn commit(mut self) -> Result<u64, FeedError> {
        if self.entries.is_empty() {
            self.tx.commit().await.map_err(StoreError::from)?;
            return Ok(self.head.at.version);
        }
        let entries = self.validated().await?;
        let words = (self.author.as_str(), self.reason.as_deref());
        let at = config_log::append(&mut self.tx, self.head.at, &entries, words).await?;
        self.tx.commit().await.map_err(StoreError::from)?;
        self.feed.nudge();
        Ok(at.version)
    }

    /// The entries with what was before them. Refuses changes that edges could not serve by; faults that were there before
    /// do not stand in the way of a repair.
    async fn validated(&mut self) -> Result<Vec<NewEntry>, FeedError> {
        self.respect_rollouts().await?;
        let mut routing = self.routing().await?;
        let mut entries = Vec::with_capacity(self.entries.len());
        // What is for some is checked as if it were for all.
        for entry in std::mem::take(&mut self.entries) {
            let before = routing.record(&entry.change.subject());
            routing.apply(entry.change.clone());
            entries.push(NewEntry { entry, before });
        }
        let net = net(entries.iter().map(|new| &new.entry.change));
        let faults: Vec<String> = net.into_iter().filter_map(|change| routing.fault(change)).collect();
        if faults.is_empty() { Ok(entries) } else { Err(FeedError::Faults(faults)) }
    }

    /// Refuses to change for all what some are told something else of, unless it cannot wait or is told by the way.
    async fn respect_rollouts(&mut self) -> Result<(), FeedError> {
        if self.author == config_log::BILLING {
            return Ok(());
        }
        let other = rollouts::changes_under_way(&mut self.tx).await?;
        let Some((_, changes)) = other.filter(|(id, _)| Some(*id) != self.rollout) else { return Ok(()) };
        let staged: HashSet<_> = changes.iter().map(Change::subject).collect();
        let touched = self.entries.iter().filter(|entry| !entry.change.is_urgent());
        match touched.map(|entry| entry.change.subject()).find(|subject| staged.contains(subject)) {
            Some(subject) => Err(FeedError::UnderRollout(subject.to_string())),
            None => Ok(()),
        }
    }

    /// What all edges are told before this change.
    pub(crate) async fn routing(&mut self) -> Result<Routing, FeedError> {
        let current = self.feed.current();
        let mut routing = current.compiled.routing.clone();
        let mut at = current.at().version;
        while at < self.head.at.version {
            let page = config_log::since(&mut self.tx, at, MAX_DELTA).await?;
            let Some(last) = page.last() else { break };
            at = last.at.version;
            let for_all = page.into_iter().filter(|logged| logged.entry.audience.is_none()).collect();
            recent::changes(for_all).for_each(|change| routing.apply(change));
        }
        Ok(routing)
    }
}
