//! Answers that the edges of a region share, in Redis: `response:{hash}`, the hash as the cluster's hash tag. Until an answer
//! is there, a fence of the edge that gets it stands in its place.
//!
//! Best effort: whatever fails or takes long is as if nothing had been there, and for a moment nobody asks again.

use crate::cache::answer::StoredAnswer;
use crate::clock::{Clock, nanos};
use crate::deadlines::until;
use crate::redis_client::{RedisClient, Script};
use redis::{Cmd, RedisError};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use turnpike_config::CacheKey;
use uuid::Uuid;

/// A command that takes longer has failed.
const SLOW: Duration = Duration::from_millis(100);
/// For how long nobody asks after a failure.
const REST: Duration = Duration::from_secs(1);
/// Other edges wait this long for the answer that one of them is getting, and then get one of their own.
const WAIT: Duration = Duration::from_secs(2);
/// A fence of an edge that died is gone after this.
const FENCE_LIFE: Duration = Duration::from_secs(5);
/// Between looks whether the answer is there.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How long it is believed that Redis has room, or has none.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(5);
/// Answers that are kept at once have come within this time, and are so many at most.
const GATHERING: Duration = Duration::from_millis(2);
const MAX_WAITING: usize = 1_024;
/// An answer that is larger is made ready beside what serves requests, bytes.
const SMALL: usize = 16 << 10;
/// An answer that is larger when stored stays in the edge that has it, bytes: it would hold up everybody else's commands.
const MAX_STORED: usize = 4 << 20;

/// What a fence begins with; answers begin with the number of their format.
const FENCE: &[u8] = b"flight:";
/// Only who set the fence takes it away.
const RELEASE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0";

/// The region's answers.
pub(crate) struct SharedAnswers {
    client: RedisClient,
    release: Script,
    clock: Clock,
    resting_until_ns: AtomicU64,
    room: AtomicBool,
    room_known_until_ns: AtomicU64,
    /// Are kept together, soon.
    waiting: Mutex<Vec<Kept>>,
}

/// An answer to be kept for the other edges.
pub(crate) struct Kept {
    pub(crate) key: CacheKey,
    pub(crate) answer: Arc<StoredAnswer>,
    /// For how long.
    pub(crate) ttl: Duration,
    /// Of who made it.
    pub(crate) fence: Option<Fence>,
}

/// What asking for an answer came to.
pub(crate) enum Claim {
    Found(StoredAnswer),
    /// This edge gets it; the others wait.
    Ours(Fence),
    /// Nobody has it, or nobody can be asked.
    None,
}

enum Told {
    Answer(StoredAnswer),
    Ours,
    Theirs,
    /// What another version wrote, or nobody.
    Odd,
}

impl Told {
    fn of(there: &[u8]) -> Self {
        match there.starts_with(FENCE) {
            true => Self::Theirs,
            false => StoredAnswer::from_bytes(there).map_or(Self::Odd, Self::Answer),
        }
    }
}

/// Tells other edges that an answer is being made, until dropped.
pub(crate) struct Fence {
    shared: Arc<SharedAnswers>,
    key: String,
    /// Empty once it is gone.
    mark: Vec<u8>,
}

