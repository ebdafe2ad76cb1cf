//! What a GPU does with many requests at once, without IO and without a clock: continuous batching with a paged KV cache
//! whose full blocks are found again by who begins with the same text.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

/// Tokens in a block of the KV cache.
pub(super) const BLOCK_TOKENS: u32 = 16;

/// How fast and how large a simulated GPU is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    /// To read a token of a prompt that is in no cache.
    pub(crate) prefill_per_token: Duration,
    /// A step that makes one token for each sequence, whatever their number.
    pub(crate) step: Duration,
    /// What each sequence adds to a step.
    pub(crate) step_per_sequence: Duration,
    /// Sequences that it works on at once.
    pub(crate) max_batch: usize,
    /// Blocks of its KV cache.
    pub(crate) kv_blocks: usize,
}

/// What is asked of it.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    pub(super) id: u64,
    /// Full blocks of its prompt; each stands for all the text up to its end.
    pub(super) prefix: Vec<u64>,
    pub(super) prompt_tokens: u32,
    /// At least 1.
    pub(super) answer_tokens: u32,
}

impl Sequence {
    /// Blocks that it needs until its end.
    fn blocks(&self) -> usize {
        (self.prompt_tokens + self.answer_tokens).div_ceil(BLOCK_TOKENS) as usize
    }
}

/// A sequence that is worked on.
#[derive(Debug)]
struct Running {
    sequence: Sequence,
    made: u32,
    /// Blocks of its own; the others are those of its prefix.
    own_blocks: usize,
}

/// A step of all that runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) takes: Duration,
    /// Who has one token more after it, and whether it was the last.
    pub(super) made: Vec<(u64, bool)>,
}

/// What nodes report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) running: usize,
    pub(super) waiting: usize,
    /// KV cache in use, thousandths; what is only kept to be found again is free.
    pub(super) kv_permille: usize,
}

/// The work of one GPU.
#[derive(Debug)]
pub(super) struct Batch {
    profile: Profile,
    waiting: VecDeque<Sequence>,
    running: Vec<Running>,
    cache: PrefixCache,
    own_blocks: usize,
}

impl Batch {
    pub(super) fn new(profile: Profile) -> Self {
        Self { profile, waiting: VecDeque::new(), running: Vec::new(), cache: PrefixCache::default(), own_blocks: 0 }
    }

    /// Takes a sequence; `false` if it can never fit.
    pub(super) fn submit(&mut self, sequence: Sequence) -> bool {
        let fits = sequence.blocks() <= self.profile.kv_blocks;
        if fits {
            self.waiting.push_back(sequence);
        }
        fits
    }

    /// Forgets a sequence that nobody waits for any more.
    pub(super) fn cancel(&mut self, id: u64) {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(place) = self.running.iter().position(|running| running.sequence.id == id) {
            let gone = self.running.swap_remove(place);
            self.free(&gone);
        }
    }

    /// The next step; `None` while there is nothing to do.
    pub(super) fn step(&mut self) -> Option<Step> {
        let uncached_tokens = self.admit();
        if self.running.is_empty() {
            return None;
        }
        let sequences = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        let Profile { prefill_per_token, step, step_per_sequence, .. } = self.profile;
        let takes = step + step_per_sequence * sequences + prefill_per_token * uncached_tokens;
        for running in &mut self.running {
            running.made += 1;
        }
        let is_done = |running: &Running| running.made >= running.sequence.answer_tokens;
        let made = self.running.iter().map(|running| (running.sequence.id, is_done(running))).collect();
        let (done, left) = std::mem::take(&mut self.running).into_iter().partition(is_done);
        self.running = left;
        let done: Vec<Running> = done;
        done.iter().for_each(|running| self.free(running));
        Some(Step { takes, made })
    }

    pub(super) fn load(&self) -> Load {
        let used = self.own_blocks + self.cache.held();
        let kv_permille = used * 1000 / self.profile.kv_blocks.max(1);
        Load { running: self.running.len(), waiting: self.waiting.len(), kv_permille }
    }

    /// Starts who waits, in order, while there is room; the prompt tokens that have to be read for that.
    fn admit(&mut self) -> u32 {
        let mut uncached = 0;
        while self.running.len() < self.profile.max_batch
            && let Some(next) = self.waiting.front()
        {
            let shared = next.prefix.len();
            let own_blocks = next.blocks().saturating_sub(shared);
            let missing = next.prefix.iter().filter(|block| !self.cache.is_held(**block)).count();
            let used = self.own_blocks + self.cache.held();
            if used + missing + own_blocks > self.profile.kv_blocks {
                break;
            }
            let Some(sequence) = self.waiting.pop_front() else { break };
            let found = self.cache.hold(&sequence.prefix);
            self.own_blocks += own_blocks;
            self.cache.shrink_to(self.profile.kv_blocks - self.own_blocks);
            uncached += sequence.prompt_tokens - u32::try_from(found).unwrap_or(0) * BLOCK_TOKENS;
            self.running.push(Running { sequence, made: 0, own_blocks });
        }
        uncached
    }

