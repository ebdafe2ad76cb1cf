use super::Adapter;

/// Any server that speaks the OpenAI API. Its load is what the agent itself has sent there.
pub(crate) const OPENAI: Adapter =
    Adapter { kind: "openai", health_path: "/v1/models", metrics: None, metrics_hint: "" };
