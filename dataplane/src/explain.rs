//! What this edge would do with a request, and why: the same steps that a request takes, without taking anything.

use crate::admit::{find_key, find_model};
use crate::auth;
use crate::balance::Preference;
use crate::edge::Edge;
use crate::limit::{LimitState, Within, states};
use crate::live::{Branch, Deployment, Key, Model, Route};
use crate::plan::{Asking, cache_policy};
use crate::reject::Reject;
use crate::request::unix_ms;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use turnpike_config::route::Sticky;
use turnpike_config::{CachePolicy, KeyDigest, Permissions};
use uuid::Uuid;

/// A request that might come.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    /// Hashed at once, and neither kept nor shown.
    key: String,
    model: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// What would be done with it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Explanation {
    edge: String,
    region: String,
    /// Of the routing.
    version: u64,
    /// Null if nobody knows it.
    key: Option<Value>,
    model: String,
    /// Null if the name has none.
    route: Option<Value>,
    targets: Vec<Way>,
    fallbacks: Vec<Way>,
    /// What is asked, one after the other: the first unless it fails.
    order: Vec<String>,
    shadow: Option<Value>,
    cache: Option<Value>,
    timeouts: Option<Value>,
    retries: Option<Value>,
    limits: Vec<LimitState>,
    /// What the client is told if no node is asked.
    refused: Option<Value>,
    /// In words, step by step.
    why: Vec<String>,
}

/// A model's version that may answer.
#[derive(Debug, Serialize)]
struct Way {
    model: String,
    version: Option<String>,
    /// Null for fallbacks.
    weight: Option<u32>,
    /// Ready nodes in the regions that may answer, and those among them that rest after failures.
    nodes_ready: usize,
    nodes_resting: usize,
    /// Ready nodes by region, in the order of preference.
    regions: Vec<(String, usize)>,
    /// Empty if it can answer.
    trouble: Option<&'static str>,
}

impl Explanation {
    /// Refused if no request can be like that.
    pub(crate) async fn of(edge: &Edge, question: Question) -> Result<Self, String> {
        let Question { key, model, headers } = question;
        let headers = headers_of(&headers)?;
        let digest = KeyDigest::of(&key);
        drop(key);
        let snapshot = edge.snapshot.load_full();
        let mut it = Self {
            edge: edge.name.clone(),
            region: edge.settings.region.clone(),
            version: snapshot.at.version,
            model,
            ..Self::default()
        };
        let Some(key) = find_key(edge, &snapshot, digest).await else {
            it.refuse(&Reject::UnknownKey { shown: "***".to_owned() });
            it.why.push("no such key is known at this edge".to_owned());
            return Ok(it);
        };
        it.take_key(&key);
        if let Err(reject) = auth::accept(&key, unix_ms()).and_then(|()| auth::authorize(&key, Permissions::INFERENCE))
        {
            it.refuse(&reject);
            return Ok(it);
        }
        match snapshot.route(&it.model, &key.record.organization) {
            Some(route) => it.by_route(edge, &key, route, &headers),
            None => match find_model(edge, &snapshot, &it.model).await {
                Ok(model) => it.by_model(edge, &key, &model),
                Err(reject) => {
                    it.why.push(format!("there is neither a route nor a switched-on model called {}", it.model));
                    it.refuse(&reject);
                }
            },
        }
        Ok(it)
    }

    fn take_key(&mut self, key: &Key) {
        let (record, org) = (&key.record, &key.org.record);
        self.key = Some(json!({
            "id": record.id, "organization": {"id": org.id, "slug": org.slug}, "active": record.active,
            "expires_at_ms": record.expires_at_ms, "models": record.models,
            "may_infer": record.permissions.allows(Permissions::INFERENCE),
        }));
        let state = if record.active { "active" } else { "disabled" };
        self.why.push(format!("the key is {} of organization {} ({}), {state}", record.id, org.slug, org.id));
    }

    fn refuse(&mut self, reject: &Reject) {
        let answer = reject.answer();
        self.why.push(format!("refused with {}: {}", answer.status.as_u16(), answer.message));
        self.refused = Some(json!({
            "status": answer.status.as_u16(), "code": answer.code, "message": answer.message,
            "retry_after_s": answer.retry_after_s,
        }));
    }

    fn by_model(&mut self, edge: &Edge, key: &Key, model: &Model) {
        let preference = Preference { own: &edge.settings.region, regions: None };
        let version = model.default.as_ref().map(|default| default.version.to_string());
        let way = Way::new(edge, &preference, &model.record.id, version, None, model.default.as_deref());
        self.why.push(format!("no route has this name, so it is the model's default version: {}", way.name()));
        if !key.may_use(model) {
            self.refuse(&Reject::ModelNotAllowed { model: model.record.id.clone() });
        } else if model.default.is_none() {
            self.refuse(&Reject::NoVersion { model: model.record.id.clone() });
        } else if way.nodes_ready == 0 {
            self.refuse(&Reject::NoNode { model: model.record.id.clone() });
        } else {
            self.order.push(way.name());
        }
        self.targets.push(way);
        self.take_cache(model.record.cache, "model");
        self.take_limits(edge, key, model);
    }

