//! An engine that answers with what it was asked. It needs no weights and no hardware, and says plainly what it is.

use crate::engine::{Body, Engine, EngineError, EngineLoad, EngineRequest};
use crate::openai::{
    self, Answer, ChatRequest, CompletionRequest, EmbeddingRequest, FinishReason, GenerationEvent, GenerationOptions,
    ModerationRequest, Role, StopFilter, Usage,
};
use async_trait::async_trait;
use futures::stream;
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use turnpike_config::Endpoint;

/// Names the engine in every answer, so that nobody takes it for a model.
const FINGERPRINT: &str = "echo";
/// Length of its embeddings.
const DIMENSIONS: usize = 64;

/// The echo engine. A token is a word with the white space before it.
#[derive(Debug)]
pub(crate) struct Echo {
    token_delay: Duration,
    generated: Arc<AtomicU64>,
}

impl Echo {
    /// `token_delay`: pause before each word, to watch a stream or fill a queue.
    pub(crate) fn new(token_delay: Duration) -> Self {
        Self { token_delay, generated: Arc::default() }
    }

    async fn generate(
        &self,
        request: EngineRequest,
        text: String,
        prompt_tokens: u32,
        options: &GenerationOptions,
    ) -> Result<http::Response<Body>, EngineError> {
        let answer = Answer {
            endpoint: request.endpoint,
            model: request.model,
            fingerprint: FINGERPRINT,
            streaming: options.streaming(),
            prompt_tokens,
        };
        let speech = Speech {
            tokens: tokens(&text).into(),
            left: options.max_tokens().unwrap_or(u32::MAX),
            filter: Some(StopFilter::new(&options.stop)),
            usage: Usage { prompt_tokens, completion_tokens: 0 },
            token_delay: self.token_delay,
            generated: Arc::clone(&self.generated),
        };
        openai::respond(answer, stream::unfold(speech, Speech::next)).await
    }
}

#[async_trait]
impl Engine for Echo {
    async fn serve(&self, request: EngineRequest) -> Result<http::Response<Body>, EngineError> {
        match request.endpoint {
            Endpoint::Chat => {
                let chat: ChatRequest = openai::parse(&request.body)?;
                let prompt_tokens = chat.messages.iter().map(|message| count(&message.content)).sum();
                let last = chat.messages.iter().rfind(|message| message.role == Role::User);
                let text = last.map(|message| message.content.clone()).unwrap_or_default();
                self.generate(request, text, prompt_tokens, &chat.options).await
            }
            Endpoint::Completion => {
                let completion: CompletionRequest = openai::parse(&request.body)?;
                let text = completion.prompt().to_owned();
                let prompt_tokens = count(&text);
                self.generate(request, text, prompt_tokens, &completion.options).await
            }
            Endpoint::Embedding => {
                let embedding: EmbeddingRequest = openai::parse(&request.body)?;
                if embedding.dimensions.is_some_and(|wanted| wanted as usize != DIMENSIONS) {
                    return Err(EngineError::unsupported(
                        "dimensions",
                        format!("this engine's embeddings have {DIMENSIONS} dimensions"),
                    ));
                }
                let vectors: Vec<_> = embedding.input.iter().map(|text| embed(text)).collect();
                let prompt_tokens = embedding.input.iter().map(|text| count(text)).sum();
                Ok(openai::embeddings_response(&request.model, embedding.encoding_format, &vectors, prompt_tokens))
            }
            Endpoint::Moderation => {
                let moderation: ModerationRequest = openai::parse(&request.body)?;
                let unflagged = vec![vec![("echo", false, 0.0)]; moderation.input.len()];
                Ok(openai::moderations_response(&request.model, &unflagged))
            }
        }
    }

    async fn observe(&self) -> Result<EngineLoad, EngineError> {
        let generated_tokens = Some(self.generated.load(Ordering::Relaxed));
        Ok(EngineLoad { generated_tokens, ..EngineLoad::default() })
    }

    fn kind(&self) -> &'static str {
        "echo"
    }
}

/// An answer being spoken.
struct Speech {
    tokens: VecDeque<String>,
    /// Tokens that `max_tokens` still allows.
    left: u32,
    /// `None` once the end was spoken.
    filter: Option<StopFilter>,
    usage: Usage,
    token_delay: Duration,
    generated: Arc<AtomicU64>,
}

impl Speech {
    async fn next(mut self) -> Option<(Result<GenerationEvent, EngineError>, Self)> {
        let mut filter = self.filter.take()?;
        if self.left == 0 && !self.tokens.is_empty() {
            return Some(self.end(filter.finish(), FinishReason::Length));
        }
        let Some(token) = self.tokens.pop_front() else {
            return Some(self.end(filter.finish(), FinishReason::Stop));
        };
        if !self.token_delay.is_zero() {
            tokio::time::sleep(self.token_delay).await;
        }
        self.left -= 1;
        self.usage.completion_tokens += 1;
        self.generated.fetch_add(1, Ordering::Relaxed);
        match filter.push(&token) {
            Ok(text) => {
                self.filter = Some(filter);
                Some((Ok(GenerationEvent::Text(text)), self))
            }
            Err(last) => Some(self.end(last, FinishReason::Stop)),
        }
    }

