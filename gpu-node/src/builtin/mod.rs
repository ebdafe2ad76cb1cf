//! The built-in engine: a small chat model and an embedding model, computed on the CPU of this very process.
//!
//! It exists so that a first answer needs no other server and no graphics card. Weights come from [`weights::ensure`];
//! each running sequence has a thread of its own, and [`BuiltinEngine`] bounds how many there are.

mod cpu;
mod embed;
mod generate;
mod load;
mod pip;
mod requantise;
#[cfg(test)]
mod tests;
mod tokenizer;
pub mod weights;
mod wheels;

pub use cpu::{ENVIRONMENT, cpu_note};
pub use embed::{EMBEDDING_CONTEXT_LENGTH, EMBEDDING_DIMENSIONS};
pub use generate::CHAT_CONTEXT_LENGTH;

use async_trait::async_trait;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_blocking;
use turnpike_config::Endpoint;

use self::embed::EmbeddingModel;
use self::generate::{ChatModel, Plan};
use self::load::Load;
use self::weights::Weights;
use crate::engine::{Body, Engine, EngineError, EngineLoad, EngineRequest};
use crate::openai::{self, Answer, ChatRequest, CompletionRequest, EmbeddingRequest, GenerationOptions};

/// Model id of the chat model, SmolLM2-135M-Instruct.
pub const CHAT_MODEL: &str = "smollm2-135m-instruct";
/// Its version: the published weights, requantised to Q8_0.
pub const CHAT_MODEL_VERSION: &str = "q8_0";
/// Model id of the embedding model, all-MiniLM-L6-v2.
pub const EMBEDDING_MODEL: &str = "all-minilm-l6-v2";
/// Its version: the published weights in 32-bit floats.
pub const EMBEDDING_MODEL_VERSION: &str = "f32";

/// Text completions without `max_tokens` get as many, as in OpenAI's API.
const COMPLETION_MAX_TOKENS: u32 = 16;
/// Longest wait for a slot. The agent sends no more requests than there are slots, so only the moment between a client
/// leaving and its sequence noticing is waited out.
const SLOT_WAIT: Duration = Duration::from_secs(10);
/// Names the engine in every answer.
const FINGERPRINT: &str = "turnpike-builtin";

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The weights are there and cannot be used.
    #[error("the {model} weights in {} could not be loaded: {source}", .dir.display())]
    Weights {
        /// Which model.
        model: &'static str,
        /// Where they lie.
        dir: std::path::PathBuf,
        /// What candle says.
        source: candle_core::Error,
    },
    /// Loading panicked, or the process is shutting down.
    #[error("loading the models was broken off: {0}")]
    BrokenOff(#[from] tokio::task::JoinError),
}

/// The engine.
pub struct BuiltinEngine {
    chat: Arc<ChatModel>,
    embedding: Arc<EmbeddingModel>,
    load: Arc<Load>,
    slots: u32,
    free: Arc<Semaphore>,
}

impl std::fmt::Debug for BuiltinEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuiltinEngine").field("slots", &self.slots).field("load", &self.load).finish_non_exhaustive()
    }
}

impl BuiltinEngine {
    /// Loads both models, off the async threads; a few seconds. `slots`: requests computed at the same time, at least
    /// 1, each on one CPU core and with up to 180 MiB of its own.
    ///
    /// # Errors
    /// When the files cannot be read or are not what they should be.
    pub async fn load(weights: Weights, slots: u32) -> Result<Self, LoadError> {
        let started = Instant::now();
        cpu::check_environment();
        if let Some(note) = cpu_note() {
            tracing::warn!("{note}");
        }
        let (chat, embedding) = spawn_blocking(move || {
            let failed = |model| {
                let dir = weights.dir.clone();
                move |source| LoadError::Weights { model, dir, source }
            };
            let chat = ChatModel::load(&weights).map_err(failed(CHAT_MODEL))?;
            let embedding = EmbeddingModel::load(&weights).map_err(failed(EMBEDDING_MODEL))?;
            Ok::<_, LoadError>((chat, embedding))
        })
        .await??;
        tracing::info!(seconds = started.elapsed().as_secs_f64(), "the built-in models are loaded");
        let slots = slots.max(1);
        Ok(Self {
            chat: Arc::new(chat),
            embedding: Arc::new(embedding),
            load: Arc::default(),
            slots,
            free: Arc::new(Semaphore::new(usize::try_from(slots).unwrap_or(Semaphore::MAX_PERMITS))),
        })
    }

    async fn slot(&self) -> Result<OwnedSemaphorePermit, EngineError> {
        let _waiting = self.load.wait();
        match tokio::time::timeout(SLOT_WAIT, Arc::clone(&self.free).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(EngineError::Unavailable("all its slots are taken".to_owned())),
        }
    }

    async fn chat(&self, request: EngineRequest) -> Result<http::Response<Body>, EngineError> {
        expect_model(&request, CHAT_MODEL, "chat completions")?;
        let chat: ChatRequest = openai::parse(&request.body)?;
        if chat.messages.iter().any(|message| message.role == openai::Role::Tool) {
            return Err(EngineError::unsupported("messages", "this engine's model does not call tools"));
        }
        self.check_length(chat.messages.iter().map(|message| message.content.len()).sum(), &chat.options)?;
        let model = Arc::clone(&self.chat);
        let ChatRequest { messages, options } = chat;
        let prompt = compute(move || model.tokenizer.encode_chat(&messages)).await?;
        let plan = Plan::new(prompt, &options, None)?;
        self.generate(request, plan, &options).await
    }

