//! Which ports the planes listen on, known to be free before anything is started.

use anyhow::bail;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// Ports that are tried until one is free for UDP and for TCP.
const PORTS_TRIED: usize = 16;
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An address for each listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    /// The edge, for clients.
    pub(super) edge: SocketAddr,
    /// The admin API.
    pub(super) admin: SocketAddr,
    /// The control plane's link; UDP, and TCP.
    pub(super) link: SocketAddr,
    /// The node, for edges.
    pub(super) node: SocketAddr,
    /// The edge's metrics and health.
    pub(super) edge_metrics: SocketAddr,
    /// The node's metrics and health.
    pub(super) node_metrics: SocketAddr,
}

/// The ports as asked for on the command line.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Ports")]
pub(crate) struct Options {
    /// The edge: where OpenAI clients connect.
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    port: u16,
    /// The admin API.
    #[arg(long, default_value_t = 8081, value_name = "PORT")]
    admin_port: u16,
    /// The control plane's link to edges and nodes (QUIC over UDP, and TCP).
    #[arg(long, default_value_t = 7443, value_name = "PORT")]
    link_port: u16,
    /// The node: where the edge sends requests.
    #[arg(long, default_value_t = 8090, value_name = "PORT")]
    node_port: u16,
    /// The edge's /metrics, /livez and /readyz.
    #[arg(long, default_value_t = 8082, value_name = "PORT")]
    edge_metrics_port: u16,
    /// The node's /metrics, /livez and /readyz.
    #[arg(long, default_value_t = 8091, value_name = "PORT")]
    node_metrics_port: u16,
    /// Take any free port for each of them, anew at every start.
    #[arg(long)]
    auto_ports: bool,
    /// Address the edge listens on; 0.0.0.0 lets other machines in (put TLS in front). All else stays on this machine.
    #[arg(long, default_value_t = LOCAL, value_name = "ADDRESS")]
    bind: IpAddr,
}

/// Keeps a port taken while others are chosen.
enum Held {
    Tcp(#[expect(dead_code, reason = "held open, never used")] TcpListener),
    Both(#[expect(dead_code, reason = "held open, never used")] (UdpSocket, TcpListener)),
}

impl Ports {
    /// Tries every port; names each that is taken and the flag that changes it.
    pub(super) fn choose(options: &Options) -> anyhow::Result<Self> {
        let mut held = Vec::new();
        let mut taken = Vec::new();
        let mut pick = |what: &str, flag: &str, address: IpAddr, port: u16, udp: bool| {
            let wanted = SocketAddr::new(address, if options.auto_ports { 0 } else { port });
            match hold(wanted, udp) {
                Ok((found, socket)) => {
                    held.push(socket);
                    found
                }
                Err(e) => {
                    let protocol = if udp { "UDP or TCP" } else { "TCP" };
                    taken.push(format!(
                        "  - {protocol} {wanted} for {what}: {}; choose another with {flag}",
                        reason(&e)
                    ));
                    wanted
                }
            }
        };
        let ports = Self {
            edge: pick("the edge", "--port", options.bind, options.port, false),
            admin: pick("the admin API", "--admin-port", LOCAL, options.admin_port, false),
            link: pick("the control plane's link", "--link-port", LOCAL, options.link_port, true),
            node: pick("the node", "--node-port", LOCAL, options.node_port, false),
            edge_metrics: pick("the edge's metrics", "--edge-metrics-port", LOCAL, options.edge_metrics_port, false),
            node_metrics: pick("the node's metrics", "--node-metrics-port", LOCAL, options.node_metrics_port, false),
        };
        if taken.is_empty() {
            return Ok(ports);
        }
        bail!("cannot listen on:\n{}\nor let --auto-ports choose free ones", taken.join("\n"))
    }

    /// Base URL for OpenAI clients on this machine.
    pub(super) fn base_url(&self) -> String {
        format!("http://{}/v1", reachable(self.edge))
    }

    /// The control plane's address.
    pub(super) fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
    }
}

/// An unspecified address is listened on, but cannot be connected to everywhere.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() { SocketAddr::new(LOCAL, address.port()) } else { address }
}

fn hold(address: SocketAddr, udp: bool) -> io::Result<(SocketAddr, Held)> {
    if udp {
        let mut tried = 1;
        loop {
            let socket = UdpSocket::bind(address)?;
            let found = socket.local_addr()?;
            match TcpListener::bind(found) {
                Ok(listener) => return Ok((found, Held::Both((socket, listener)))),
                // Any port will do, as long as both are free.
                Err(_) if address.port() == 0 && tried < PORTS_TRIED => tried += 1,
                Err(error) => return Err(error),
            }
        }
    } else {
        let listener = TcpListener::bind(address)?;
        Ok((listener.local_addr()?, Held::Tcp(listener)))
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "already in use".to_owned(),
        io::ErrorKind::PermissionDenied => "not permitted (ports below 1024 need root)".to_owned(),
        io::ErrorKind::AddrNotAvailable => "not an address of this machine".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(auto_ports: bool, port: u16) -> Options {
        Options {
            port,
            admin_port: port,
            link_port: 0,
            node_port: 0,
            edge_metrics_port: 0,
            node_metrics_port: 0,
            auto_ports,
            bind: LOCAL,
        }
    }

    #[test]
    fn free_ports_are_all_different() {
        let ports = Ports::choose(&options(true, 1)).unwrap();
        let mut tcp = [ports.edge, ports.admin, ports.node, ports.edge_metrics, ports.node_metrics].map(|a| a.port());
        tcp.sort_unstable();
        assert!(tcp.windows(2).all(|pair| pair[0] != pair[1]) && tcp[0] != 0 && ports.link.port() != 0, "{tcp:?}");
    }

    #[test]
    fn every_taken_port_is_named_with_its_flag() {
        let other = TcpListener::bind((LOCAL, 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        let error = Ports::choose(&options(false, port)).unwrap_err().to_string();
        for part in
            [&format!("TCP 127.0.0.1:{port} for the edge: already in use"), "--port", "--admin-port", "--auto-ports"]
        {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }

    #[test]
    fn an_edge_open_to_all_is_reached_locally() {
        let mut ports = Ports::choose(&options(true, 1)).unwrap();
        ports.edge = "0.0.0.0:80".parse().unwrap();
        assert_eq!(ports.base_url(), "http://127.0.0.1:80/v1");
    }
}
