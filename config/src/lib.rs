//! Types that flow between Turnpike's planes, and nothing else.
//!
//! Pure by default: no IO, no clock, no randomness. The `link` feature adds the QUIC transport that carries these types
//! between processes. Planes depend on this crate and never on each other.

pub mod caching;
pub mod change;
pub mod crash;
pub mod digest;
pub mod event;
pub mod headers;
pub mod ids;
pub mod limits;
#[cfg(feature = "link")]
pub mod link;
pub mod log;
pub mod money;
pub mod node_url;
pub mod push;
pub mod records;
pub mod route;
pub mod routing;
pub mod settings;
pub mod signing;
pub mod tap;
pub mod validate;
pub mod wire;

pub use caching::{CacheKey, CachePolicy, CacheStatus};
pub use change::Change;
pub use crash::crash_point;
pub use digest::KeyDigest;
pub use event::{EncodedEvent, Endpoint, RequestStatus, UsageEvent};
pub use ids::{EventId, KeyId, OrgId};
pub use limits::{Budget, LimitSettings, ModelLimits, Prepaid, RateLimits, RegionShare};
pub use money::{Price, PriceVersion, Tokens, Usd};
pub use node_url::NodeUrl;
pub use records::{KeyRecord, ModelRecord, NodeRecord, NodeState, OrgRecord, Permissions};
pub use route::{RouteId, RoutePolicy, RouteRecord};
pub use routing::Routing;
pub use tap::{Tap, is_good_end};
pub use validate::World;
