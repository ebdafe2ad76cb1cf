//! The usage event: one per authenticated inference request, whatever its end, and one per shadow of a request.

use crate::{CacheStatus, EventId, KeyId, OrgId, Usd};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// The kind of work that a request asked for; `request_type` in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    #[n(0)]
    Chat,
    /// `POST /v1/completions`
    #[n(1)]
    Completion,
    /// `POST /v1/embeddings`
    #[n(2)]
    Embedding,
    /// `POST /v1/moderations`
    #[n(3)]
    Moderation,
}

impl Endpoint {
    /// Every endpoint, in the order of [`Endpoint::index`].
    pub const ALL: [Self; 4] = [Self::Chat, Self::Completion, Self::Embedding, Self::Moderation];

    /// Position in [`Endpoint::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether its answers are made token by token.
    pub const fn generates(self) -> bool {
        matches!(self, Self::Chat | Self::Completion)
    }

    /// `inference_requests.request_type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Embedding => "embedding",
            Self::Moderation => "moderation",
        }
    }

    /// The path under which clients and nodes know it.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
            Self::Embedding => "/v1/embeddings",
            Self::Moderation => "/v1/moderations",
        }
    }

    /// The endpoint at a path.
    pub fn from_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum RequestStatus {
    /// Answered in full.
    #[n(0)]
    Success,
    /// Refused or failed.
    #[n(1)]
    Error,
    /// A deadline passed.
    #[n(2)]
    Timeout,
    /// Over a limit.
    #[n(3)]
    RateLimited,
    /// The client left before the answer was complete.
    #[n(4)]
    ClientGone,
}

impl RequestStatus {
    /// Every status, in the order of [`RequestStatus::index`].
    pub const ALL: [Self; 5] = [Self::Success, Self::Error, Self::Timeout, Self::RateLimited, Self::ClientGone];

    /// Position in [`RequestStatus::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// `inference_requests.status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::RateLimited => "rate_limited",
            Self::ClientGone => "client_gone",
        }
    }
}

/// What one request used and how it went: the fields of `inference_requests` and `request_analytics`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UsageEvent {
    /// Identity and start time (UUIDv7).
    #[n(0)]
    pub id: EventId,
    /// Who pays.
    #[n(1)]
    pub organization: OrgId,
    /// With which key.
    #[n(2)]
    pub api_key: KeyId,
    /// Known model that was asked for; `None` if the request was refused before one was found.
    #[n(3)]
    pub model: Option<String>,
    /// Version that answered or would have.
    #[n(4)]
    pub model_version: Option<String>,
    /// Kind of work.
    #[n(5)]
    pub endpoint: Endpoint,
    /// How it ended.
    #[n(6)]
    pub status: RequestStatus,
    /// HTTP status sent to the client; 0 if none was.
    #[n(7)]
    pub http_status: u16,
    /// OpenAI error code, if it ended in an error.
    #[n(8)]
    pub error_code: Option<String>,
    /// Error text as sent to the client (never prompt or answer).
    #[n(9)]
    pub error_message: Option<String>,
    /// Prompt tokens, counted by the engine.
    #[n(10)]
    pub prompt_tokens: u32,
    /// Generated tokens, counted by the engine (or by chunks, see [`UsageEvent::estimated`]).
    #[n(11)]
    pub completion_tokens: u32,
    /// The engine's own count never arrived (stream cut): tokens are the edge's count of what it saw.
    #[n(12)]
    pub estimated: bool,
    /// Price of those tokens at the time of the request.
    #[n(13)]
    pub cost: Usd,
    /// Request body, bytes.
    #[n(14)]
    pub request_bytes: u64,
    /// Response body, bytes sent to the client.
    #[n(15)]
    pub response_bytes: u64,
    /// From dispatch to the node until the last byte, milliseconds.
    #[n(16)]
    pub processing_ms: u32,
    /// From arrival until dispatch, milliseconds.
    #[n(17)]
    pub queue_ms: u32,
    /// From arrival until the last byte, milliseconds.
    #[n(18)]
    pub total_ms: u32,
    /// From arrival until the first byte of the answer's body, milliseconds.
    #[n(19)]
    pub first_byte_ms: Option<u32>,
    /// Region of the edge.
    #[n(20)]
    pub region: String,
    /// Name of the edge.
    #[n(21)]
    pub edge: String,
    /// Node that answered, or was tried last.
    #[n(22)]
    pub node: Option<String>,
    /// Client's user agent, cut to 256 bytes.
    #[n(23)]
    pub user_agent: Option<String>,
    /// Client's address.
    #[n(24)]
    pub client_ip: Option<String>,
    /// Whether the client asked for a stream.
    #[n(25)]
    pub streamed: bool,
    /// Nodes tried beyond the first.
    #[n(26)]
    pub retries: u8,
    /// What the response cache did for it; `None` if it was refused before the cache was asked.
    #[n(27)]
    pub cache: Option<CacheStatus>,
    /// Number of the price that `cost` was reckoned by, within the model; 0 if the model has no numbered prices.
    #[n(28)]
    #[cbor(default)]
    pub price_version: u32,
    /// Of the prompt tokens, those that the engine had from an earlier prompt.
    #[n(29)]
    #[cbor(default)]
    pub cached_tokens: u32,
    /// A copy of a request, sent elsewhere to see how that does. Nobody pays for it, and it is in no sum.
    #[n(30)]
    #[cbor(default)]
    pub shadow: bool,
}

impl UsageEvent {
    /// Prompt and completion tokens together.
    pub const fn total_tokens(&self) -> u64 {
        self.prompt_tokens as u64 + self.completion_tokens as u64
    }
}

/// A [`UsageEvent`] as it was once encoded, passed on as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedEvent(pub bytes::Bytes);

impl EncodedEvent {
    /// What it says.
    pub fn decode(&self) -> Result<UsageEvent, minicbor::decode::Error> {
        minicbor::decode(&self.0)
    }
}

impl<C> Encode<C> for EncodedEvent {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _context: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.writer_mut().write_all(&self.0).map_err(minicbor::encode::Error::write)
    }
}
