//! Three servers that share the keys.

use super::{Error, Options, Redis};
use crate::process;
use std::time::{Duration, Instant};

/// The smallest cluster that Redis makes.
const NODES: usize = 3;
/// How long redis-cli may take to introduce the nodes to each other.
const CREATE_PATIENCE: Duration = Duration::from_secs(60);
/// How long the nodes may take to agree.
const AGREE_PATIENCE: Duration = Duration::from_secs(30);

/// A throw-away cluster of three masters without replicas. Dropping it ends all of them.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts the nodes, joins them, and waits until every one of them says that all is well.
    pub fn start_temporary() -> Result<Self, Error> {
        let options = Options::default().clustered();
        let nodes = (0..NODES).map(|_| Redis::start_temporary_with(&options)).collect::<Result<Vec<_>, _>>()?;
        let cluster = Self { nodes };
        cluster.join()?;
        cluster.wait_until_ok()?;
        Ok(cluster)
    }

    fn join(&self) -> Result<(), Error> {
        let addresses: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let arguments = ["--cluster", "create"].into_iter().chain(addresses.iter().map(String::as_str));
        let arguments: Vec<_> = arguments.chain(["--cluster-yes"]).collect();
        let first = self.nodes.first();
        first.map_or(Ok(()), |node| node.client.command_within(CREATE_PATIENCE, &arguments).map(drop))
    }

    /// Waits until every node says `cluster_state:ok` and knows all others: after a node was restarted or resumed,
    /// that takes them some seconds.
    pub fn wait_until_ok(&self) -> Result<(), Error> {
        let deadline = Instant::now() + AGREE_PATIENCE;
        let mut state = String::new();
        let ok = process::wait_until(deadline, || match self.nodes.iter().find_map(not_ready) {
            None => true,
            Some(complaint) => {
                state = complaint;
                false
            }
        });
        if ok {
            return Ok(());
        }
        let nodes: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        Err(Error::Cluster { nodes: nodes.join(", "), seconds: AGREE_PATIENCE.as_secs(), state })
    }

    /// How to connect to each node; any of them tells a client about the others.
    pub fn urls(&self) -> Vec<&str> {
        self.nodes.iter().map(Redis::url).collect()
    }

    /// The nodes, in the order of [`RedisCluster::urls`].
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// The nodes, to be killed, paused and restarted.
    pub fn nodes_mut(&mut self) -> &mut [Redis] {
        &mut self.nodes
    }
}

/// What a node says of the cluster, unless that is all well.
fn not_ready(node: &Redis) -> Option<String> {
    let info = match node.client.command_within(Duration::from_secs(2), &["CLUSTER", "INFO"]) {
        Ok(info) => info,
        Err(e) => return Some(e.to_string()),
    };
    let known = format!("cluster_known_nodes:{NODES}");
    let says = |expected: &str| info.lines().any(|line| line.trim() == expected);
    let ready = says("cluster_state:ok") && says("cluster_slots_ok:16384") && says(&known);
    (!ready).then_some(info)
}
