//! How many tokens a request may come to.

use crate::ingress::Ask;
use crate::live::Model;
use crate::request::Metered;
use turnpike_config::{Endpoint, Tokens};

/// Longest answer assumed when neither the request nor the model bounds it, tokens.
const DEFAULT_ANSWER: u64 = 4_096;
/// An answer of open length is cut for want of tokens to no less than this part of what it could have been.
const FAIR_PART: u64 = 8;
/// And to no less than so many tokens.
const SHORTEST: u64 = 16;

/// What a request may come to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Tokens of the prompt, judged by its bytes.
    pub(crate) prompt: u64,
    /// Tokens needed at the least: the prompt, and the answer if its length was asked for.
    pub(crate) least: u64,
    /// Tokens that the prompt and the answer may come to.
    pub(crate) most: u64,
    /// Tokens that an answer of open length is held to; `None` leaves it to the engine.
    pub(crate) longest: Option<u64>,
}

impl Size {
    /// At a model.
    pub(crate) fn of(metered: &Metered, model: &Model) -> Option<Self> {
        let ask = metered.ask.as_ref()?;
        let prompt = model.live.prompt_tokens(metered.request_bytes).min(model.record.context_length.into());
        // Clients ask for as many tokens as they like.
        let wished = prompt.saturating_add(longest_answer(metered.endpoint, ask, model));
        let allowed = metered.within(model).most_tokens();
        let most = allowed.map_or(wished, |allowed| wished.min(allowed));
        let counted = allowed.is_some() || metered.key.org.limits.counts_money();
        let longest = counted.then(|| coarse(most.saturating_sub(prompt).max(1), wished > most));
        // An answer has a token at least.
        let shortest = if metered.endpoint.generates() { ask.choices } else { 0 };
        Some(Self { prompt, least: prompt.saturating_add(ask.max_tokens.unwrap_or(shortest)), most, longest })
    }

    /// Less, if an answer of open length would need more tokens than are left now, and a fair part of them is: a shorter
    /// answer is better than none.
    pub(crate) fn cut(&self, metered: &Metered, model: &Model, now_ns: u64) -> Option<Self> {
        let ask = metered.ask.as_ref()?;
        let left = metered.within(model).tokens_left(now_ns)?;
        let (wished, longest) = (self.most.saturating_sub(self.prompt), left.saturating_sub(self.prompt));
        let open = metered.endpoint.generates() && ask.max_tokens.is_none();
        let fair = (wished / FAIR_PART).max(SHORTEST).max(ask.choices);
        (open && left < self.most && longest >= fair).then_some(Self {
            most: self.prompt + longest,
            longest: Some(longest),
            ..*self
        })
    }

    /// The same with no more tokens than so many, as far as an answer can be held to that.
    pub(crate) fn at_most(self, metered: &Metered, most: u64) -> Self {
        let open = metered.endpoint.generates() && metered.ask.as_ref().is_some_and(|ask| ask.max_tokens.is_none());
        if !open || self.most <= most {
            return self;
        }
        let answer = most.saturating_sub(self.prompt).max(1);
        Self { most: self.prompt + answer, longest: Some(answer), ..self }
    }

    pub(crate) fn most_usage(&self) -> Tokens {
        Tokens { prompt: to_u32(self.prompt), cached: 0, completion: to_u32(self.most.saturating_sub(self.prompt)) }
    }
}

pub(crate) fn to_u32(tokens: u64) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// Tokens that the answer may take.
fn longest_answer(endpoint: Endpoint, ask: &Ask, model: &Model) -> u64 {
    if !endpoint.generates() {
        return 0;
    }
    let most = model.record.max_output_tokens.map_or(DEFAULT_ANSWER, u64::from).min(model.record.context_length.into());
    ask.max_tokens.unwrap_or(most)
}

/// A length cut by a limit moves with every estimate of the prompt, and would make equal requests differ: rounded down to
/// three binary digits.
const fn coarse(tokens: u64, cut: bool) -> u64 {
    let digits = u64::BITS - tokens.leading_zeros();
    if cut && digits > 3 { tokens >> (digits - 3) << (digits - 3) } else { tokens }
}
