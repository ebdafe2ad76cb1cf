//! Lives of a ledger on a real disk. A life is killed by going on with a copy of its files as they were.

use super::files::{Position, list};
use super::record::SIZE;
use super::*;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use tempfile::TempDir;
use uuid::Uuid;

const COUNTED: LedgerState = LedgerState::Counted;

/// A ledger with a clock of its own.
struct Life {
    ledger: Ledger,
    directory: PathBuf,
    hour: Arc<AtomicU64>,
}

impl Life {
    fn start_with(directory: &Path, hour: u64, max_bytes: u64) -> Self {
        let hour = Arc::new(AtomicU64::new(hour));
        let now = Arc::clone(&hour);
        let options = Options {
            directory: directory.to_owned(),
            keep: Duration::from_secs(72 * 3600),
            max_bytes,
            clock: Box::new(move || now.load(Ordering::Relaxed) * 3_600_000),
        };
        Self { ledger: Ledger::open(options).unwrap(), directory: directory.to_owned(), hour }
    }

    fn start(directory: &Path, hour: u64) -> Self {
        Self::start_with(directory, hour, u64::MAX)
    }

    fn set_hour(&self, hour: u64) {
        self.hour.store(hour, Ordering::Relaxed);
    }

    /// Goes on from its files as they are now, as if it had been killed.
    fn killed(self, hour: u64) -> (Self, TempDir) {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&self.directory).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        self.ledger.close();
        (Self::start(copy.path(), hour), copy)
    }

    async fn begin(&self, event: EventId) -> Recording {
        self.ledger.begin(event).await.unwrap()
    }

    async fn whole(&self, event: EventId, completion: u32) {
        self.begin(event).await.end(COUNTED, tokens(completion)).await.unwrap();
    }

    async fn state(&self, event: EventId) -> Option<(LedgerState, u32)> {
        self.ledger.find(event).await.unwrap().map(|found| (found.state, found.tokens.completion))
    }

    fn files(&self) -> Vec<u64> {
        list(&self.directory).unwrap().into_iter().map(|file| file.hour.into()).collect()
    }

    fn forget_memory(&self) {
        *self.ledger.shared.index() = Index::default();
    }

    fn set_shipped(&self) {
        let end = self.ledger.shared.written.load(Ordering::Relaxed);
        self.ledger.shared.shipped.store(end, Ordering::Relaxed);
    }
}

fn tokens(completion: u32) -> Tokens {
    Tokens { prompt: 7, cached: 0, completion }
}

/// The id of an event of that hour.
fn event_of(hour: u64) -> EventId {
    let seconds = hour * 3600 + 1;
    EventId(Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0)))
}

#[tokio::test]
async fn what_was_begun_and_ended_is_known_in_this_life_and_the_next() {
    let home = tempfile::tempdir().unwrap();
    let (done, left) = (event_of(100), event_of(100));
    let life = Life::start(home.path(), 100);
    assert_eq!(life.state(done).await, None);
    let mut recording = life.begin(done).await;
    assert_eq!(life.state(done).await, Some((LedgerState::Begun, 0)));
    recording.end(COUNTED, tokens(5)).await.unwrap();
    // A second end changes nothing.
    assert!(recording.end(LedgerState::Seen, tokens(9)).await.is_err());
    drop(recording);
    drop(life.begin(left).await);
    life.ledger.close();
    let next = Life::start(home.path(), 100);
    assert_eq!(next.state(done).await, Some((COUNTED, 5)));
    assert_eq!(next.state(left).await, Some((LedgerState::Refused, 0)));
    next.forget_memory();
    assert_eq!(next.state(done).await, Some((COUNTED, 5)));
    assert_eq!(next.state(event_of(100)).await, None);
}

#[tokio::test]
async fn two_processes_cannot_share_a_ledger() {
    let home = tempfile::tempdir().unwrap();
    let _first = Life::start(home.path(), 100);
    let options = Options { directory: home.path().to_owned(), keep: MIN_KEEP, max_bytes: 1, clock: Box::new(|| 0) };
    assert!(Ledger::open(options).unwrap_err().to_string().contains("another process"));
}

#[tokio::test]
async fn a_node_that_was_killed_says_what_it_lost_and_keeps_what_it_had() {
    let home = tempfile::tempdir().unwrap();
    let (done, running, again) = (event_of(100), event_of(100), event_of(100));
    let life = Life::start(home.path(), 100);
    life.whole(done, 5).await;
    let _running = life.begin(running).await;
    life.whole(again, 6).await;
    let _again = life.begin(again).await;
    assert_eq!(life.state(again).await, Some((LedgerState::Begun, 0)));
    let (life, _home) = life.killed(100);
    assert_eq!(life.state(done).await, Some((COUNTED, 5)));
    assert_eq!(life.state(running).await, Some((LedgerState::Lost, 0)));
    assert_eq!(life.state(again).await, Some((COUNTED, 6)));
    // Written down, so that the next life and the control plane know it as well.
    let (life, _home) = life.killed(101);
    life.forget_memory();
    assert_eq!(life.state(running).await, Some((LedgerState::Lost, 0)));
    assert_eq!(life.state(again).await, Some((COUNTED, 6)));
}

