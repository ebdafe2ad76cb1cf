//! Text generation: prompt in, tokens out, one sequence per thread.

use candle_core::{Device, Result, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use candle_transformers::models::quantized_llama::{MAX_SEQ_LEN, ModelWeights};
use tokio::sync::mpsc::Sender;

use super::load::{Load, TokensInCache};
use super::requantise;
use super::tokenizer::{ChatTokenizer, Utf8Assembler};
use super::weights::Weights;
use crate::engine::EngineError;
use crate::openai::{FinishReason, GenerationEvent, GenerationOptions, StopFilter, Usage};

/// Most tokens of prompt and answer together. The model was trained for 8192; candle's rotary tables end here. A
/// sequence of this length holds 180 MiB of keys and values.
pub const CHAT_CONTEXT_LENGTH: u32 = 4096;
const _: () = assert!(CHAT_CONTEXT_LENGTH as usize <= MAX_SEQ_LEN, "positions beyond the rotary tables");

/// Prompt tokens computed at once: enough for the kernels, and a client that left is noticed between two of them.
const PREFILL_TOKENS: usize = 64;

/// As the model's authors sample it; a model this small loses the thread at OpenAI's default temperature of 1.
const DEFAULT_SAMPLING: Sampling = Sampling::TopKThenTopP { k: 50, p: 0.9, temperature: 0.2 };

/// What one sequence is to do.
pub(super) struct Plan {
    prompt: Vec<u32>,
    max_tokens: u32,
    sampling: Sampling,
    seed: u64,
    stops: Vec<String>,
}

impl Plan {
    /// Checks that the sequence fits the context. `default_max_tokens`: where the client sets no limit; `None` is as
    /// many as fit.
    pub(super) fn new(
        prompt: Vec<u32>,
        options: &GenerationOptions,
        default_max_tokens: Option<u32>,
    ) -> std::result::Result<Self, EngineError> {
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let asked = options.max_tokens().unwrap_or(1);
        if prompt_tokens.saturating_add(asked) > CHAT_CONTEXT_LENGTH {
            return Err(too_long(&prompt_tokens.to_string(), options.max_tokens()));
        }
        if prompt.is_empty() {
            return Err(EngineError::invalid("prompt", "the prompt must not be empty: this model has no start token"));
        }
        let room = CHAT_CONTEXT_LENGTH - prompt_tokens;
        Ok(Self {
            prompt,
            max_tokens: options.max_tokens().or(default_max_tokens).unwrap_or(room).min(room),
            sampling: sampling(options),
            seed: options.seed.map_or_else(rand::random, i64::cast_unsigned),
            stops: options.stop.clone(),
        })
    }

    /// Tokens of the prompt, as they will be counted.
    pub(super) fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.prompt.len()).unwrap_or(u32::MAX)
    }

    /// Most events that the sequence can yield: bounds the channel, so that a slow reader never holds up a slot.
    pub(super) fn most_events(&self) -> usize {
        // A text per token, the text held back, the end.
        usize::try_from(self.max_tokens).unwrap_or(usize::MAX).saturating_add(2)
    }
}

/// The error for a prompt (and answer) that cannot fit; `prompt_tokens` may be "more than N".
pub(super) fn too_long(prompt_tokens: &str, max_tokens: Option<u32>) -> EngineError {
    let answer = max_tokens.map(|tokens| format!(" and max_tokens asks for {tokens}")).unwrap_or_default();
    EngineError::BadRequest {
        message: format!(
            "this model's maximum context length is {CHAT_CONTEXT_LENGTH} tokens, but the prompt has {prompt_tokens}{answer}"
        ),
        param: max_tokens.map(|_| "max_tokens".to_owned()),
        code: Some("context_length_exceeded"),
    }
}

fn sampling(options: &GenerationOptions) -> Sampling {
    match (options.temperature, options.top_p) {
        (None, None) => DEFAULT_SAMPLING,
        // Below this the division by the temperature is no longer finite, and the likeliest token is certain anyway.
        (Some(temperature), _) if temperature < 1e-6 => Sampling::ArgMax,
        (temperature, top_p) => {
            let temperature = temperature.unwrap_or(1.0);
            match top_p {
                Some(p) if p < 1.0 => Sampling::TopP { p, temperature },
                _ => Sampling::All { temperature },
            }
        }
    }
}

/// The chat model. Its tensors are shared by all sequences.
pub(super) struct ChatModel {
    /// Never run itself: each sequence clones it, for a key-value cache (and a cache of attention masks, which candle
    /// never empties) of its own.
    template: ModelWeights,
    pub(super) tokenizer: ChatTokenizer,
}

impl ChatModel {
    /// Reads the file; a second or two, more the first time.
    pub(super) fn load(weights: &Weights) -> Result<Self> {
        let requantise::OpenModel { content, mut reader } = requantise::open(&weights.chat, &weights.dir)?;
        let tokenizer = ChatTokenizer::from_gguf(&content)?;
        let template = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?;
        Ok(Self { template, tokenizer })
    }

