//! Routes: where requests for a name go, beyond the default version of the model that is called so.
//!
//! A route may have the name of a model, as for a canary of it, or one of its own, which makes it an alias. One that is an
//! organization's stands before the one that is everybody's.

use crate::{CachePolicy, OrgId};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Most targets, and most fallbacks.
pub const MAX_TARGETS: usize = 16;
/// Most regions that a route prefers.
pub const MAX_REGIONS: usize = 16;
/// Most nodes that one request is tried on.
pub const MAX_ATTEMPTS: u8 = 8;
/// Longest timeout, milliseconds.
pub const MAX_TIMEOUT_MS: u32 = 3_600_000;

/// What a route is called, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct RouteId {
    /// The name that clients send.
    #[n(0)]
    pub name: String,
    /// Whose keys it is for; `None` is everybody's.
    #[n(1)]
    pub organization: Option<OrgId>,
}

impl std::fmt::Display for RouteId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.organization {
            Some(organization) => write!(f, "{} of organization {organization}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A route as the edges know it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct RouteRecord {
    /// Identity.
    #[n(0)]
    pub id: RouteId,
    /// How.
    #[n(1)]
    pub policy: RoutePolicy,
}

/// Where requests go. The JSON form is part of the admin API and of `model_routes.policy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutePolicy {
    /// Where to, by weight; 1 to [`MAX_TARGETS`].
    #[n(0)]
    pub targets: Vec<Target>,
    /// What keeps to a target.
    #[n(1)]
    #[cbor(default)]
    #[serde(default)]
    pub sticky: Sticky,
    /// Where to, in this order, if no target can answer; at most [`MAX_TARGETS`].
    #[n(2)]
    #[cbor(default)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<Destination>,
    /// Which regions' nodes.
    #[n(3)]
    #[cbor(default)]
    #[serde(default)]
    pub regions: Regions,
    /// Requests that are also sent elsewhere, to see how it does.
    #[n(4)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// How long a node may take.
    #[n(5)]
    #[cbor(default)]
    #[serde(default)]
    pub timeouts: Timeouts,
    /// How often another node is tried.
    #[n(6)]
    #[cbor(default)]
    #[serde(default)]
    pub retries: Retries,
    /// Whether and how answers are cached; `None` as the model says.
    #[n(7)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CachePolicy>,
    /// Nothing is answered for the time being.
    #[n(8)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Maintenance>,
}

/// A version of a model.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// Model id.
    #[n(0)]
    pub model: String,
    /// Version name; `None` is the model's default.
    #[n(1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// A version of a model with its part of the requests.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Model id.
    #[n(0)]
    pub model: String,
    /// Version name; `None` is the model's default.
    #[n(1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its part, against the sum of all weights: 1 and 99 make 1 %. 0 takes nothing.
    #[n(2)]
    pub weight: u32,
}

/// What keeps to the target that it once got. Changing a target's weight moves only as many as it must.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sticky {
    /// Nothing: each request is drawn anew.
    #[default]
    #[n(0)]
    Request,
    /// An API key.
    #[n(1)]
    Key,
    /// A value of this request header, such as a user or a conversation; requests without it are drawn anew.
    #[n(2)]
    Header(#[n(0)] String),
}

/// Which regions' nodes answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regions {
    /// The first of these that has a node to answer; none is the edge's own region.
    #[n(0)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefer: Vec<String>,
    /// Whether any other region answers if those have none.
    #[n(1)]
    #[serde(default = "yes")]
    pub failover: bool,
}

const fn yes() -> bool {
    true
}

impl Default for Regions {
    fn default() -> Self {
        Self { prefer: Vec::new(), failover: true }
    }
}

/// Requests that are also sent elsewhere, if a node is asked at all. Answers are dropped, and metered apart: nobody pays
/// for them.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shadow {
    /// Where to.
    #[n(0)]
    pub to: Destination,
    /// How many of a thousand.
    #[n(1)]
    pub permille: u16,
}

/// How long a node may take; `None` is as the edge's settings say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// Until the first byte of its answer, milliseconds, 1 to [`MAX_TIMEOUT_MS`]. Another node is tried then, though the
    /// first may still be at work for a moment.
    #[n(0)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<u32>,
    /// From when a node is first asked until the last byte, milliseconds, 1 to [`MAX_TIMEOUT_MS`].
    #[n(1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<u32>,
}

/// How often another node is tried, as long as nothing has reached the client; `None` is as the edge's settings say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retries {
    /// Nodes that one request is tried on, 1 to [`MAX_ATTEMPTS`].
    #[n(0)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u8>,
    /// Retries that the route may add to a thousand requests: what is broken for all is not made worse.
    #[n(1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_permille: Option<u16>,
}

/// What clients are told instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Maintenance {
    /// Shown to clients.
    #[n(0)]
    pub message: String,
    /// `Retry-After`, seconds.
    #[n(1)]
    #[serde(default = "a_minute")]
    pub retry_after_s: u32,
}

const fn a_minute() -> u32 {
    60
}

