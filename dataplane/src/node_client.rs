//! Requests of the edge's own to nodes, beside the proxy.

use crate::live::Node;
use reqwest::{Client, Method, RequestBuilder};
use rustls::ClientConfig;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use turnpike_config::link::{Identity, LinkError};

/// Until a node accepts a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Copies of clients' requests on their way at once; more are not sent.
const AT_ONCE: usize = 64;
/// Most bytes of their bodies together: what is larger than what is left is not sent.
const MOST_BYTES: usize = 64 << 20;

/// What copies of clients' requests are sent by.
pub(crate) struct Aside {
    pub(crate) clients: NodeClients,
    /// Where they run: not on the threads of clients' requests.
    pub(crate) runtime: Handle,
    slots: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// Held by a copy until it has ended.
pub(crate) struct Place {
    _slot: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl Aside {
    pub(crate) fn new(identity: &Identity, runtime: Handle) -> Result<Self, LinkError> {
        let (slots, bytes) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(MOST_BYTES)));
        Ok(Self { clients: NodeClients::new(identity)?, runtime, slots, bytes })
    }

    /// A place for a copy with a body of so many bytes, if there is one.
    pub(crate) fn place(&self, bytes: usize) -> Option<Place> {
        let bytes = u32::try_from(bytes).ok()?;
        Some(Place {
            _slot: Arc::clone(&self.slots).try_acquire_owned().ok()?,
            _bytes: Arc::clone(&self.bytes).try_acquire_many_owned(bytes).ok()?,
        })
    }
}

/// Clients of nodes.
pub(crate) struct NodeClients {
    tls: ClientConfig,
    /// A client for each node: who is spoken to stands in its certificate, and where in the routing.
    clients: Mutex<HashMap<String, (SocketAddr, Client)>>,
}

impl NodeClients {
    pub(crate) fn new(identity: &Identity) -> Result<Self, LinkError> {
        Ok(Self { tls: identity.client_config(&[b"http/1.1"])?, clients: Mutex::default() })
    }

    /// A request to a node. It has no timeout but for connecting.
    pub(crate) fn request(&self, method: Method, node: &Node, path: &str) -> reqwest::Result<RequestBuilder> {
        let host = match &node.tls_name {
            Some(name) => format!("https://{name}:{}", node.address.port()),
            None => format!("http://{}", node.address),
        };
        Ok(self.client(node)?.request(method, format!("{host}{path}")))
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<String, (SocketAddr, Client)>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, node: &Node) -> Option<Client> {
        let clients = self.clients();
        clients.get(&*node.name).filter(|(address, _)| *address == node.address).map(|(_, client)| client.clone())
    }

    fn client(&self, node: &Node) -> reqwest::Result<Client> {
        if let Some(client) = self.known(node) {
            return Ok(client);
        }
        // Takes a while: requests to other nodes do not wait for it.
        let mut builder = Client::builder().no_proxy().connect_timeout(CONNECT);
        if let Some(name) = &node.tls_name {
            builder = builder.tls_backend_preconfigured(self.tls.clone()).resolve(name, node.address);
        }
        let client = builder.build()?;
        let mut clients = self.clients();
        let kept = clients.entry(node.name.to_string()).or_insert_with(|| (node.address, client.clone()));
        // Whoever was first at the same has it.
        if kept.0 != node.address {
            *kept = (node.address, client);
        }
        Ok(kept.1.clone())
    }
}