    /// Generates until the plan or the model ends it, or nobody listens. Blocks; give it a thread. Every sampled token
    /// counts as a completion token, the one that ends the turn too, as other engines count.
    pub(super) fn run(
        &self,
        plan: &Plan,
        load: &Load,
        events: &Sender<std::result::Result<GenerationEvent, EngineError>>,
    ) {
        let mut sequence = Sequence {
            weights: self.template.clone(),
            position: 0,
            sampler: LogitsProcessor::from_sampling(plan.seed, plan.sampling.clone()),
            cached: load.tokens_in_cache(),
        };
        let end = match sequence.generate(self, plan, load, events) {
            Ok(Some(done)) => Ok(done),
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "generation failed");
                Err(EngineError::Failed("the model could not compute the next token".to_owned()))
            }
        };
        // Fails only when the client has just left.
        let _ = events.blocking_send(end);
    }
}

struct Sequence<'l> {
    weights: ModelWeights,
    /// Tokens in the key-value cache.
    position: usize,
    sampler: LogitsProcessor,
    cached: TokensInCache<'l>,
}

impl Sequence<'_> {
    /// `None`: nobody listens any more.
    fn generate(
        &mut self,
        model: &ChatModel,
        plan: &Plan,
        load: &Load,
        events: &Sender<std::result::Result<GenerationEvent, EngineError>>,
    ) -> Result<Option<GenerationEvent>> {
        let send = |text: String| text.is_empty() || events.blocking_send(Ok(GenerationEvent::Text(text))).is_ok();
        let Some(mut token) = self.prefill(&plan.prompt, &|| events.is_closed())? else { return Ok(None) };
        let mut filter = StopFilter::new(&plan.stops);
        let mut assembler = Utf8Assembler::default();
        let mut usage =
            Usage { prompt_tokens: u32::try_from(plan.prompt.len()).unwrap_or(u32::MAX), completion_tokens: 0 };
        let finish_reason = loop {
            usage.completion_tokens += 1;
            load.token_generated();
            if model.tokenizer.ends_generation(token) {
                break FinishReason::Stop;
            }
            match filter.push(&assembler.push(model.tokenizer.bytes(token))) {
                Ok(text) => {
                    if !send(text) {
                        return Ok(None);
                    }
                }
                Err(last) => {
                    send(last);
                    return Ok(Some(GenerationEvent::Done { finish_reason: FinishReason::Stop, usage }));
                }
            }
            if usage.completion_tokens >= plan.max_tokens {
                break FinishReason::Length;
            }
            if events.is_closed() {
                return Ok(None);
            }
            token = self.step(&[token])?;
        };
        match filter.push(&assembler.finish()) {
            Ok(text) => send(text + &filter.finish()),
            Err(last) => send(last),
        };
        Ok(Some(GenerationEvent::Done { finish_reason, usage }))
    }

    /// Computes the prompt; gives the first token of the answer, or `None` when it was cancelled.
    fn prefill(&mut self, prompt: &[u32], is_cancelled: &dyn Fn() -> bool) -> Result<Option<u32>> {
        let mut logits = None;
        for tokens in prompt.chunks(PREFILL_TOKENS) {
            if is_cancelled() {
                return Ok(None);
            }
            logits = Some(self.forward(tokens)?);
        }
        logits.map(|logits| self.sampler.sample(&logits)).transpose()
    }

    fn step(&mut self, tokens: &[u32]) -> Result<u32> {
        let logits = self.forward(tokens)?;
        self.sampler.sample(&logits)
    }

    /// Scores of every token to follow `tokens`.
    fn forward(&mut self, tokens: &[u32]) -> Result<Tensor> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = self.weights.forward(&input, self.position)?.squeeze(0)?;
        self.position += tokens.len();
        self.cached.add(tokens.len());
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(json: &serde_json::Value) -> GenerationOptions {
        serde_json::from_value(json.clone()).unwrap()
    }

    #[test]
    fn sampling_follows_the_request() {
        let of = |json| sampling(&options(&json));
        assert_eq!(of(serde_json::json!({})), DEFAULT_SAMPLING);
        assert_eq!(of(serde_json::json!({"temperature": 0, "top_p": 0.5})), Sampling::ArgMax);
        assert_eq!(of(serde_json::json!({"temperature": 0.5})), Sampling::All { temperature: 0.5 });
        assert_eq!(of(serde_json::json!({"top_p": 0.5})), Sampling::TopP { p: 0.5, temperature: 1.0 });
        assert_eq!(of(serde_json::json!({"temperature": 2, "top_p": 1})), Sampling::All { temperature: 2.0 });
    }

    #[test]
    fn a_plan_fits_the_context_or_is_refused_by_code() {
        let plan = |tokens, json| Plan::new(vec![7; tokens], &options(&json), None);
        assert_eq!(plan(10, serde_json::json!({})).ok().unwrap().max_tokens, CHAT_CONTEXT_LENGTH - 10);
        assert_eq!(plan(4095, serde_json::json!({"max_tokens": 1})).ok().unwrap().max_tokens, 1);
        for (tokens, json) in [(4096, serde_json::json!({})), (4000, serde_json::json!({"max_tokens": 97}))] {
            let error = plan(tokens, json).err().unwrap();
            let EngineError::BadRequest { code, message, .. } = error else { panic!("{error}") };
            assert_eq!(code, Some("context_length_exceeded"));
            assert!(message.contains("4096") && message.contains(&tokens.to_string()), "{message}");
        }
        assert!(plan(0, serde_json::json!({})).is_err());
    }
}
