//! Messages of the links between planes, and how they are framed.
//!
//! A frame is a big-endian `u32` length and that many bytes of CBOR. Structs are arrays by field number, so that an
//! older peer skips fields it does not know and a newer one sees absent optional fields as `None`.
//! Every stream is opened by the edge or node, and its first frame is an [`Open`].

use crate::push::EdgeHello;
use crate::records::{NodeState, Served};
use crate::{EventId, Tokens, UsageEvent, Usd};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Protocol name and version that both ends must agree on (TLS ALPN).
pub const ALPN: &[u8] = b"turnpike/1";

/// Largest frame either side accepts, bytes: more than a full delta or usage batch has.
pub const MAX_FRAME: usize = 32 << 20;

/// Most events in one [`UsageBatch`].
pub const MAX_BATCH_EVENTS: usize = 4096;

/// First frame of a stream: what the stream is for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Open {
    /// An edge wants routing. The control plane answers with [`crate::push::PushFrame`]s, the edge with
    /// [`crate::push::PushReply`]s.
    #[n(0)]
    Push(#[n(0)] EdgeHello),
    /// An edge ships usage: [`UsageBatch`]es one way, [`UsageAck`]s the other.
    #[n(1)]
    Usage,
    /// A node registers: one [`NodeReply`], then [`NodeReport`]s.
    #[n(2)]
    Node(#[n(0)] NodeHello),
    /// A node ships its ledger: [`LedgerBatch`]es one way, [`LedgerAck`]s the other.
    #[n(3)]
    Ledger,
    /// An edge fetches pieces of a state: [`crate::push::ChunkRequest`]s one way, [`crate::push::ChunkReply`]s the other.
    #[n(4)]
    Chunks,
}

/// A stretch of an edge's journal. `(edge, epoch, seq)` is contiguous; a batch may be sent again after a lost ack. One
/// without records (`first_seq == end_seq`) only says how far the edge has come.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UsageBatch<Event = UsageEvent> {
    /// The journal's epoch: made anew when an edge starts without one.
    #[n(0)]
    pub epoch: u64,
    /// Sequence number of the first record.
    #[n(1)]
    pub first_seq: u64,
    /// The events among the records, at most [`MAX_BATCH_EVENTS`].
    #[n(2)]
    pub events: Vec<Event>,
    /// Sequence number after the last record; records that are no events (intents) are counted and not sent.
    #[n(3)]
    pub end_seq: u64,
    /// How far the edge has come once this batch is stored.
    #[n(4)]
    pub complete: Watermark,
    /// The edge's own sums of all usage written so far, which may be beyond `end_seq`, for days that changed since the
    /// last batch; to compare, not to bill by.
    #[n(5)]
    #[cbor(default)]
    pub counts: Vec<DayCount>,
}

/// Sums of one UTC day, by the time inside event ids. Usage without a known model is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct DayCount {
    /// Days since 1970-01-01.
    #[n(0)]
    pub day: u32,
    /// Events.
    #[n(1)]
    pub requests: u64,
    /// Prompt tokens.
    #[n(2)]
    pub prompt_tokens: u64,
    /// Generated tokens.
    #[n(3)]
    pub completion_tokens: u64,
    /// What they cost.
    #[n(4)]
    pub cost: Usd,
}

impl DayCount {
    /// Adds an event of the day.
    pub fn add(&mut self, event: &UsageEvent) {
        self.requests += 1;
        self.prompt_tokens += u64::from(event.prompt_tokens);
        self.completion_tokens += u64::from(event.completion_tokens);
        self.cost.pico = self.cost.pico.saturating_add(event.cost.pico);
    }
}

/// How far an edge's usage is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Watermark {
    /// Usage of every request that had ended by then is shipped. Unix milliseconds of the control plane's clock, reckoned
    /// from the last [`UsageAck::now_ms`]; 0 if that is not known.
    #[n(0)]
    pub ended_to_ms: u64,
    /// Usage of every request that had begun by then is shipped. Unix milliseconds of the edge's clock, as in event ids;
    /// 0 if that is not known.
    #[n(1)]
    pub began_to_ms: u64,
    /// The same by the control plane's clock, reckoned like `ended_to_ms`: whatever the edge's own clock says.
    #[n(2)]
    #[cbor(default)]
    pub settled_to_ms: u64,
}

/// The batch is durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UsageAck {
    /// Epoch of the batch.
    #[n(0)]
    pub epoch: u64,
    /// Its [`UsageBatch::end_seq`].
    #[n(1)]
    pub end_seq: u64,
    /// The control plane's clock, Unix milliseconds.
    #[n(2)]
    pub now_ms: u64,
}

/// Most entries in one [`LedgerBatch`].
pub const MAX_LEDGER_ENTRIES: usize = 8192;

/// What a node worked on, from its own ledger on disk. Sent again after a lost ack.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LedgerBatch {
    /// Position in the node's ledger of the first entry; opaque to the control plane, and repeated in [`LedgerAck`].
    #[n(0)]
    pub position: u64,
    /// At most [`MAX_LEDGER_ENTRIES`].
    #[n(1)]
    pub entries: Vec<LedgerEntry>,
}

/// The batch is durable.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LedgerAck {
    /// [`LedgerBatch::position`]
    #[n(0)]
    pub position: u64,
}

/// What a node did for one request of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LedgerEntry {
    /// The edge's event.
    #[n(0)]
    pub event: EventId,
    /// Tokens that the engine counted, or that were seen to pass if it did not come to that.
    #[n(1)]
    pub tokens: Tokens,
    /// How it ended.
    #[n(2)]
    pub state: LedgerState,
}

/// How far a node came with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum LedgerState {
    /// It runs.
    #[n(0)]
    Begun,
    /// The engine's own count.
    #[n(1)]
    Counted,
    /// It broke off before the engine had counted: what was seen to pass.
    #[n(2)]
    Seen,
    /// The engine refused it or failed before it answered: no tokens.
    #[n(3)]
    Refused,
    /// The node died while it worked on it: nothing is known of its tokens.
    #[n(4)]
    Lost,
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
    use crate::log::Hash;
    use crate::push::{Delta, Item, PushFrame};
    use crate::signing::Signature;
    use proptest::prelude::*;

    #[test]
    fn a_frame_survives_the_trip() {
        let entries = vec![Item::Entry(vec![1, 2].into()), Item::Hidden(Hash::of(b"x"))];
        let delta = PushFrame::Delta(Delta { from: 1, entries, signature: Signature([9; 64]) });
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