#[tokio::test]
async fn what_runs_is_carried_from_hour_to_hour() {
    let home = tempfile::tempdir().unwrap();
    let (long, twice, carried) = (event_of(100), event_of(100), event_of(100));
    let life = Life::start(home.path(), 100);
    let mut held = vec![life.begin(long).await, life.begin(twice).await, life.begin(twice).await];
    let mut ending = life.begin(carried).await;
    for hour in [101, 105, 106] {
        life.set_hour(hour);
        life.whole(event_of(hour), 1).await;
    }
    ending.end(COUNTED, tokens(9)).await.unwrap();
    held.pop();
    assert_eq!(life.files(), [100, 101, 105, 106]);
    let (life, _home) = life.killed(107);
    for event in [long, twice] {
        assert_eq!(life.state(event).await, Some((LedgerState::Lost, 0)));
    }
    assert_eq!(life.state(carried).await, Some((COUNTED, 9)));
}

#[tokio::test]
async fn a_file_torn_at_any_byte_keeps_every_whole_record() {
    let home = tempfile::tempdir().unwrap();
    let events: Vec<EventId> = (0..3).map(|_| event_of(100)).collect();
    let life = Life::start(home.path(), 100);
    for (event, completion) in events.iter().zip(1..) {
        life.whole(*event, completion).await;
    }
    life.ledger.close();
    let file = list(home.path()).unwrap()[0];
    let bytes = std::fs::read(file.path(home.path())).unwrap();
    assert_eq!(bytes.len(), 6 * SIZE);
    for cut in 0..=bytes.len() {
        let torn = tempfile::tempdir().unwrap();
        std::fs::write(file.path(torn.path()), &bytes[..cut]).unwrap();
        let life = Life::start(torn.path(), 100);
        let next = event_of(100);
        life.whole(next, 77).await;
        life.ledger.close();
        let life = Life::start(torn.path(), 100);
        for (n, event) in events.iter().enumerate() {
            let expected = match cut / SIZE {
                whole if whole >= 2 * n + 2 => Some((COUNTED, u32::try_from(n).unwrap() + 1)),
                whole if whole == 2 * n + 1 => Some((LedgerState::Lost, 0)),
                _ => None,
            };
            assert_eq!(life.state(*event).await, expected, "cut at {cut}, event {n}");
        }
        assert_eq!(life.state(next).await, Some((COUNTED, 77)), "cut at {cut}");
        life.ledger.close();
    }
}

#[tokio::test]
async fn a_damaged_record_costs_itself_and_no_other() {
    let home = tempfile::tempdir().unwrap();
    let events = [event_of(100), event_of(100)];
    let life = Life::start(home.path(), 100);
    life.whole(events[0], 1).await;
    life.whole(events[1], 2).await;
    life.ledger.close();
    let path = list(home.path()).unwrap()[0].path(home.path());
    let mut bytes = std::fs::read(&path).unwrap();
    // In the end of the first event.
    bytes[SIZE + 30] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let life = Life::start(home.path(), 100);
    assert_eq!(life.state(events[0]).await, Some((LedgerState::Lost, 0)));
    assert_eq!(life.state(events[1]).await, Some((COUNTED, 2)));
}

#[tokio::test]
async fn events_are_found_in_any_file_also_by_a_clock_that_is_off() {
    let home = tempfile::tempdir().unwrap();
    let life = Life::start(home.path(), 100);
    let mut events = Vec::new();
    // The edges' clocks are a day behind, right, and a day ahead.
    for (hour, completion) in (100..130).zip(1..) {
        life.set_hour(hour);
        for skew in [76, 100, 124] {
            let event = event_of(hour - 100 + skew);
            life.whole(event, completion).await;
            events.push((event, completion));
        }
    }
    life.forget_memory();
    // Twice: once reading which hours are in which file, and once knowing it.
    for _ in 0..2 {
        for (event, completion) in &events {
            assert_eq!(life.state(*event).await, Some((COUNTED, *completion)));
        }
        assert_eq!(life.state(event_of(110)).await, None);
    }
}

#[tokio::test]
async fn what_is_old_and_shipped_is_retired_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let life = Life::start(home.path(), 100);
    let first = event_of(100);
    life.whole(first, 1).await;
    life.set_hour(150);
    life.whole(event_of(150), 1).await;
    // Old, but the control plane does not have it.
    life.set_hour(173);
    life.whole(event_of(173), 1).await;
    assert_eq!(life.files(), [100, 150, 173]);
    life.set_shipped();
    // 72 hours after the end of the first one's hour.
    life.set_hour(174);
    life.whole(event_of(174), 1).await;
    assert_eq!(life.files(), [150, 173, 174]);
    life.forget_memory();
    assert_eq!(life.state(first).await, None);
}

