//! Equal requests at the same time share one answer: the first asks a node, the others listen in.

use crate::cache::answer::{MAX_BODY, StoredAnswer};
use bytes::Bytes;
use foldhash::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use turnpike_config::CacheKey;

/// Locks that keys are spread over, so that requests that have nothing in common seldom wait for each other.
const SHARDS: usize = 64;

type Shard = Mutex<HashMap<CacheKey, Arc<Flight>>>;

/// The answers that are being made now.
#[derive(Debug)]
pub(crate) struct Flights {
    shards: [Shard; SHARDS],
}

/// What a request is to its equals.
#[derive(Debug)]
pub(crate) enum Join {
    /// The first: it asks a node. An answer may have been kept since it last looked, so it looks again.
    Leader(LeaderGuard),
    /// One of the others: it gets what the leader gets.
    Follower(Follower),
}

/// What a follower learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FlightEvent {
    /// The next bytes of a stream, from its beginning.
    Streamed(Bytes),
    /// The answer is there as a whole; of a stream, every byte has come before.
    Done(Arc<StoredAnswer>),
    /// The answer is over, but it is none to keep: who has had its bytes has had all of them.
    Over,
    /// The leader gave up: who has had no bytes joins again, and one of them leads.
    Failed,
}

/// One answer in the making.
#[derive(Debug, Default)]
struct Flight {
    /// When the leader asked, Unix milliseconds.
    asked_at_ms: u64,
    state: Mutex<State>,
    changed: Notify,
    followers: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the answer comes in events that followers may pass on one by one.
    streamed: bool,
    pieces: Vec<Bytes>,
    /// Together, bytes.
    length: usize,
    end: Option<End>,
}

#[derive(Clone, Debug)]
enum End {
    Done(Arc<StoredAnswer>),
    Over,
    Failed,
}

impl Default for Flights {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Shard::default()) }
    }
}

impl Flights {
    /// Takes part in the flight of this key, or begins it. `now_ms`: Unix milliseconds.
    pub(crate) fn join(self: &Arc<Self>, key: CacheKey, now_ms: u64) -> Join {
        match lock(self.shard(&key)).entry(key) {
            Entry::Occupied(entry) => {
                let flight = Arc::clone(entry.get());
                flight.followers.fetch_add(1, Ordering::Relaxed);
                Join::Follower(Follower { flight, next: 0 })
            }
            Entry::Vacant(entry) => {
                let flight = Arc::new(Flight { asked_at_ms: now_ms, ..Flight::default() });
                entry.insert(Arc::clone(&flight));
                Join::Leader(LeaderGuard { flights: Arc::clone(self), key, flight })
            }
        }
    }

    /// Answers that are being made now.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    fn shard(&self, key: &CacheKey) -> &Shard {
        let CacheKey([first, ..]) = *key;
        &self.shards[usize::from(first) % SHARDS]
    }

    /// Takes a flight out, unless the key has a newer one.
    fn remove(&self, key: &CacheKey, flight: &Arc<Flight>) {
        let mut shard = lock(self.shard(key));
        if shard.get(key).is_some_and(|other| Arc::ptr_eq(other, flight)) {
            shard.remove(key);
        }
    }
}

/// A poisoned lock is as good as any: what it guards is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the answer. Dropped without [`LeaderGuard::finish`], it fails the flight.
#[derive(Debug)]
pub(crate) struct LeaderGuard {
    flights: Arc<Flights>,
    key: CacheKey,
    flight: Arc<Flight>,
}

impl LeaderGuard {
    /// The answer comes as a stream, whose pieces followers may have as they come. Before any [`LeaderGuard::push`].
    pub(crate) fn stream(&mut self) {
        lock(&self.flight.state).streamed = true;
    }

