//! The OpenAI API as engines inside the agent speak it: requests parsed, responses shaped, streams framed.
//!
//! HTTP engines never come here: their bodies pass through byte for byte.

mod error;
mod request;
mod response;
mod stop;

pub(crate) use error::{ErrorBody, json_response};
#[cfg(feature = "builtin-engine")]
pub(crate) use request::Message;
pub(crate) use request::{
    ChatRequest, CompletionRequest, EmbeddingRequest, GenerationOptions, ModerationRequest, Role, parse,
};
pub(crate) use response::{
    Answer, FinishReason, GenerationEvent, Usage, embeddings_response, moderations_response, respond,
};
pub(crate) use stop::StopFilter;
