//! What an edge must know to serve, as one versioned state.

use crate::change::{Change, Subject};
use crate::records::{KeyRecord, ModelRecord, NodeRecord, OrgRecord};
use crate::route::{RouteId, RouteRecord};
use crate::{CacheKey, KeyDigest, OrgId};
use rpds::RedBlackTreeMapSync;

/// Most single answers that can be purged at once; purging more drops the oldest purges.
pub const MAX_PURGED: usize = 10_000;

/// A map of which a changed copy shares all but the changed path: a new version of a million records costs no more than
/// what changes in it.
pub type Map<K, V> = RedBlackTreeMapSync<K, V>;

/// Everything an edge routes by, at one version. Cloning it is cheap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Position in the deployment's one log of changes; 0 is the empty state.
    pub version: u64,
    /// Organizations by id.
    pub orgs: Map<OrgId, OrgRecord>,
    /// Keys by digest.
    pub keys: Map<KeyDigest, KeyRecord>,
    /// Models by id.
    pub models: Map<String, ModelRecord>,
    /// Nodes by name.
    pub nodes: Map<String, NodeRecord>,
    /// Purged answers with the Unix milliseconds of their purge; at most [`MAX_PURGED`].
    pub purged: Map<CacheKey, u64>,
    /// Routes by name.
    pub routes: Map<RouteId, RouteRecord>,
    /// How many keys each organization has, where it has some; [`Routing::apply`] counts.
    pub owned: Map<OrgId, u64>,
}

impl Routing {
    /// Applies one change; the version is the caller's to set.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::PutOrg(org) => self.orgs.insert_mut(org.id, org),
            Change::DropOrg(id) => drop(self.orgs.remove_mut(&id)),
            Change::PutKey(key) => self.put_key(key),
            Change::DropKey(digest) => self.drop_key(&digest),
            Change::PutModel(model) => self.models.insert_mut(model.id.clone(), model),
            Change::DropModel(id) => drop(self.models.remove_mut(&id)),
            Change::PutNode(node) => self.nodes.insert_mut(node.name.clone(), node),
            Change::DropNode(name) => drop(self.nodes.remove_mut(&name)),
            Change::PurgeAnswer { key, at_ms } => purge(&mut self.purged, key, at_ms),
            Change::PutRoute(route) => self.routes.insert_mut(route.id.clone(), route),
            Change::DropRoute(id) => drop(self.routes.remove_mut(&id)),
        }
    }

    fn put_key(&mut self, key: KeyRecord) {
        self.drop_key(&key.digest);
        let owned = self.owned.get(&key.organization).copied().unwrap_or(0);
        self.owned.insert_mut(key.organization, owned + 1);
        self.keys.insert_mut(key.digest, key);
    }

    fn drop_key(&mut self, digest: &KeyDigest) {
        let Some(organization) = self.keys.get(digest).map(|key| key.organization) else { return };
        self.keys.remove_mut(digest);
        match self.owned.get(&organization) {
            Some(owned) if *owned > 1 => self.owned.insert_mut(organization, owned - 1),
            _ => drop(self.owned.remove_mut(&organization)),
        }
    }

    /// The record of a subject as the change that puts it; `None` if there is none.
    pub fn record(&self, subject: &Subject) -> Option<Change> {
        match subject {
            Subject::Org(id) => self.orgs.get(id).cloned().map(Change::PutOrg),
            Subject::Key(digest) => self.keys.get(digest).cloned().map(Change::PutKey),
            Subject::Model(id) => self.models.get(id).cloned().map(Change::PutModel),
            Subject::Node(name) => self.nodes.get(name).cloned().map(Change::PutNode),
            Subject::Route(id) => self.routes.get(id).cloned().map(Change::PutRoute),
            Subject::Purge(key) => self.purged.get(key).map(|at_ms| Change::PurgeAnswer { key: *key, at_ms: *at_ms }),
        }
    }

    /// The changes that make this state out of nothing: organizations before the keys that refer to them.
    pub fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        let orgs = self.orgs.values().cloned().map(Change::PutOrg);
        let keys = self.keys.values().cloned().map(Change::PutKey);
        let models = self.models.values().cloned().map(Change::PutModel);
        let nodes = self.nodes.values().cloned().map(Change::PutNode);
        let purged = self.purged.iter().map(|(key, at_ms)| Change::PurgeAnswer { key: *key, at_ms: *at_ms });
        let routes = self.routes.values().cloned().map(Change::PutRoute);
        orgs.chain(models).chain(routes).chain(nodes).chain(purged).chain(keys)
    }
}