    /// The next bytes of a stream, however cut; nothing happens if it is none. A stream larger than [`MAX_BODY`] is not shared: the flight fails.
    pub(crate) fn push(&mut self, piece: Bytes) {
        let mut state = lock(&self.flight.state);
        if piece.is_empty() || state.end.is_some() || !state.streamed {
            return;
        }
        state.length += piece.len();
        if state.length > MAX_BODY {
            drop(state);
            self.end(End::Failed);
            return;
        }
        state.pieces.push(piece);
        drop(state);
        self.flight.changed.notify_waiters();
    }

    /// The answer is there. Keep it first: who joins from now on begins a new flight.
    pub(crate) fn finish(self, answer: Arc<StoredAnswer>) {
        self.end(End::Done(answer));
    }

    /// The answer is over and whole, but it is none to keep.
    pub(crate) fn over(self) {
        self.end(End::Over);
    }

    /// Those who wait for the answer beside the leader's own client.
    pub(crate) fn audience(&self) -> Audience {
        Audience(Arc::clone(&self.flight))
    }

    /// The first end counts. The flight leaves the map before followers hear of it, so that one that joins again does not
    /// meet it.
    fn end(&self, end: End) {
        self.flights.remove(&self.key, &self.flight);
        lock(&self.flight.state).end.get_or_insert(end);
        self.flight.changed.notify_waiters();
    }
}

impl Drop for LeaderGuard {
    fn drop(&mut self) {
        self.end(End::Failed);
    }
}

impl State {
    /// What a follower that has had `next` pieces learns now.
    fn event(&self, next: usize) -> Option<FlightEvent> {
        if let Some(piece) = self.pieces.get(next) {
            return Some(FlightEvent::Streamed(piece.clone()));
        }
        match self.end.clone()? {
            End::Done(answer) => Some(FlightEvent::Done(answer)),
            End::Over => Some(FlightEvent::Over),
            End::Failed => Some(FlightEvent::Failed),
        }
    }
}

/// The followers of a flight.
#[derive(Clone, Debug)]
pub(crate) struct Audience(Arc<Flight>);

impl Audience {
    /// Whether there are any.
    pub(crate) fn is_listening(&self) -> bool {
        self.0.followers.load(Ordering::Relaxed) > 0
    }
}

/// Listens in on a flight.
#[derive(Debug)]
pub(crate) struct Follower {
    flight: Arc<Flight>,
    /// The piece to get next.
    next: usize,
}

impl Follower {
    /// Waits for what comes next. Dropping the future loses nothing. After `Done` or `Failed`, the same again.
    pub(crate) async fn next(&mut self) -> FlightEvent {
        let flight = Arc::clone(&self.flight);
        loop {
            // Made before looking, so that no change between the look and the wait is missed.
            let changed = flight.changed.notified();
            if let Some(event) = self.poll() {
                return event;
            }
            changed.await;
        }
    }

    /// When the leader asked, Unix milliseconds.
    pub(crate) fn asked_at_ms(&self) -> u64 {
        self.flight.asked_at_ms
    }

