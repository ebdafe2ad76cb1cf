//! Text embeddings: all-MiniLM-L6-v2, mean-pooled and normalised as its authors do.

use candle_core::{DType, Device, Error, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use tokenizers::Tokenizer;

use super::weights::Weights;
use crate::engine::EngineError;

/// Most tokens of one text, its two markers included. The model has 512 positions, but its own settings
/// (`sentence_bert_config.json`) stop at 256: what lies beyond was never trained.
pub const EMBEDDING_CONTEXT_LENGTH: u32 = 256;
/// Length of each vector.
pub const EMBEDDING_DIMENSIONS: u32 = 384;

/// The embedding model.
pub(super) struct EmbeddingModel {
    model: BertModel,
    tokenizer: Tokenizer,
}

impl EmbeddingModel {
    /// Reads the files; a second or so.
    pub(super) fn load(weights: &Weights) -> Result<Self> {
        let config = std::fs::read(&weights.embedding_config)?;
        let config: Config = serde_json::from_slice(&config).map_err(Error::wrap)?;
        let tensors = std::fs::read(&weights.embedding_tensors)?;
        let variables = VarBuilder::from_buffered_safetensors(tensors, DType::F32, &Device::Cpu)?;
        let model = BertModel::load(variables, &config)?;

        let mut tokenizer = Tokenizer::from_file(&weights.embedding_tokenizer).map_err(Error::wrap)?;
        // The file cuts every text at 128 tokens in silence, and fills shorter ones up.
        tokenizer.with_truncation(None).map_err(Error::wrap)?.with_padding(None);
        // A client who writes [SEP] gets these five characters, not a marker.
        tokenizer.set_encode_special_tokens(true);
        Ok(Self { model, tokenizer })
    }

    /// A vector for each text, in order, and the count of all their tokens. `is_cancelled` is asked between two texts.
    pub(super) fn embed_all(
        &self,
        texts: &[String],
        is_cancelled: &dyn Fn() -> bool,
    ) -> std::result::Result<(Vec<Vec<f32>>, u32), EngineError> {
        let failed = |error: Error| EngineError::Failed(error.to_string());
        let tokens = texts.iter().map(|text| self.encode(text)).collect::<Result<Vec<_>>>().map_err(failed)?;
        let limit = usize::try_from(EMBEDDING_CONTEXT_LENGTH).unwrap_or(usize::MAX);
        if let Some((index, tokens)) = tokens.iter().enumerate().find(|(_, tokens)| tokens.len() > limit) {
            return Err(too_long(index, tokens.len()));
        }
        let total = tokens.iter().map(Vec::len).sum::<usize>();
        let mut vectors = Vec::with_capacity(tokens.len());
        for tokens in &tokens {
            if is_cancelled() {
                return Err(EngineError::Failed("the client left".to_owned()));
            }
            vectors.push(self.embed(tokens).map_err(failed)?);
        }
        Ok((vectors, u32::try_from(total).unwrap_or(u32::MAX)))
    }

    /// Tokens of a text between its two markers, all of which are computed on and counted.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_fast(text, true).map_err(Error::wrap)?.get_ids().to_vec())
    }

    /// The unit vector of one text's tokens. Texts go through one by one: on one CPU thread a batch gains nothing, and
    /// without padding a vector does not depend on which texts it was sent with.
    fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let ids = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let hidden = self.model.forward(&ids, &ids.zeros_like()?, None)?;
        // No padding, so the attention mask is all ones and the masked mean is the mean.
        let mean = hidden.mean(1)?.squeeze(0)?;
        let length = mean.sqr()?.sum_all()?.sqrt()?;
        mean.broadcast_div(&length)?.to_vec1()
    }
}

fn too_long(index: usize, tokens: usize) -> EngineError {
    EngineError::BadRequest {
        message: format!(
            "this model's maximum context length is {EMBEDDING_CONTEXT_LENGTH} tokens, but input {index} has {tokens}; split it"
        ),
        param: Some("input".to_owned()),
        code: Some("context_length_exceeded"),
    }
}