#[tokio::test]
async fn an_old_file_that_cannot_be_removed_keeps_no_other_and_is_tried_again() {
    let home = tempfile::tempdir().unwrap();
    let life = Life::start(home.path(), 100);
    for hour in 100..103 {
        life.set_hour(hour);
        life.whole(event_of(hour), 1).await;
    }
    // In the place of the first is what no file's removal removes.
    let path = list(home.path()).unwrap()[0].path(home.path());
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    life.set_shipped();
    life.set_hour(300);
    life.whole(event_of(300), 1).await;
    assert_eq!(life.files(), [100, 102, 300], "the last one may still be shipped");
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    life.set_shipped();
    life.set_hour(301);
    life.whole(event_of(301), 1).await;
    assert_eq!(life.files(), [300, 301]);
}

#[tokio::test]
async fn what_begins_while_the_files_are_read_runs_and_is_not_lost() {
    let home = tempfile::tempdir().unwrap();
    let life = Life::start(home.path(), 100);
    life.whole(event_of(100), 1).await;
    // The writer has appended it and memory does not have it yet.
    let event = event_of(100);
    let path = list(home.path()).unwrap()[0].path(home.path());
    let mut record = Vec::new();
    Record { event, entry: Entry::Begun }.encode(&mut record);
    let mut file = File::options().append(true).open(&path).unwrap();
    io::Write::write_all(&mut file, &record).unwrap();
    assert_eq!(life.state(event).await, None);

    // Memory was asked, and it begins before the files are.
    let turn = Arc::clone(&life.ledger.shared.lookups).acquire_owned().await.unwrap();
    let later = event_of(100);
    let begins = async {
        let recording = life.begin(later).await;
        drop(turn);
        recording
    };
    let (found, _running) = tokio::join!(biased; life.state(later), begins);
    assert_eq!(found, Some((LedgerState::Begun, 0)));
}

#[tokio::test]
async fn a_full_ledger_refuses_until_there_is_room_and_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let life = Life::start_with(home.path(), 100, 5 * SIZE as u64);
    let (first, second, third) = (event_of(100), event_of(100), event_of(100));
    life.whole(first, 1).await;
    life.set_hour(101);
    let mut running = life.begin(second).await;
    life.begin(third).await.end(COUNTED, tokens(3)).await.unwrap();
    let refused = life.ledger.begin(event_of(101)).await.unwrap_err().to_string();
    assert!(refused.contains("ledger.max_bytes (180) is reached"), "{refused}");
    assert!(life.ledger.trouble().borrow().is_some());
    // What was begun may end.
    running.end(COUNTED, tokens(2)).await.unwrap();
    // Younger than 48 hours: it stays, shipped or not.
    life.set_shipped();
    life.set_hour(148);
    assert!(life.ledger.begin(event_of(148)).await.is_err());
    life.set_hour(149);
    let _room = life.begin(event_of(149)).await;
    assert!(life.ledger.trouble().borrow().is_none());
    life.forget_memory();
    assert_eq!(life.state(first).await, None);
    assert_eq!((life.state(second).await, life.state(third).await), (Some((COUNTED, 2)), Some((COUNTED, 3))));
}

#[tokio::test]
async fn a_disk_that_refuses_stops_requests_until_it_no_longer_does() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("ledger");
    let life = Life::start(&directory, 100);
    let (running, after) = (event_of(100), event_of(101));
    let mut recording = life.begin(running).await;
    // The next hour's file cannot be made.
    let away = home.path().join("away");
    std::fs::rename(&directory, &away).unwrap();
    life.set_hour(101);
    let refused = life.ledger.begin(after).await.unwrap_err().to_string();
    assert!(refused.contains("No such file"), "{refused}");
    assert!(recording.end(COUNTED, tokens(5)).await.is_err(), "the answer is not held up");
    assert_eq!(life.state(running).await, Some((LedgerState::Begun, 0)), "it is not written");

    std::fs::rename(&away, &directory).unwrap();
    let mut trouble = life.ledger.trouble();
    // It finds that out by itself.
    trouble.wait_for(Option::is_none).await.unwrap();
    assert_eq!(life.state(running).await, Some((COUNTED, 5)));
    life.whole(after, 6).await;
    let (life, _home) = life.killed(101);
    assert_eq!((life.state(running).await, life.state(after).await), (Some((COUNTED, 5)), Some((COUNTED, 6))));
}

#[tokio::test]
async fn what_ended_is_read_in_order_from_anywhere_once_it_is_synced() {
    let home = tempfile::tempdir().unwrap();
    let life = Life::start(home.path(), 100);
    let mut events = Vec::new();
    for hour in [100, 100, 101, 103, 103] {
        life.set_hour(hour);
        let event = event_of(hour);
        life.whole(event, 1).await;
        events.push(event);
    }
    let _running = life.begin(event_of(103)).await;
    let end = Position::from_u64(life.ledger.shared.written.load(Ordering::Relaxed));
    let started = Instant::now();
    let mut synced = life.ledger.shared.synced();
    synced.wait_for(|synced| *synced == end).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));

    for most in 1..=6 {
        let (mut read, mut position) = (Vec::new(), Position::default());
        while position < end {
            let (ended, next) = life.ledger.shared.archive.ended(position, end, most).unwrap();
            assert!(ended.len() <= most && next > position);
            read.extend(ended.into_iter().map(|(event, _)| event));
            position = next;
        }
        assert_eq!(read, events, "{most} at once");
    }
}