    fn poll(&mut self) -> Option<FlightEvent> {
        let event = lock(&self.flight.state).event(self.next);
        self.next += usize::from(matches!(event, Some(FlightEvent::Streamed(_))));
        event
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.flight.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key() -> CacheKey {
        CacheKey::of(b"key")
    }

    fn answer(body: &'static str) -> Arc<StoredAnswer> {
        let body = Bytes::from_static(body.as_bytes());
        Arc::new(StoredAnswer { stored_at_ms: 1, streamed: true, prompt_tokens: 1, completion_tokens: 1, body })
    }

    fn lead(flights: &Arc<Flights>) -> LeaderGuard {
        match flights.join(key(), 0) {
            Join::Leader(leader) => leader,
            Join::Follower(_) => panic!("somebody leads"),
        }
    }

    fn follow(flights: &Arc<Flights>) -> Follower {
        match flights.join(key(), 0) {
            Join::Leader(_) => panic!("nobody leads"),
            Join::Follower(follower) => follower,
        }
    }

    #[tokio::test]
    async fn a_late_follower_gets_everything() {
        let flights = Arc::new(Flights::default());
        let mut leader = lead(&flights);
        leader.stream();
        let mut early = follow(&flights);
        leader.push(Bytes::from_static(b"a"));
        assert_eq!(early.next().await, FlightEvent::Streamed(Bytes::from_static(b"a")));
        leader.push(Bytes::from_static(b"b"));
        let mut late = follow(&flights);
        leader.finish(answer("ab"));
        for follower in [&mut early, &mut late] {
            let mut seen = Vec::new();
            while let FlightEvent::Streamed(piece) = follower.next().await {
                seen.extend_from_slice(&piece);
            }
            assert!(seen == b"b" || seen == b"ab");
            assert_eq!(follower.next().await, FlightEvent::Done(answer("ab")));
        }
        assert_eq!(flights.len(), 0);
        drop(lead(&flights));
    }

    #[tokio::test]
    async fn an_answer_that_is_none_to_keep_is_over_all_the_same() {
        let flights = Arc::new(Flights::default());
        let mut leader = match flights.join(key(), 7) {
            Join::Leader(leader) => leader,
            Join::Follower(_) => panic!("somebody leads"),
        };
        leader.stream();
        let mut follower = follow(&flights);
        assert_eq!(follower.asked_at_ms(), 7);
        leader.push(Bytes::from_static(b"a"));
        leader.over();
        assert_eq!(follower.next().await, FlightEvent::Streamed(Bytes::from_static(b"a")));
        assert_eq!(follower.next().await, FlightEvent::Over);
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn followers_of_what_is_not_streamed_get_the_whole() {
        let flights = Arc::new(Flights::default());
        let mut leader = lead(&flights);
        let mut follower = follow(&flights);
        leader.push(Bytes::from_static(b"a"));
        leader.finish(answer("a"));
        assert_eq!(follower.next().await, FlightEvent::Done(answer("a")));
    }

    #[tokio::test]
    async fn a_leader_that_dies_says_whether_bytes_were_out() {
        let flights = Arc::new(Flights::default());
        let mut leader = lead(&flights);
        leader.stream();
        let (mut first, mut second) = (follow(&flights), follow(&flights));
        leader.push(Bytes::from_static(b"a"));
        first.next().await;
        drop(leader);
        assert_eq!(first.next().await, FlightEvent::Failed);
        assert_eq!(second.next().await, FlightEvent::Streamed(Bytes::from_static(b"a")));
        assert_eq!(second.next().await, FlightEvent::Failed);
        drop(lead(&flights));
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn a_stream_without_end_is_not_held() {
        let flights = Arc::new(Flights::default());
        let mut leader = lead(&flights);
        leader.stream();
        let mut follower = follow(&flights);
        let piece = Bytes::from(vec![b'x'; MAX_BODY / 2]);
        (0..3).for_each(|_| leader.push(piece.clone()));
        assert_eq!(flights.len(), 0);
        let next = lead(&flights);
        leader.finish(answer("x"));
        assert_eq!(flights.len(), 1);
        (0..2).for_each(|_| assert!(matches!(follower.poll(), Some(FlightEvent::Streamed(_)))));
        assert_eq!(follower.next().await, FlightEvent::Failed);
        drop(next);
    }

    #[test]
    fn followers_that_left_do_not_count() {
        let flights = Arc::new(Flights::default());
        let leader = lead(&flights);
        assert!(!leader.audience().is_listening());
        let (first, second) = (follow(&flights), follow(&flights));
        drop(first);
        assert!(leader.audience().is_listening());
        drop(second);
        assert!(!leader.audience().is_listening());
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_nothing() {
        let flights = Arc::new(Flights::default());
        let mut leader = lead(&flights);
        leader.stream();
        let mut follower = follow(&flights);
        let waited = tokio::time::timeout(Duration::from_millis(5), follower.next()).await;
        assert!(waited.is_err());
        leader.push(Bytes::from_static(b"a"));
        assert_eq!(follower.next().await, FlightEvent::Streamed(Bytes::from_static(b"a")));
    }

    const REQUESTS: usize = 1_000;

    /// Leaders still to die, and how many lead now.
    #[derive(Debug, Default)]
    struct Fate {
        deaths: AtomicUsize,
        dead: AtomicUsize,
        leading: AtomicUsize,
    }

    impl Fate {
        fn strikes(&self) -> bool {
            let left = self.deaths.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            self.dead.fetch_add(usize::from(left.is_ok()), Ordering::SeqCst);
            left.is_ok()
        }
    }

    /// A request as the proxy runs it. Answers how often it led and what it got.
    async fn request(flights: Arc<Flights>, fate: Arc<Fate>) -> (usize, Vec<u8>) {
        let mut led = 0;
        loop {
            let mut follower = match flights.join(key(), 0) {
                Join::Leader(mut leader) => {
                    led += 1;
                    assert_eq!(fate.leading.fetch_add(1, Ordering::SeqCst), 0, "two lead at once");
                    let others = REQUESTS - 1 - fate.dead.load(Ordering::SeqCst);
                    while leader.flight.followers.load(Ordering::SeqCst) < others {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    fate.leading.fetch_sub(1, Ordering::SeqCst);
                    if fate.strikes() {
                        return (led, Vec::new());
                    }
                    leader.stream();
                    leader.push(Bytes::from_static(b"x"));
                    leader.finish(answer("x"));
                    return (led, b"x".to_vec());
                }
                Join::Follower(follower) => follower,
            };
            let mut got = Vec::new();
            loop {
                match follower.next().await {
                    FlightEvent::Streamed(piece) => got.extend_from_slice(&piece),
                    FlightEvent::Done(answer) => {
                        assert_eq!(answer.body, got);
                        return (led, got);
                    }
                    FlightEvent::Failed => break,
                    FlightEvent::Over => panic!("over"),
                }
            }
        }
    }

    async fn run_thousand(deaths: usize) {
        let flights = Arc::new(Flights::default());
        let fate = Arc::new(Fate { deaths: AtomicUsize::new(deaths), ..Fate::default() });
        let start = |_| tokio::spawn(request(Arc::clone(&flights), Arc::clone(&fate)));
        let tasks: Vec<_> = (0..REQUESTS).map(start).collect();
        let (mut led, mut answered) = (0, 0);
        for task in tasks {
            let (times, got) = task.await.unwrap();
            led += times;
            answered += usize::from(got == b"x");
        }
        assert_eq!((led, answered), (deaths + 1, REQUESTS - deaths));
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_a_thousand_equal_requests_one_leads() {
        run_thousand(0).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn when_a_leader_dies_exactly_one_other_leads() {
        run_thousand(3).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_piece_is_lost_or_out_of_order() {
        const PIECES: u32 = 400;
        for round in 0..20_u64 {
            let flights = Arc::new(Flights::default());
            let mut leader = lead(&flights);
            let listen = |flights: &Arc<Flights>| {
                let mut follower = follow(flights);
                tokio::spawn(async move {
                    let mut expected = 0_u32;
                    loop {
                        match follower.next().await {
                            FlightEvent::Streamed(piece) => assert_eq!(piece[..], expected.to_be_bytes()),
                            FlightEvent::Done(_) => return expected,
                            other => panic!("{other:?}"),
                        }
                        expected += 1;
                    }
                })
            };
            let mut followers = vec![listen(&flights)];
            leader.stream();
            for n in 0..PIECES {
                leader.push(Bytes::copy_from_slice(&n.to_be_bytes()));
                if n % 13 == 0 {
                    followers.push(listen(&flights));
                }
                if (u64::from(n) + round) % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            leader.finish(answer("all"));
            for follower in followers {
                assert_eq!(follower.await.unwrap(), PIECES);
            }
        }
    }
}
