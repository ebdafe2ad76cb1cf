//! Turnpike's edge with everything on: keys, limits in a real Redis, the cache, balancing, and metering with its journal and
//! a control plane that takes the usage.

use super::UNKNOWN_KEY;
use crate::compare::scenario::Kind;
use crate::deployment::{Deployment, EdgePlane};
use crate::engine::MODELS;
use crate::program::{Cost, Program};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use turnpike_config::link::Role;
use turnpike_parts::redis::Redis;

/// Answers that the edge keeps in memory, bytes: few, so that requests which are all different are looked up in vain.
const CACHE_BYTES: u32 = 1 << 20;

/// The edge, its deployment, and the engines that are its nodes.
pub(in crate::compare) struct Edge {
    pub(in crate::compare) engines: Vec<SocketAddr>,
    plane: EdgePlane,
    key: String,
    limited_key: String,
    // In the order in which they may go.
    _engines: Program,
    deployment: Deployment,
    _redis: Redis,
}

impl Edge {
    /// Starts all of it.
    pub(in crate::compare) async fn start(turnpike: PathBuf, engines: Vec<SocketAddr>) -> anyhow::Result<Self> {
        let redis = tokio::task::spawn_blocking(Redis::start_temporary).await??;
        let deployment = Deployment::start(turnpike).await?;
        for model in &MODELS {
            deployment.add_model(model.name).await?;
        }
        let limits = json!({"requests_per_minute": u32::MAX, "tokens_per_minute": u32::MAX});
        let key = deployment.make_key_with(&json!({"rate_limits": limits})).await?;
        let limited_key = deployment.make_key_with(&json!({"rate_limits": {"requests_per_minute": 1}})).await?;
        for number in 1..=engines.len() {
            deployment.certify(Role::Node, &format!("engine-{number}"))?;
        }
        let mut command = vec![std::env::current_exe()?.into(), "engine".into(), "--control".into()];
        command.push(deployment.link().to_string().into());
        command.extend(["--certs".into(), deployment.directory().into()]);
        for engine in &engines {
            command.extend(["--listen".into(), engine.to_string().into()]);
        }
        let program = Program::start("engines", command, deployment.directory())?;
        deployment.until_nodes_are_ready(engines.len()).await?;
        // On one machine with all the load, Redis may be late without being away.
        let settings =
            format!("redis.slow = \"500ms\"\nredis.url = \"{}\"\ncache.max_bytes = {CACHE_BYTES}\n", redis.url());
        let plane = deployment.add_edge("edge", &settings).await?;
        Ok(Self { engines, plane, key, limited_key, _engines: program, deployment, _redis: redis })
    }

    pub(in crate::compare) const fn address(&self) -> SocketAddr {
        self.plane.address
    }

    /// The key to ask with.
    pub(in crate::compare) fn key(&self, kind: Kind) -> &str {
        match kind {
            Kind::Chat | Kind::Cached => &self.key,
            Kind::UnknownKey => UNKNOWN_KEY,
            Kind::Limited => &self.limited_key,
        }
    }

    pub(in crate::compare) fn cost(&self) -> anyhow::Result<Cost> {
        self.plane.program.cost()
    }

    /// Requests so far that it answered without a node.
    pub(in crate::compare) async fn reused(&self) -> anyhow::Result<u64> {
        let metrics = self.deployment.metrics(&self.plane).await?;
        let of = |status: &str| {
            let name = format!("turnpike_edge_cache_requests_total{{status=\"{status}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap_or(0)
        };
        Ok(of("hit") + of("coalesced"))
    }

    /// Its log and those of the programs around it, where there is something.
    pub(in crate::compare) fn logs(&self) -> String {
        self.deployment.logs()
    }
}
