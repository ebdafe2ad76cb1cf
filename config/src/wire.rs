//! Messages of the links between planes, and how they are framed.
//!
//! A frame is a big-endian `u32` length and that many bytes of CBOR. Structs are arrays by field number, so that an
//! older peer skips fields it does not know and a newer one sees absent optional fields as `None`.
//! Every stream is opened by the edge or node, and its first frame is an [`Open`].

use crate::UsageEvent;
use crate::routing::{Change, NodeState, Routing, Served};
use minicbor::{Decode, Encode};

/// Protocol name and version that both ends must agree on (TLS ALPN).
pub const ALPN: &[u8] = b"turnpike/1";

/// Largest frame either side accepts, bytes. A snapshot of a million keys fits.
pub const MAX_FRAME: usize = 256 << 20;

/// Most events in one [`UsageBatch`].
pub const MAX_BATCH_EVENTS: usize = 4096;

/// First frame of a stream: what the stream is for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Open {
    /// An edge wants routing. The control plane answers with [`PushFrame`]s, the edge with [`PushReply`]s.
    #[n(0)]
    Push(#[n(0)] EdgeHello),
    /// An edge ships usage: [`UsageBatch`]es one way, [`UsageAck`]s the other.
    #[n(1)]
    Usage,
    /// A node registers: one [`NodeReply`], then [`NodeReport`]s.
    #[n(2)]
    Node(#[n(0)] NodeHello),
}

/// An edge introduces itself. Its name comes from its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EdgeHello {
    /// Region it serves.
    #[n(0)]
    pub region: String,
    /// Version of the routing it already holds; 0 for none.
    #[n(1)]
    pub holds: u64,
    /// Its build, for the operator.
    #[n(2)]
    pub build: String,
}

/// Routing, pushed to an edge.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PushFrame {
    /// The whole state; replaces what the edge holds.
    #[n(0)]
    Snapshot(#[n(0)] Routing),
    /// Changes from one version to a later one, in order.
    #[n(1)]
    Delta(#[n(0)] Delta),
}

/// Changes between two versions.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Delta {
    /// Version the edge must hold to apply this.
    #[n(0)]
    pub from: u64,
    /// Version it holds afterwards.
    #[n(1)]
    pub to: u64,
    /// In order.
    #[n(2)]
    pub changes: Vec<Change>,
}

/// An edge's answer to a [`PushFrame`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PushReply {
    /// It serves by this version now.
    #[n(0)]
    Ack(#[n(0)] u64),
    /// It refused this version and keeps what it has.
    #[n(1)]
    Nack {
        /// Version refused.
        #[n(0)]
        version: u64,
        /// Why.
        #[n(1)]
        reason: String,
    },
}

/// Events from an edge's journal. `(edge, epoch, seq)` is contiguous; a batch may be sent again after a lost ack.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UsageBatch {
    /// The journal's epoch: made anew when an edge starts without one.
    #[n(0)]
    pub epoch: u64,
    /// Sequence number of the first event.
    #[n(1)]
    pub first_seq: u64,
    /// At most [`MAX_BATCH_EVENTS`].
    #[n(2)]
    pub events: Vec<UsageEvent>,
}

/// The batch is durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UsageAck {
    /// Epoch of the batch.
    #[n(0)]
    pub epoch: u64,
    /// Sequence number of the last event stored.
    #[n(1)]
    pub through: u64,
}

/// A node introduces itself. Its name comes from its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeHello {
    /// Region it stands in.
    #[n(0)]
    pub region: String,
    /// Where edges reach it: `https://host:port` or `http://host:port`.
    #[n(1)]
    pub url: String,
    /// Engine behind it, such as `builtin`, `vllm`.
    #[n(2)]
    pub engine: String,
    /// What it answers for.
    #[n(3)]
    pub serves: Vec<Served>,
    /// Requests it works on at once, at least 1.
    #[n(4)]
    pub slots: u32,
    /// Its GPUs; empty without any.
    #[n(5)]
    pub gpus: Vec<String>,
    /// Its build, for the operator.
    #[n(6)]
    pub build: String,
}

/// The control plane's answer to a [`NodeHello`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum NodeReply {
    /// Registered: send a [`NodeReport`] this often.
    #[n(0)]
    Welcome {
        /// Milliseconds between reports.
        #[n(0)]
        report_every_ms: u32,
    },
    /// Not registered; the reason is for the operator.
    #[n(1)]
    Refused(#[n(0)] String),
}

/// How a node is doing, sent periodically and at every change of state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeReport {
    /// Whether it takes requests.
    #[n(0)]
    pub state: NodeState,
    /// Requests the engine works on.
    #[n(1)]
    pub running: u32,
    /// Requests that wait, in the engine and in the agent's queue.
    #[n(2)]
    pub waiting: u32,
    /// KV-cache use in thousandths; `None` if the engine does not say.
    #[n(3)]
    pub kv_cache_permille: Option<u16>,
    /// GPU utilisation in thousandths, the mean over GPUs; `None` without any.
    #[n(4)]
    pub gpu_permille: Option<u16>,
    /// GPU memory use in thousandths; `None` without any.
    #[n(5)]
    pub gpu_memory_permille: Option<u16>,
    /// Requests completed since the node started.
    #[n(6)]
    pub completed: u64,
    /// Tokens generated since the node started.
    #[n(7)]
    pub generated_tokens: u64,
}

/// A frame that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// Longer than [`MAX_FRAME`].
    #[error("frame of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// Not the message that was expected.
    #[error("malformed message: {0}")]
    Malformed(#[from] minicbor::decode::Error),
}

/// A message with its length in front.
pub fn frame<T: Encode<()>>(message: &T) -> Result<Vec<u8>, BadFrame> {
    let mut out = vec![0; 4];
    // Writing into a Vec cannot fail.
    let _ = minicbor::encode(message, &mut out);
    let length = out.len() - 4;
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME).ok_or(BadFrame::TooLong(length))?;
    out[..4].copy_from_slice(&prefix.to_be_bytes());
    Ok(out)
}

/// The message inside a frame's body.
pub fn unframe<'b, T: Decode<'b, ()>>(body: &'b [u8]) -> Result<T, BadFrame> {
    Ok(minicbor::decode(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_survives_the_trip() {
        let delta = PushFrame::Delta(Delta { from: 1, to: 2, changes: vec![Change::DropModel("m".to_owned())] });
        let bytes = frame(&delta).unwrap_or_default();
        assert_eq!(usize::try_from(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])), Ok(bytes.len() - 4));
        assert_eq!(unframe::<PushFrame>(&bytes[4..]).ok(), Some(delta));
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = unframe::<PushFrame>(&bytes);
            let _ = unframe::<UsageBatch>(&bytes);
            let _ = unframe::<Open>(&bytes);
        }
    }
}