    fn by_route(&mut self, edge: &Edge, key: &Key, route: &Route, headers: &HeaderMap) {
        let (id, policy) = (&route.record.id, &route.record.policy);
        let whose = if id.organization.is_some() { "this organization's own" } else { "everybody's" };
        self.why.push(format!("there is a route of this name, {whose}"));
        self.route = Some(json!({
            "name": id.name, "organization_id": id.organization, "sticky": policy.sticky, "regions": policy.regions,
            "maintenance": policy.maintenance,
        }));
        let asking = Asking { key, headers, random: Uuid::new_v4().as_u64_pair().1, region: &edge.settings.region };
        let preference = Preference { own: &edge.settings.region, regions: Some(&policy.regions) };
        let way = |branch: &Branch, weight| {
            let mut way = Way::of_branch(edge, &preference, branch, weight);
            if !key.may_reach(route, &branch.model) {
                way.trouble = Some("the key may not use this model");
            }
            way
        };
        self.targets = route.targets.iter().map(|target| way(target, Some(target.weight))).collect();
        self.fallbacks = route.fallbacks.iter().map(|to| way(to, None)).collect();
        self.why.push(match &policy.sticky {
            Sticky::Request => "each request is drawn anew: this is one draw of many".to_owned(),
            Sticky::Key => "this key always draws the same".to_owned(),
            Sticky::Header(name) if headers.contains_key(name) => format!("this value of {name} always draws the same"),
            Sticky::Header(name) => format!("without the header {name} each request is drawn anew: this is one draw"),
        });
        let stops = asking.stops(route);
        match asking.refusal(route, &stops) {
            Some(refusal) => self.refuse(&refusal),
            None if stops.iter().all(|stop| preference.ready(&stop.deployment).next().is_none()) => {
                self.refuse(&Reject::NoNode { model: id.name.clone() });
            }
            None => {
                self.order =
                    stops.iter().map(|stop| format!("{}@{}", stop.model.record.id, stop.deployment.version)).collect();
                self.why.push(format!("it would be answered by {}, unless that fails", self.order[0]));
            }
        }
        self.shadow = policy.shadow.as_ref().map(|shadow| json!({"to": shadow.to, "permille": shadow.permille}));
        self.timeouts = Some(json!(policy.timeouts));
        self.retries = Some(json!({
            "attempts": policy.retries.attempts, "budget_permille": policy.retries.budget_permille,
            "left": route.live.left(&policy.retries),
        }));
        let Some(first) = stops.first() else { return };
        let from = if policy.cache.is_some() { "route" } else { "model" };
        self.take_cache(cache_policy(Some(route), first.model.record.cache), from);
        self.take_limits(edge, key, &first.model);
    }

    fn take_cache(&mut self, policy: CachePolicy, from: &str) {
        let CachePolicy { enabled, ttl_s, public, price_permille, .. } = policy;
        self.cache = Some(json!({
            "enabled": enabled, "ttl_s": ttl_s, "public": public, "price_permille": price_permille, "from": from,
        }));
    }

    fn take_limits(&mut self, edge: &Edge, key: &Key, model: &Model) {
        let within = Within { model: &model.record.id, key: &key.limits, organization: &key.org.limits };
        self.limits = states(&within, edge.now_ns());
    }
}

/// Headers as a request has them. A value that cannot be one is not repeated: it may be a secret.
fn headers_of(said: &BTreeMap<String, String>) -> Result<HeaderMap, String> {
    let header = |(name, value): (&String, &String)| {
        let key =
            HeaderName::try_from(name).map_err(|_| format!("headers: {name:?} cannot be the name of a header"))?;
        let value = HeaderValue::try_from(value).map_err(|_| format!("headers: the value of {name} cannot be one"))?;
        Ok((key, value))
    };
    said.iter().map(header).collect()
}

impl Way {
    fn of_branch(edge: &Edge, preference: &Preference<'_>, branch: &Branch, weight: Option<u32>) -> Self {
        let deployment = branch.to.as_ref().map(|to| &*to.deployment);
        let default = || deployment.map(|deployment| deployment.version.to_string());
        let version = branch.version.clone().or_else(default);
        Self::new(edge, preference, &branch.model, version, weight, deployment)
    }

    fn new(
        edge: &Edge,
        preference: &Preference<'_>,
        model: &str,
        version: Option<String>,
        weight: Option<u32>,
        deployment: Option<&Deployment>,
    ) -> Self {
        let ready: Vec<_> = deployment.into_iter().flat_map(|deployment| preference.ready(deployment)).collect();
        let mut regions: BTreeMap<(usize, &str), usize> = BTreeMap::new();
        for node in &ready {
            let region = node.record.region.as_str();
            *regions.entry((preference.rank(region).unwrap_or(usize::MAX), region)).or_default() += 1;
        }
        let trouble = match deployment {
            None => Some("the model is switched off, or the version is not active"),
            Some(_) if ready.is_empty() => Some("no ready node in a region that may answer"),
            Some(_) if weight == Some(0) => Some("its weight is 0"),
            Some(_) => None,
        };
        Self {
            model: model.to_owned(),
            version,
            weight,
            nodes_ready: ready.len(),
            nodes_resting: ready.iter().filter(|node| node.live.is_resting(edge.now_ns())).count(),
            regions: regions.into_iter().map(|((_, region), count)| (region.to_owned(), count)).collect(),
            trouble,
        }
    }

    fn name(&self) -> String {
        format!("{}@{}", self.model, self.version.as_deref().unwrap_or("?"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_no_request_can_have_are_named() {
        let of = |name: &str, value: &str| headers_of(&[(name.to_owned(), value.to_owned())].into());
        assert_eq!(of("X-User", "ada").unwrap()["x-user"], "ada");
        assert!(of("x user", "ada").is_err_and(|reason| reason.contains("\"x user\"")));
        assert!(of("x-user", "a\nb").is_err_and(|reason| reason.contains("x-user") && !reason.contains("a\nb")));
    }
}
