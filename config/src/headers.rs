//! HTTP headers between clients, edges and nodes, beside the standard ones.

/// Names a request in every log along its way. Clients may send their own; every answer carries it.
pub const REQUEST_ID: &str = "x-request-id";
/// Edge to node: the model that is meant, as the edge resolved it.
pub const MODEL: &str = "x-turnpike-model";
/// Edge to node: which version of it.
pub const MODEL_VERSION: &str = "x-turnpike-model-version";
/// Node to edge, on refusals: nothing of an answer has been sent, and another node may take the request.
pub const RETRYABLE: &str = "x-turnpike-retryable";
/// Node to edge, before a stream begins: the prompt's exact size in tokens, so that a stream that is cut can be billed.
pub const PROMPT_TOKENS: &str = "x-turnpike-prompt-tokens";