    fn free(&mut self, gone: &Running) {
        self.own_blocks -= gone.own_blocks;
        self.cache.release(&gone.sequence.prefix);
    }
}

/// Blocks that sequences share, those that nobody holds in the order in which they were let go.
#[derive(Debug, Default)]
struct PrefixCache {
    blocks: HashMap<u64, Block>,
    idle: BTreeMap<u64, u64>,
    turn: u64,
}

#[derive(Debug)]
enum Block {
    /// By so many sequences.
    Held(u32),
    /// Since this turn.
    Idle(u64),
}

impl PrefixCache {
    /// Blocks that sequences hold.
    fn held(&self) -> usize {
        self.blocks.len() - self.idle.len()
    }

    fn is_held(&self, block: u64) -> bool {
        matches!(self.blocks.get(&block), Some(Block::Held(_)))
    }

    /// Holds all of a prefix; how many blocks at its beginning were there.
    fn hold(&mut self, prefix: &[u64]) -> usize {
        let found = prefix.iter().take_while(|block| self.blocks.contains_key(block)).count();
        for block in prefix {
            let holders = match self.blocks.get(block) {
                Some(Block::Held(holders)) => *holders,
                Some(Block::Idle(turn)) => {
                    self.idle.remove(turn);
                    0
                }
                None => 0,
            };
            self.blocks.insert(*block, Block::Held(holders + 1));
        }
        found
    }

    fn release(&mut self, prefix: &[u64]) {
        // The end of a text is let go first: what is longer is found again less often.
        for block in prefix.iter().rev() {
            match self.blocks.get_mut(block) {
                Some(Block::Held(holders)) if *holders > 1 => *holders -= 1,
                Some(state) => {
                    self.turn += 1;
                    *state = Block::Idle(self.turn);
                    self.idle.insert(self.turn, *block);
                }
                None => {}
            }
        }
    }

    /// Forgets what nobody holds until there are no more than so many.
    fn shrink_to(&mut self, most: usize) {
        while self.blocks.len() > most
            && let Some((_, block)) = self.idle.pop_first()
        {
            self.blocks.remove(&block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SMALL: Profile = Profile {
        prefill_per_token: MS,
        step: MS.saturating_mul(10),
        step_per_sequence: MS,
        max_batch: 2,
        kv_blocks: 8,
    };

    fn sequence(id: u64, prefix: &[u64], answer_tokens: u32) -> Sequence {
        let prompt_tokens = u32::try_from(prefix.len()).unwrap() * BLOCK_TOKENS;
        Sequence { id, prefix: prefix.to_vec(), prompt_tokens, answer_tokens }
    }

    #[test]
    fn a_step_grows_with_the_batch_and_with_what_is_read() {
        let mut batch = Batch::new(SMALL);
        assert!(batch.submit(sequence(1, &[1], 2)) && batch.submit(sequence(2, &[2], 1)));
        let first = batch.step().unwrap();
        assert_eq!(first, Step { takes: MS * (10 + 2 + 32), made: vec![(1, false), (2, true)] });
        assert_eq!(batch.step().unwrap(), Step { takes: MS * 11, made: vec![(1, true)] });
        assert_eq!((batch.step(), batch.load()), (None, Load::default()));
    }

    #[test]
    fn a_prefix_is_read_once_until_its_room_is_needed() {
        let mut batch = Batch::new(SMALL);
        let first_step = |batch: &mut Batch, it| {
            assert!(batch.submit(it));
            batch.step().unwrap().takes
        };
        assert_eq!(first_step(&mut batch, sequence(1, &[1, 2], 1)), MS * (11 + 32));
        assert_eq!(first_step(&mut batch, sequence(2, &[1, 2, 3], 1)), MS * (11 + 16));
        // It takes seven of the eight blocks, so that one of the three is left.
        assert_eq!(first_step(&mut batch, sequence(3, &[4, 5, 6, 7, 8, 9], 1)), MS * (11 + 96));
        assert_eq!(first_step(&mut batch, sequence(4, &[1, 2, 3], 1)), MS * (11 + 32));
    }

    #[test]
    fn who_does_not_fit_waits_and_who_never_fits_is_refused() {
        let mut batch = Batch::new(SMALL);
        assert!(!batch.submit(sequence(1, &[1, 2, 3, 4, 5, 6, 7, 8], 1)));
        for id in 2..=4 {
            assert!(batch.submit(sequence(id, &[id * 10, id * 10 + 1], 17)));
        }
        batch.step();
        assert_eq!(batch.load(), Load { running: 2, waiting: 1, kv_permille: 1000 });
        batch.cancel(2);
        batch.cancel(4);
        assert_eq!(batch.load(), Load { running: 1, waiting: 0, kv_permille: 500 });
        while batch.step().is_some() {}
        assert_eq!(batch.load(), Load::default());
    }
}