impl SharedAnswers {
    pub(crate) fn new(client: RedisClient, clock: Clock) -> Self {
        Self {
            client,
            release: Script::new(RELEASE),
            clock,
            resting_until_ns: AtomicU64::new(0),
            room: AtomicBool::new(true),
            room_known_until_ns: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    /// Asks for an answer that is good enough by `accepts`, and waits for the one that another edge is getting.
    pub(crate) async fn claim(self: &Arc<Self>, key: CacheKey, accepts: impl Fn(&StoredAnswer) -> bool) -> Claim {
        let mark = [FENCE, Uuid::new_v4().as_bytes()].concat();
        let answer_key = answer_key(key);
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            match self.guarded(self.ask(&answer_key, &mark)).await {
                Some(Told::Answer(answer)) if accepts(&answer) => return Claim::Found(answer),
                Some(Told::Ours) => return Claim::Ours(Fence { shared: Arc::clone(self), key: answer_key, mark }),
                Some(Told::Theirs) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                _ => return Claim::None,
            }
        }
    }

    /// Gets what is there, or else sets a fence, in one command.
    async fn ask(&self, key: &str, mark: &[u8]) -> Result<Told, RedisError> {
        let mut command = set(key, mark, FENCE_LIFE);
        command.arg(b"NX").arg(b"GET");
        let there: Option<Vec<u8>> = match self.client.query(&command).await {
            // No room for a fence: what is there can be read all the same.
            Err(error) if error.code() == Some("OOM") => {
                let read: Option<Vec<u8>> = self.client.query(redis::cmd("GET").arg(key)).await?;
                return Ok(read.map_or(Told::Odd, |bytes| Told::of(&bytes)));
            }
            told => told?,
        };
        Ok(match there {
            None => Told::Ours,
            // The command was sent twice, by a client that did not hear of the first.
            Some(bytes) if bytes == mark => Told::Ours,
            Some(bytes) => Told::of(&bytes),
        })
    }

    /// Keeps an answer for the other edges, together with those that come about the same time: one after the other, each would
    /// cost as much as all of them.
    pub(crate) fn put(self: &Arc<Self>, kept: Kept) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let is_first = {
            let mut waiting = self.waiting();
            if waiting.len() >= MAX_WAITING {
                return;
            }
            waiting.push(kept);
            waiting.len() == 1
        };
        if is_first {
            let shared = Arc::clone(self);
            drop(runtime.spawn(async move {
                tokio::time::sleep(GATHERING).await;
                let group = std::mem::take(&mut *shared.waiting());
                shared.put_all(group).await;
            }));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps answers in the place of their fences, unless what limits are counted by might have no room beside them. The fences
    /// fall in any case.
    async fn put_all(&self, group: Vec<Kept>) {
        if self.is_resting() || !self.guarded(self.has_room()).await.unwrap_or(false) {
            return;
        }
        let mut commands = Vec::with_capacity(group.len());
        let mut fences = Vec::with_capacity(group.len());
        for Kept { key, answer, ttl, fence } in group {
            let Some(bytes) = stored(answer).await else { continue };
            commands.push(set(&answer_key(key), &bytes, ttl));
            fences.extend(fence);
        }
        if self.guarded(self.client.query_all(commands)).await.is_some() {
            fences.into_iter().for_each(Fence::has_fallen);
        }
    }

    /// Whether answers take less than their part of Redis' memory. Looked at once in a while.
    async fn has_room(&self) -> Result<bool, RedisError> {
        let now = self.clock.now_ns();
        if self.room_known_until_ns.load(Ordering::Relaxed) > now {
            return Ok(self.room.load(Ordering::Relaxed));
        }
        let info: String = self.client.query(redis::cmd("INFO").arg("memory")).await?;
        let room = has_room(&info);
        if !room && self.room.load(Ordering::Relaxed) {
            tracing::warn!("cached answers: Redis is three quarters full; no more are kept there until it has room");
        }
        self.room.store(room, Ordering::Relaxed);
        self.room_known_until_ns.store(now.saturating_add(nanos(LOOK_FOR_ROOM)), Ordering::Relaxed);
        Ok(room)
    }

    /// Takes an answer away. Tried also while nothing else is.
    pub(crate) async fn remove(&self, key: CacheKey) {
        let mut command = redis::cmd("DEL");
        command.arg(answer_key(key));
        self.timed(self.client.query::<()>(&command)).await;
    }

    fn is_resting(&self) -> bool {
        self.resting_until_ns.load(Ordering::Relaxed) > self.clock.now_ns()
    }

    /// Runs a command unless one has just failed.
    async fn guarded<T>(&self, command: impl Future<Output = Result<T, RedisError>>) -> Option<T> {
        if self.is_resting() { None } else { self.timed(command).await }
    }

    async fn timed<T>(&self, command: impl Future<Output = Result<T, RedisError>>) -> Option<T> {
        let told = tokio::select! {
            biased;
            told = command => Some(told),
            () = until(Instant::now() + SLOW) => None,
        };
        match told {
            Some(Ok(value)) => return Some(value),
            Some(Err(error)) if error.code().is_some() => {
                tracing::warn!(%error, "cached answers: Redis refuses a command")
            }
            Some(Err(error)) => tracing::debug!(%error, "cached answers: Redis cannot be asked"),
            None => tracing::debug!("cached answers: Redis takes long"),
        }
        self.resting_until_ns.store(self.clock.now_ns().saturating_add(nanos(REST)), Ordering::Relaxed);
        None
    }
}

impl Fence {
    /// It is gone from Redis already.
    fn has_fallen(mut self) {
        self.mark.clear();
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        if self.mark.is_empty() {
            return;
        }
        // Outside a runtime the fence goes by itself.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (shared, key, mark) =
            (Arc::clone(&self.shared), std::mem::take(&mut self.key), [std::mem::take(&mut self.mark)]);
        drop(runtime.spawn(async move {
            shared.guarded(shared.client.run::<i64>(&shared.release, &[&key], &mark)).await;
        }));
    }
}

/// An answer as it lies in Redis; `None` if it is too large for that.
async fn stored(answer: Arc<StoredAnswer>) -> Option<Vec<u8>> {
    let bytes = if answer.body.len() <= SMALL {
        answer.to_bytes()
    } else {
        tokio::task::spawn_blocking(move || answer.to_bytes()).await.ok().flatten()
    };
    bytes.filter(|bytes| bytes.len() <= MAX_STORED)
}

fn answer_key(key: CacheKey) -> String {
    ["response:{", &key.to_string(), "}"].concat()
}

/// Sets a key for so long.
fn set(key: &str, value: &[u8], life: Duration) -> Cmd {
    let mut command = Cmd::with_capacity(8, key.len() + value.len() + 64);
    command.arg(b"SET").arg(key).arg(value).arg(b"PX");
    command.arg(u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1));
    command
}

/// Whether less than three quarters of the memory are in use, by `INFO memory`. A Redis without a bound has room.
fn has_room(info: &str) -> bool {
    let number = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let (used, most) = (number("used_memory"), number("maxmemory"));
    most == 0 || used < most / 4 * 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::RedisSettings;
    use turnpike_parts::redis::Redis;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Asks until it is told what it waits for.
    async fn until_told(edge: &SharedAnswers, key: &str, mark: &[u8], wanted: impl Fn(&Told) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&edge.ask(key, mark).await.unwrap()) {
            assert!(Instant::now() < deadline, "told something else");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_fence_stands_in_the_place_of_an_answer_which_is_found_also_when_redis_is_full() {
        let redis = tokio::task::spawn_blocking(|| Redis::start_temporary().unwrap()).await.unwrap();
        let urls = vec![redis.url().to_owned()];
        let settings = RedisSettings { urls, cluster: false, ca: None, slow: Duration::from_millis(50), edges: 2 };
        let edge = || Arc::new(SharedAnswers::new(RedisClient::new(&settings).unwrap(), Clock));
        let (one, other) = (edge(), edge());
        let (hash, other_mark) = (CacheKey::of(b"asked"), [FENCE, b"other"].concat());
        let key = answer_key(hash);

        let mark = [FENCE, b"one"].concat();
        // Told again if it asks again, as by a client that did not hear of the first time.
        for _ in 0..2 {
            assert!(matches!(one.ask(&key, &mark).await, Ok(Told::Ours)));
        }
        assert!(matches!(other.ask(&key, &other_mark).await, Ok(Told::Theirs)));
        drop(Fence { shared: Arc::clone(&one), key: key.clone(), mark });
        until_told(&other, &key, &other_mark, |told| matches!(told, Told::Ours)).await;
        // Another's fence stays where it is.
        assert_eq!(one.client.run(&one.release, &[&key], &[b"flight:one".as_slice()]).await, Ok(0));

        let body = "{}".into();
        let answer = StoredAnswer { stored_at_ms: 7, streamed: false, prompt_tokens: 1, completion_tokens: 2, body };
        let deadline = Instant::now() + PATIENCE;
        let found = |told: &Told| matches!(told, Told::Answer(found) if *found == answer);
        // A busy machine may be too slow for it once.
        while !found(&one.ask(&key, b"flight:late").await.unwrap()) {
            assert!(Instant::now() < deadline, "the answer is not kept");
            let kept = Kept { key: hash, answer: Arc::new(answer.clone()), ttl: PATIENCE, fence: None };
            other.put_all(vec![kept]).await;
        }

        redis.command(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
        assert!(found(&one.ask(&key, b"flight:full").await.unwrap()));
        assert!(matches!(one.ask(&answer_key(CacheKey::of(b"new")), b"flight:full").await, Ok(Told::Odd)));
    }

    #[test]
    fn three_quarters_are_enough_for_answers() {
        let info =
            |used, most| format!("# Memory\r\nused_memory:{used}\r\nused_memory_human:1K\r\nmaxmemory:{most}\r\n");
        assert!(has_room(&info(999_999, 0)) && has_room(&info(74, 100)) && !has_room(&info(75, 100)));
    }
}