    /// Speaks what is left to say, if anything, and then the end.
    fn end(mut self, last: String, finish_reason: FinishReason) -> (Result<GenerationEvent, EngineError>, Self) {
        if last.is_empty() {
            return (Ok(GenerationEvent::Done { finish_reason, usage: self.usage }), self);
        }
        // The next call finds no text held back; whether tokens are left tells it the same reason again.
        self.filter = Some(StopFilter::new(&[]));
        match finish_reason {
            FinishReason::Stop => self.tokens.clear(),
            FinishReason::Length => self.left = 0,
        }
        (Ok(GenerationEvent::Text(last)), self)
    }
}

/// Words, each with the white space before it; white space at the end goes with the last one.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut word_seen = false;
    for c in text.chars() {
        let starts = tokens.is_empty() || (word_seen && c.is_whitespace());
        if starts {
            tokens.push(String::new());
            word_seen = false;
        }
        word_seen |= !c.is_whitespace();
        if let Some(token) = tokens.last_mut() {
            token.push(c);
        }
    }
    if tokens.len() > 1 && !word_seen {
        let trailing = tokens.pop().unwrap_or_default();
        if let Some(token) = tokens.last_mut() {
            token.push_str(&trailing);
        }
    }
    tokens
}

fn count(text: &str) -> u32 {
    u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX)
}

/// A unit vector that depends on nothing but the text: equal texts have equal vectors, others unrelated ones.
fn embed(text: &str) -> Vec<f32> {
    let mut vector: Vec<f32> = Vec::with_capacity(DIMENSIONS);
    for block in 0_u8.. {
        let digest = Sha256::new().chain_update([block]).chain_update(text).finalize();
        vector.extend(digest.iter().map(|&byte| f32::from(byte) - 127.5));
        if vector.len() >= DIMENSIONS {
            break;
        }
    }
    vector.truncate(DIMENSIONS);
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};

    async fn ask(endpoint: Endpoint, body: Value) -> Value {
        let request = EngineRequest {
            endpoint,
            model: "m".to_owned(),
            version: "1".to_owned(),
            body: body.to_string().into(),
            request_id: "r".to_owned(),
        };
        let response = Echo::new(Duration::ZERO).serve(request).await.unwrap();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8(bytes.to_vec()).unwrap()))
    }

    fn user(text: &str) -> Value {
        json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": text}])
    }

    #[tokio::test]
    async fn a_chat_is_answered_with_the_last_user_message_and_counted() {
        let answer = ask(Endpoint::Chat, json!({"messages": user("one  two three ")})).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "one  two three ");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["system_fingerprint"], "echo");
        assert_eq!(answer["usage"], json!({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}));
    }

    #[tokio::test]
    async fn max_tokens_and_stop_end_the_answer() {
        for (extra, text, reason, tokens) in [
            (json!({"max_tokens": 2}), "one two", "length", 2),
            (json!({"max_tokens": 4}), "one two three four", "stop", 4),
            (json!({"stop": " three"}), "one two", "stop", 3),
            (json!({"stop": ["e t"]}), "on", "stop", 2),
            (json!({"stop": "two x", "max_completion_tokens": 2}), "one two", "length", 2),
            (json!({"stop": "four five"}), "one two three four", "stop", 4),
        ] {
            let mut body = json!({"messages": user("one two three four")});
            body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let answer = ask(Endpoint::Chat, body).await;
            assert_eq!(answer["choices"][0]["message"]["content"], text, "{extra}");
            assert_eq!(answer["choices"][0]["finish_reason"], reason, "{extra}");
            assert_eq!(answer["usage"]["completion_tokens"], tokens, "{extra}");
        }
    }

    #[tokio::test]
    async fn a_stream_brings_a_chunk_per_word() {
        let body = json!({"prompt": "a b c", "stream": true, "stream_options": {"include_usage": true}});
        let answer = ask(Endpoint::Completion, body).await;
        let text = answer.as_str().unwrap();
        // Three words, the end, the usage, [DONE].
        assert_eq!(text.matches("data: ").count(), 6, "{text}");
        assert!(text.contains("\"completion_tokens\":3") && text.ends_with("data: [DONE]\n\n"));
    }

    #[tokio::test]
    async fn embeddings_are_unit_vectors_that_depend_on_the_text_alone() {
        let answer = ask(Endpoint::Embedding, json!({"input": ["a b", "c", "a b"]})).await;
        let vector = |i: usize| -> Vec<f64> {
            answer["data"][i]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        assert_eq!(vector(0), vector(2));
        assert_ne!(vector(0), vector(1));
        assert_eq!(vector(0).len(), DIMENSIONS);
        assert!((vector(1).iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
        assert_eq!(answer["usage"]["prompt_tokens"], 5);
    }

    #[tokio::test]
    async fn a_moderation_flags_nothing() {
        let answer = ask(Endpoint::Moderation, json!({"input": "anything"})).await;
        assert_eq!(answer["results"][0]["flagged"], false);
    }

    #[test]
    fn tokens_join_to_the_text_and_agree_with_the_count() {
        for text in ["", " ", "a", " a b\n\nc  ", "ä ö\tü"] {
            assert_eq!(tokens(text).concat(), text);
            if !text.trim().is_empty() {
                assert_eq!(tokens(text).len(), count(text) as usize, "{text:?}");
            }
        }
    }
}