/// Notes that answers of a key are purged; of more than [`MAX_PURGED`] the oldest is forgotten.
pub fn purge(purged: &mut Map<CacheKey, u64>, key: CacheKey, at_ms: u64) {
    purged.insert_mut(key, at_ms);
    if purged.size() > MAX_PURGED
        && let Some(oldest) = purged.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key)
    {
        purged.remove_mut(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::World as _;
    use crate::records::{Permissions, VersionRecord};
    use crate::route::{RoutePolicy, Target};
    use crate::{CachePolicy, KeyId, ModelLimits, Price, RateLimits};
    use minicbor::Encode;
    use uuid::Uuid;

    fn org() -> OrgRecord {
        OrgRecord {
            id: OrgId(Uuid::new_v4()),
            slug: "acme".to_owned(),
            limits: RateLimits::default(),
            model_limits: ModelLimits::default(),
            budget: None,
            cache_generation: 0,
            prepaid: None,
        }
    }

    fn key(organization: OrgId, digest: KeyDigest) -> KeyRecord {
        KeyRecord {
            id: KeyId(Uuid::new_v4()),
            organization,
            digest,
            permissions: Permissions::INFERENCE,
            limits: RateLimits::default(),
            models: None,
            active: true,
            expires_at_ms: None,
            model_limits: ModelLimits::default(),
        }
    }

    #[test]
    fn permissions_have_names_and_refuse_unknown_ones() {
        let both = Permissions::from_names(&["inference", "models.read"]);
        assert!(both.is_ok_and(|p| p.allows(Permissions::INFERENCE) && !p.allows(Permissions::FILES)));
        assert_eq!(Permissions::from_names(&["inference", "root"]), Err("root".to_owned()));
        assert_eq!(Permissions::FINE_TUNING.name(), "fine_tuning");
    }

    #[test]
    fn faults_name_dangling_records() {
        let org = org();
        let mut routing = Routing::default();
        routing.apply(Change::PutOrg(org.clone()));
        routing.apply(Change::PutKey(key(org.id, KeyDigest::of("a"))));
        assert_eq!(routing.faults(), Vec::<String>::new());

        assert_eq!(routing.fault(&Change::DropOrg(org.id)), None, "it is there");
        routing.apply(Change::DropOrg(org.id));
        assert!(routing.faults().iter().any(|f| f.contains("does not exist")));
    }

    #[test]
    fn routes_lead_somewhere() {
        let model = |versions: &[&str]| {
            let version = |name: &&str| VersionRecord { version: (*name).to_owned(), is_default: false, active: true };
            Change::PutModel(ModelRecord {
                id: "m".to_owned(),
                provider: "acme".to_owned(),
                created_s: 0,
                context_length: 1,
                max_output_tokens: None,
                price: Price::default(),
                active: true,
                public: true,
                versions: versions.iter().map(version).collect(),
                cache: CachePolicy::default(),
                prices: Vec::new(),
            })
        };
        let to = |version: &str| Target { model: "m".to_owned(), version: Some(version.to_owned()), weight: 1 };
        let policy = RoutePolicy { targets: vec![to("v1"), to("v2")], ..RoutePolicy::default() };
        let id = RouteId { name: "alias".to_owned(), organization: None };
        let route = Change::PutRoute(RouteRecord { id, policy });
        let mut routing = Routing::default();
        let mut apply = |change: Change| {
            routing.apply(change.clone());
            routing.fault(&change).unwrap_or_default()
        };
        assert_eq!(apply(model(&["v1"])), "");
        assert!(apply(route.clone()).contains("targets[1]: model m has no version v2"));
        assert_eq!(apply(model(&["v1", "v2"])), "");
        assert_eq!(apply(route), "");
        assert!(apply(model(&["v2"])).contains("targets[0]"));
        assert!(apply(Change::DropModel("m".to_owned())).contains("route alias leads to it"));
    }

    #[test]
    fn a_limit_of_nothing_is_a_fault_wherever_it_stands() {
        let zero = RateLimits { concurrent_requests: Some(0), ..RateLimits::default() };
        let mut routing = Routing::default();
        let mut record = org();
        record.model_limits.insert("m".to_owned(), zero);
        routing.apply(Change::PutOrg(record.clone()));
        assert!(routing.faults().iter().any(|f| f.contains("organization") && f.contains("admits nothing")));
        routing.apply(Change::PutOrg(org()));
        let mut record = key(record.id, KeyDigest::of("a"));
        record.limits = zero;
        routing.apply(Change::PutKey(record));
        assert!(routing.faults().iter().any(|f| f.starts_with("key ") && f.contains("admits nothing")));
    }

    #[test]
    fn purges_are_kept_up_to_a_bound_and_the_oldest_go_first() {
        let mut routing = Routing::default();
        for at in 0..=MAX_PURGED as u64 {
            let key = CacheKey::of(&at.to_be_bytes());
            routing.apply(Change::PurgeAnswer { key, at_ms: at });
        }
        assert_eq!(routing.purged.size(), MAX_PURGED);
        assert!(!routing.purged.contains_key(&CacheKey::of(&0_u64.to_be_bytes())));
    }

    /// A routing file of an older edge has none of the newer fields.
    #[test]
    fn records_without_the_newer_fields_are_read() {
        #[derive(Encode)]
        struct OldOrg {
            #[n(0)]
            id: OrgId,
            #[n(1)]
            slug: String,
        }
        let new = org();
        let mut bytes = Vec::new();
        let old = OldOrg { id: new.id, slug: new.slug.clone() };
        assert!(minicbor::encode(&old, &mut bytes).is_ok());
        assert_eq!(minicbor::decode::<OrgRecord>(&bytes).ok(), Some(new));
    }
}