    async fn completion(&self, request: EngineRequest) -> Result<http::Response<Body>, EngineError> {
        expect_model(&request, CHAT_MODEL, "completions")?;
        let completion: CompletionRequest = openai::parse(&request.body)?;
        let text = completion.prompt().to_owned();
        self.check_length(text.len(), &completion.options)?;
        let model = Arc::clone(&self.chat);
        let prompt = compute(move || model.tokenizer.encode(&text)).await?;
        let plan = Plan::new(prompt, &completion.options, Some(COMPLETION_MAX_TOKENS))?;
        self.generate(request, plan, &completion.options).await
    }

    /// Refuses a prompt that is too long whatever its tokens, before any time is spent on it.
    fn check_length(&self, bytes: usize, options: &GenerationOptions) -> Result<(), EngineError> {
        let fewest = self.chat.tokenizer.fewest_tokens(bytes);
        if fewest <= usize::try_from(CHAT_CONTEXT_LENGTH).unwrap_or(usize::MAX) {
            return Ok(());
        }
        Err(generate::too_long(&format!("at least {fewest}"), options.max_tokens()))
    }

    async fn generate(
        &self,
        request: EngineRequest,
        plan: Plan,
        options: &GenerationOptions,
    ) -> Result<http::Response<Body>, EngineError> {
        let slot = self.slot().await?;
        let prompt_tokens = plan.prompt_tokens();
        let (sender, mut events) = mpsc::channel(plan.most_events());
        let (model, load) = (Arc::clone(&self.chat), Arc::clone(&self.load));
        std::thread::Builder::new()
            .name("sequence".to_owned())
            .spawn(move || {
                let _running = load.run();
                model.run(&plan, &load, &sender);
                drop(slot);
            })
            .map_err(|error| EngineError::Unavailable(format!("no thread could be started: {error}")))?;
        let answer = Answer {
            endpoint: request.endpoint,
            model: request.model,
            fingerprint: FINGERPRINT,
            streaming: options.streaming(),
            prompt_tokens,
        };
        openai::respond(answer, futures::stream::poll_fn(move |context| events.poll_recv(context))).await
    }

    async fn embeddings(&self, request: EngineRequest) -> Result<http::Response<Body>, EngineError> {
        expect_model(&request, EMBEDDING_MODEL, "embeddings")?;
        let EmbeddingRequest { input, encoding_format, dimensions } = openai::parse(&request.body)?;
        if dimensions.is_some_and(|wanted| wanted != EMBEDDING_DIMENSIONS) {
            return Err(EngineError::unsupported(
                "dimensions",
                format!("{EMBEDDING_MODEL} has {EMBEDDING_DIMENSIONS} dimensions and no others"),
            ));
        }
        let slot = self.slot().await?;
        let (model, load) = (Arc::clone(&self.embedding), Arc::clone(&self.load));
        // Dropped with this future when the client leaves.
        let (here, gone) = std::sync::mpsc::channel::<()>();
        let work = spawn_blocking(move || {
            let _running = load.run();
            let is_cancelled = || gone.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected);
            let vectors = model.embed_all(&input, &is_cancelled);
            drop(slot);
            vectors
        });
        let (vectors, tokens) = work.await.map_err(|error| EngineError::Failed(error.to_string()))??;
        drop(here);
        Ok(openai::embeddings_response(&request.model, encoding_format, &vectors, tokens))
    }
}

#[async_trait]
impl Engine for BuiltinEngine {
    async fn serve(&self, request: EngineRequest) -> Result<http::Response<Body>, EngineError> {
        match request.endpoint {
            Endpoint::Chat => self.chat(request).await,
            Endpoint::Completion => self.completion(request).await,
            Endpoint::Embedding => self.embeddings(request).await,
            Endpoint::Moderation => Err(wrong_model("the built-in engine does not serve moderations".to_owned())),
        }
    }

    async fn observe(&self) -> Result<EngineLoad, EngineError> {
        Ok(self.load.report(self.slots, CHAT_CONTEXT_LENGTH))
    }

    fn kind(&self) -> &'static str {
        "builtin"
    }
}

fn expect_model(request: &EngineRequest, model: &str, what: &str) -> Result<(), EngineError> {
    if request.model == model {
        return Ok(());
    }
    Err(wrong_model(format!("the model {} does not serve {what}; use {model}", request.model)))
}

fn wrong_model(message: String) -> EngineError {
    EngineError::BadRequest { message, param: Some("model".to_owned()), code: Some("unsupported_model") }
}

/// Runs `work` off the async threads.
async fn compute<T: Send + 'static>(
    work: impl FnOnce() -> candle_core::Result<T> + Send + 'static,
) -> Result<T, EngineError> {
    match spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(EngineError::Failed(error.to_string())),
        Err(error) => Err(EngineError::Failed(error.to_string())),
    }
}
