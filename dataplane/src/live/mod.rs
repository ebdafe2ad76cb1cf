//! What the edge serves by: an immutable index of the state, and the live counters that outlast it.
//!
//! A request pins one [`Snapshot`] and sees one consistent world. Counters (limits, outstanding work) are shared
//! between successive snapshots, so that a push never resets a limit; and so is everything that a push does not change,
//! so that one key more costs the same among ten as among a million.

mod key;
mod model;
mod next;
mod node;
mod org;
mod route;
mod seats;
mod snapshot;

pub(crate) use key::Key;
pub(crate) use model::{Deployment, Model};
pub(crate) use next::Next;
pub(crate) use node::{Node, Resolve, literal, resolve};
pub(crate) use route::{Branch, Destination, Route};
pub(crate) use snapshot::Snapshot;

#[cfg(any(test, feature = "bench"))]
pub(crate) mod fixtures {
    //! A small deployment for the unit tests of the stages.

    use super::*;
    use crate::image::{Image, State};
    use std::net::SocketAddr;
    use std::sync::Arc;
    use turnpike_config::log::{Hash, Position};
    use turnpike_config::records::{Served, VersionRecord};
    use turnpike_config::{
        CachePolicy, Change, KeyDigest, KeyId, KeyRecord, ModelLimits, ModelRecord, NodeRecord, NodeState, NodeUrl,
        OrgId, OrgRecord, Permissions, Price, RateLimits, Routing,
    };
    use uuid::Uuid;

    pub(crate) const KEY: &str = "sk-tp-fixture";

    /// One organization, one key for everything, model `m` at version `v1` on nodes `a` and `b`.
    pub(crate) fn routing() -> Routing {
        let organization = OrgId(Uuid::from_u128(1));
        let mut routing = Routing::default();
        let served = vec![Served { model: "m".into(), version: "v1".into() }];
        let node = |name: &str, port| {
            Change::PutNode(NodeRecord {
                name: name.into(),
                region: "r".into(),
                url: format!("http://127.0.0.1:{port}"),
                state: NodeState::Ready,
                serves: served.clone(),
                slots: 4,
            })
        };
        for change in [
            Change::PutOrg(OrgRecord {
                id: organization,
                slug: "acme".into(),
                limits: RateLimits::default(),
                model_limits: ModelLimits::default(),
                budget: None,
                prepaid: None,
                cache_generation: 0,
            }),
            Change::PutKey(KeyRecord {
                id: KeyId(Uuid::from_u128(2)),
                organization,
                digest: KeyDigest::of(KEY),
                permissions: Permissions(u16::MAX),
                limits: RateLimits {
                    requests_per_minute: Some(2),
                    tokens_per_minute: Some(1000),
                    concurrent_requests: None,
                },
                models: None,
                active: true,
                expires_at_ms: None,
                model_limits: ModelLimits::default(),
            }),
            Change::PutModel(ModelRecord {
                id: "m".into(),
                provider: "acme".into(),
                created_s: 0,
                context_length: 4096,
                max_output_tokens: Some(256),
                price: Price::default(),
                prices: Vec::new(),
                active: true,
                public: true,
                versions: vec![VersionRecord { version: "v1".into(), is_default: true, active: true }],
                cache: CachePolicy::default(),
            }),
            node("a", 1),
            node("b", 2),
        ] {
            routing.apply(change);
        }
        routing.version = 1;
        routing
    }

    pub(crate) fn loopback(url: &NodeUrl) -> Option<SocketAddr> {
        format!("{}:{}", url.host, url.port).parse().ok()
    }

    /// Everything of a routing, in place of what a snapshot has.
    pub(crate) fn after(before: &Snapshot, routing: &Routing) -> Result<Next, String> {
        let mut image = Image::default();
        routing.changes().try_for_each(|change| image.build(change))?;
        let State { records, keys, .. } = image.finish();
        before.replaced(&records, Arc::new(keys), at(routing.version), &loopback)
    }

    /// A routing, compiled.
    #[cfg(test)]
    pub(crate) fn compiled(routing: &Routing) -> Snapshot {
        after(&Snapshot::default(), routing).unwrap().snapshot
    }

    #[cfg(test)]
    pub(crate) fn snapshot() -> Snapshot {
        compiled(&routing())
    }

    /// A position that is like no other.
    pub(crate) fn at(version: u64) -> Position {
        Position { version, chain: Hash::of(&version.to_be_bytes()) }
    }
}

#[cfg(test)]
mod tests;