impl RoutePolicy {
    /// What cannot be right, whatever models there are: a dotted path and a reason each.
    pub fn mistakes(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut require = |holds: bool, path: &str, reason: &str| {
            if !holds {
                found.push((path.to_owned(), reason.to_owned()));
            }
        };
        let sum: u64 = self.targets.iter().map(|target| u64::from(target.weight)).sum();
        require((1..=MAX_TARGETS).contains(&self.targets.len()), "targets", "expected 1 to 16 targets");
        require(sum > 0, "targets", "expected a weight above 0: nothing would be answered");
        require(u32::try_from(sum).is_ok(), "targets", "expected weights with a sum below 2^32");
        let same = |a: &Target, b: &Target| (&a.model, &a.version) == (&b.model, &b.version);
        for (index, target) in self.targets.iter().enumerate() {
            let is_new = !self.targets.iter().take(index).any(|before| same(before, target));
            require(is_new, &format!("targets[{index}]"), "it is there twice; add the weights up");
        }
        require(self.fallbacks.len() <= MAX_TARGETS, "fallbacks", "expected at most 16 fallbacks");
        if let Sticky::Header(name) = &self.sticky {
            let clean = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
            let is_header = (1..=64).contains(&name.len()) && name.bytes().all(clean);
            require(is_header, "sticky.header", "expected a header name of 1 to 64 letters, digits, - and _");
        }
        require(self.regions.prefer.len() <= MAX_REGIONS, "regions.prefer", "expected at most 16 regions");
        let permille = 1..=1000;
        if let Some(shadow) = &self.shadow {
            require(permille.contains(&shadow.permille), "shadow.permille", "expected 1 to 1000");
        }
        let timeouts = [("first_byte_ms", self.timeouts.first_byte_ms), ("total_ms", self.timeouts.total_ms)];
        for (name, timeout) in timeouts {
            let fits = timeout.is_none_or(|ms| (1..=MAX_TIMEOUT_MS).contains(&ms));
            require(fits, &format!("timeouts.{name}"), "expected 1 to 3600000 milliseconds");
        }
        let attempts = self.retries.attempts.is_none_or(|attempts| (1..=MAX_ATTEMPTS).contains(&attempts));
        require(attempts, "retries.attempts", "expected 1 to 8");
        let budget = self.retries.budget_permille.is_none_or(|budget| budget <= 1000);
        require(budget, "retries.budget_permille", "expected 0 to 1000");
        if let Some(maintenance) = &self.maintenance {
            let told = (1..=500).contains(&maintenance.message.chars().count());
            require(told, "maintenance.message", "expected 1 to 500 characters for clients to read");
            let patience = (1..=86_400).contains(&maintenance.retry_after_s);
            require(patience, "maintenance.retry_after_s", "expected 1 to 86400 seconds");
        }
        found
    }

    /// Every model and version that it names, with the dotted path.
    pub fn destinations(&self) -> impl Iterator<Item = (String, &str, Option<&str>)> {
        let targets = self.targets.iter().enumerate();
        let targets =
            targets.map(|(index, to)| (format!("targets[{index}]"), to.model.as_str(), to.version.as_deref()));
        let fallbacks = self.fallbacks.iter().enumerate();
        let fallbacks =
            fallbacks.map(|(index, to)| (format!("fallbacks[{index}]"), to.model.as_str(), to.version.as_deref()));
        let shadow = self
            .shadow
            .iter()
            .map(|shadow| ("shadow.to".to_owned(), shadow.to.model.as_str(), shadow.to.version.as_deref()));
        targets.chain(fallbacks).chain(shadow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(model: &str, weight: u32) -> Target {
        Target { model: model.to_owned(), version: None, weight }
    }

    #[test]
    fn a_policy_is_read_as_an_operator_writes_it() {
        let text = r#"{"targets": [{"model": "m", "version": "v1", "weight": 99}, {"model": "m", "version": "v2", "weight": 1}],
            "sticky": {"header": "x-user"}, "fallbacks": [{"model": "small"}], "regions": {"prefer": ["eu"]},
            "shadow": {"to": {"model": "next"}, "permille": 10}, "timeouts": {"first_byte_ms": 2000}}"#;
        let policy: RoutePolicy = serde_json::from_str(text).unwrap();
        assert_eq!(policy.mistakes(), []);
        assert!(policy.regions.failover);
        assert_eq!(policy.sticky, Sticky::Header("x-user".to_owned()));
        let named: Vec<_> = policy.destinations().collect();
        assert_eq!(named.len(), 4);
        assert_eq!(named[3], ("shadow.to".to_owned(), "next", None));
        assert!(serde_json::from_str::<RoutePolicy>(r#"{"targets": [], "stciky": "key"}"#).is_err());
    }

    #[test]
    fn mistakes_are_all_named() {
        let policy = RoutePolicy {
            targets: vec![target("m", 0), target("m", 0)],
            sticky: Sticky::Header("a b".to_owned()),
            shadow: Some(Shadow { to: Destination { model: "m".to_owned(), version: None }, permille: 0 }),
            timeouts: Timeouts { first_byte_ms: Some(0), total_ms: None },
            retries: Retries { attempts: Some(9), budget_permille: Some(1001) },
            maintenance: Some(Maintenance { message: String::new(), retry_after_s: 0 }),
            ..RoutePolicy::default()
        };
        let paths: Vec<_> = policy.mistakes().into_iter().map(|(path, _)| path).collect();
        assert_eq!(
            paths,
            [
                "targets",
                "targets[1]",
                "sticky.header",
                "shadow.permille",
                "timeouts.first_byte_ms",
                "retries.attempts",
                "retries.budget_permille",
                "maintenance.message",
                "maintenance.retry_after_s"
            ]
        );
    }
}
