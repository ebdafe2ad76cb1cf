//! HTTP headers between clients, edges and nodes, beside the standard ones.

/// Names a request in every log along its way. Clients may send their own; every answer carries it.
pub const REQUEST_ID: &str = "x-request-id";
/// Edge to node: the model that is meant, as the edge resolved it. Edge to client: `model@version` that answered.
pub const MODEL: &str = "x-turnpike-model";
/// Edge to node: which version of it.
pub const MODEL_VERSION: &str = "x-turnpike-model-version";
/// Node to edge, on refusals: nothing of an answer has been sent, and another node may take the request.
pub const RETRYABLE: &str = "x-turnpike-retryable";
/// Node to edge, before a stream begins: the prompt's exact size in tokens, so that a stream that is cut can be billed.
pub const PROMPT_TOKENS: &str = "x-turnpike-prompt-tokens";
/// Client to edge: `on` asks for a cached answer even where sampling would differ, `off` for a fresh one, `paced` for a
/// cached stream at the speed of a model. Edge to client:
/// `hit`, `miss`, `coalesced` or `bypass`, with the answer's age in seconds for hits: `hit; age=12`.
pub const CACHE: &str = "x-turnpike-cache";
/// Edge to client: what the answer is cached by, for purging it.
pub const CACHE_KEY: &str = "x-turnpike-cache-key";
/// Edge to node: the event that the request will end as; the node's ledger goes by it.
pub const EVENT: &str = "x-turnpike-event";
/// Edge to node: the prompt's size in tokens as the edge judges it, for an answer that breaks off at an engine that does
/// not count ahead.
pub const PROMPT_ESTIMATE: &str = "x-turnpike-prompt-estimate";
