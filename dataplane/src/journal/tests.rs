//! The journal as its users see it, over several lives.

use super::reader::Batch;
use super::record::{self, Record};
use super::segment::fixtures::{event, intent};
use super::{Journal, JournalError, Opened, Reader, Written, segment};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;
use turnpike_config::UsageEvent;

fn open(directory: &Path) -> Opened {
    Journal::open(directory, 1 << 30, |_, _| ()).unwrap()
}

fn record(journal: &Journal, event: UsageEvent) {
    drop(journal.permit(event.id.unix_ms()).unwrap().record(event));
}

fn close(opened: Opened) {
    let Opened { journal, orphans, threads } = opened;
    drop((journal, orphans));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Prompt tokens of all that has not been shipped, shipping it.
fn ship_all(directory: &Path) -> Vec<u32> {
    let opened = open(directory);
    let durable = opened.journal.position().borrow().durable;
    let mut reader = Reader::open(&opened.journal).unwrap();
    let (mut found, mut at) = (Vec::new(), reader.position());
    while let Some(Batch { events, first_seq, end_seq }) = reader.next(durable, 3).unwrap() {
        assert_eq!(first_seq, at, "without gaps");
        at = end_seq;
        found.extend(events.iter().map(|event| event.decode().unwrap().prompt_tokens));
        reader.advance(end_seq).unwrap();
    }
    assert_eq!(at, durable);
    drop(reader);
    close(opened);
    found
}

#[test]
fn what_was_recorded_is_read_back_after_a_restart_once() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    (0..10).for_each(|number| record(&opened.journal, event(number)));
    close(opened);
    assert_eq!(ship_all(directory.path()), (0..10).collect::<Vec<_>>());
    assert_eq!(ship_all(directory.path()), Vec::<u32>::new());
}

#[test]
fn a_journal_belongs_to_one_process() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    let second = Journal::open(directory.path(), 1 << 30, |_, _| ()).err().unwrap();
    assert!(matches!(second, JournalError::InUse { .. }), "{second}");
    close(opened);
    close(open(directory.path()));
}

#[tokio::test]
async fn what_was_written_is_in_the_file_and_what_was_flushed_is_durable() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    for number in 1..=100 {
        opened.journal.permit(1).unwrap().record(event(number)).wait().await;
        // Read from the file itself, not from what the writer says of it.
        let path = segment::path(directory.path(), 0);
        let bytes = segment::read_from(&path, opened.journal.epoch(), segment::HEADER, 1 << 20).unwrap();
        assert_eq!(segment::scan_all(&bytes).records.len(), number as usize);
        if number % 10 == 0 {
            opened.journal.flush().await;
            assert_eq!(opened.journal.position().borrow().durable, u64::from(number));
        }
    }
    close(opened);
}

/// Whoever writes, and however often the disk is busy meanwhile.
#[test]
fn records_of_many_threads_are_all_written_each_intent_before_its_event() {
    const EACH: u32 = 3_000;
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    let journal = &opened.journal;
    std::thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                let written = |written: Written| {
                    let waited = async { tokio::time::timeout(Duration::from_secs(30), written.wait()).await };
                    runtime.block_on(waited).unwrap();
                };
                for turn in 0..EACH {
                    let event = event(number * EACH + turn);
                    let permit = journal.permit(event.id.unix_ms()).unwrap();
                    written(permit.intend(intent(&event)).unwrap());
                    written(permit.record(event));
                }
            });
        }
    });
    let epoch = journal.epoch();
    close(opened);
    let mut begun = std::collections::HashSet::new();
    let mut ended = 0;
    for first in segment::list(directory.path()).unwrap() {
        let path = segment::path(directory.path(), first);
        let bytes = segment::read_from(&path, epoch, segment::HEADER, usize::MAX).unwrap();
        for record in segment::scan_all(&bytes).records {
            match record.decode() {
                Some(Record::Intent(intent)) => assert!(begun.insert(intent.id), "once"),
                Some(Record::Final(event)) => {
                    assert!(begun.remove(&event.id), "after its intent");
                    ended += 1;
                }
                _ => {}
            }
        }
    }
    assert_eq!((ended, begun.len()), (8 * EACH, 0));
}

#[test]
fn a_torn_tail_is_cut_and_numbering_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    (0..3).for_each(|number| record(&opened.journal, event(number)));
    close(opened);
    let path = segment::path(directory.path(), 0);
    let length = std::fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 5).unwrap();

    let opened = open(directory.path());
    assert_eq!(opened.journal.position().borrow().durable, 2);
    record(&opened.journal, event(7));
    close(opened);
    assert_eq!(ship_all(directory.path()), [0, 1, 7]);
}

/// What was shipped and is torn off later has had its numbers: what comes next is not taken for it.
#[test]
fn numbers_that_were_shipped_are_not_given_again() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    (0..3).for_each(|number| record(&opened.journal, event(number)));
    close(opened);
    assert_eq!(ship_all(directory.path()), [0, 1, 2]);
    let path = segment::path(directory.path(), 0);
    let length = std::fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 5).unwrap();
    let opened = open(directory.path());
    record(&opened.journal, event(7));
    close(opened);
    assert_eq!(ship_all(directory.path()), [7]);
}

/// A crash between making a segment and carrying over what earlier ones must not take with them.
#[test]
fn a_segment_that_carries_nothing_yet_is_made_up_for() {
    for length in [0, segment::HEADER] {
        let directory = tempfile::tempdir().unwrap();
        let opened = open(directory.path());
        let lost = event(1);
        let permit = opened.journal.permit(lost.id.unix_ms()).unwrap();
        drop(permit.intend(intent(&lost)).unwrap());
        record(&opened.journal, event(2));
        let epoch = opened.journal.epoch();
        drop(permit);
        close(opened);
        let header = segment::header(epoch, 2);
        let next = segment::path(directory.path(), 2);
        std::fs::write(&next, &header[..usize::try_from(length).unwrap()]).unwrap();
        close(open(directory.path()));
        // All that was written so far is shipped, and gone.
        assert_eq!(ship_all(directory.path()), [2]);
        let opened = open(directory.path());
        record(&opened.journal, event(3));
        close(opened);
        assert_eq!(ship_all(directory.path()), [3]);
        assert_eq!(segment::list(directory.path()).unwrap(), [2]);
        let opened = open(directory.path());
        assert_eq!(opened.orphans.iter().map(|(intent, _)| intent.id).collect::<Vec<_>>(), [lost.id], "{length}");
        assert_eq!(opened.journal.counts().days().map(|day| day.requests).sum::<u64>(), 2);
        close(opened);
    }
}

/// A request that ends without an event, once a node was asked, is for the next life: until then nothing is complete.
#[test]
fn a_permit_that_is_dropped_after_an_intent_holds_the_books() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    let lost = event(1);
    let began = lost.id.unix_ms();
    drop(opened.journal.permit(began).unwrap());
    assert!(opened.journal.ended_before().is_some(), "no node was asked");
    let permit = opened.journal.permit(began).unwrap();
    drop(permit.intend(intent(&lost)).unwrap());
    drop(permit);
    assert_eq!(opened.journal.ended_before(), None);
    assert!(opened.journal.began_to(began + 3_600_000) <= began);
    close(opened);
}

#[test]
fn an_intent_without_an_event_is_an_orphan_until_it_has_one() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    let (finished, lost) = (event(1), event(2));
    for event in [&finished, &lost] {
        let permit = opened.journal.permit(event.id.unix_ms()).unwrap();
        drop(permit.intend(intent(event)).unwrap());
        if event == &finished {
            drop(permit.record(event.clone()));
        }
    }
    close(opened);
    for _ in 0..2 {
        let opened = open(directory.path());
        assert_eq!(opened.orphans.iter().map(|(intent, _)| intent.id).collect::<Vec<_>>(), [lost.id]);
        assert_eq!(opened.journal.ended_before(), None, "nobody takes usage for complete");
        let began = lost.id.unix_ms();
        assert!(opened.journal.began_to(began + 3_600_000) <= began);
        close(opened);
    }
    let Opened { journal, mut orphans, threads } = open(directory.path());
    let (_, permit) = orphans.pop().unwrap();
    drop(permit.record(lost));
    assert!(journal.ended_before().is_some());
    drop(journal);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let opened = open(directory.path());
    assert!(opened.orphans.is_empty());
    close(opened);
    assert_eq!(ship_all(directory.path()), [1, 2]);
}

#[tokio::test]
async fn requests_of_an_earlier_life_hold_the_books_open_even_if_there_are_more_than_slots() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    let lost = 40_000;
    for number in 0..lost {
        let event = event(number);
        let permit = opened.journal.permit(event.id.unix_ms()).unwrap();
        let written = permit.intend(intent(&event)).unwrap();
        if number % 1_000 == 999 {
            written.wait().await;
        }
    }
    close(opened);
    let Opened { journal, orphans, threads } = open(directory.path());
    let handled = orphans.len();
    assert!(handled < lost as usize, "{handled} at once");
    for (lost, permit) in orphans {
        drop(permit.record(UsageEvent { id: lost.id, ..event(1) }));
    }
    assert_eq!(journal.ended_before(), None, "of the others nobody knows yet");
    journal.flush().await;
    drop(journal);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let opened = open(directory.path());
    assert_eq!(opened.orphans.len(), lost as usize - handled);
    close(opened);
}

/// Fills several segments, with one request running all the time.
#[test]
fn intents_and_counts_outlive_the_segments_they_were_written_in() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    let long = event(0);
    let running = opened.journal.permit(long.id.unix_ms()).unwrap();
    drop(running.intend(intent(&long)).unwrap());
    let mut padded = event(1);
    padded.error_message = Some("x".repeat(20_000));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for number in 0..2_000 {
        record(&opened.journal, UsageEvent { id: event(1).id, ..padded.clone() });
        if number % 100 == 0 {
            runtime.block_on(opened.journal.flush());
        }
    }
    runtime.block_on(opened.journal.flush());
    let counted: Vec<_> = opened.journal.counts().days().copied().collect();
    assert_eq!(counted.iter().map(|day| day.requests).sum::<u64>(), 2_000);
    drop(running);
    close(opened);
    assert!(segment::list(directory.path()).unwrap().len() > 2);
    assert_eq!(ship_all(directory.path()).len(), 2_000);
    assert_eq!(segment::list(directory.path()).unwrap().len(), 1, "what was shipped is gone");

    let opened = open(directory.path());
    assert_eq!(opened.orphans.iter().map(|(intent, _)| intent.id).collect::<Vec<_>>(), [long.id]);
    assert_eq!(opened.journal.counts().days().copied().collect::<Vec<_>>(), counted);
    close(opened);
}

#[test]
fn damage_inside_costs_the_records_it_hits_and_their_requests_are_orphans() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    let events: Vec<_> = (0..3).map(event).collect();
    for event in &events {
        let permit = opened.journal.permit(event.id.unix_ms()).unwrap();
        drop(permit.intend(intent(event)).unwrap());
        drop(permit.record(event.clone()));
    }
    let epoch = opened.journal.epoch();
    close(opened);
    let path = segment::path(directory.path(), 0);
    let bytes = segment::read_from(&path, epoch, segment::HEADER, usize::MAX).unwrap();
    let before = segment::scan(&bytes, 3, u64::MAX).good_bytes as u64;
    let hit = segment::HEADER + before + 40;
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"?????", hit).unwrap();

    let opened = open(directory.path());
    assert_eq!(opened.orphans.iter().map(|(intent, _)| intent.id).collect::<Vec<_>>(), [events[1].id]);
    assert_eq!(opened.journal.position().borrow().durable, 6, "numbering goes on");
    close(opened);
    assert_eq!(ship_all(directory.path()), [0, 2]);
}

/// What another version wrote and this one cannot read costs itself alone: what follows is shipped.
#[test]
fn a_record_that_cannot_be_read_holds_up_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    record(&opened.journal, event(1));
    close(opened);
    let path = segment::path(directory.path(), 0);
    let mut strange = Vec::new();
    segment::encode_raw(1, record::FINAL, b"from the future", &mut strange);
    let length = std::fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&strange, length).unwrap();
    let opened = open(directory.path());
    assert_eq!(opened.journal.position().borrow().durable, 2, "it has had its number");
    record(&opened.journal, event(3));
    close(opened);
    assert_eq!(ship_all(directory.path()), [1, 3]);
}

#[tokio::test]
async fn a_full_journal_gives_no_permits_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let opened = Journal::open(directory.path(), segment::HEADER + 300, |_, _| ()).unwrap();
    let running = opened.journal.permit(1).unwrap();
    let mut recorded = 0;
    while let Some(permit) = opened.journal.permit(1) {
        permit.record(event(recorded)).wait().await;
        recorded += 1;
    }
    let trouble = opened.journal.trouble().unwrap();
    assert!(trouble.contains("journal.max_bytes"), "{trouble}");
    // What was admitted before is recorded all the same.
    running.record(event(recorded)).wait().await;
    opened.journal.flush().await;
    let mut reader = Reader::open(&opened.journal).unwrap();
    let batch = reader.next(opened.journal.position().borrow().durable, 100).unwrap().unwrap();
    assert_eq!(batch.events.len(), recorded as usize + 1);
    drop(reader);
    close(opened);
}

/// A disk without room for another segment: noticed before requests depend on it, and when it has room again.
#[tokio::test]
async fn a_disk_without_room_is_noticed_ahead() {
    let directory = tempfile::tempdir().unwrap();
    // Where the room for the next segment would lie is something that cannot be written.
    let spare = directory.path().join("spare");
    close(open(directory.path()));
    let _ = std::fs::remove_file(&spare);
    std::fs::create_dir(&spare).unwrap();
    let opened = open(directory.path());
    let mut news = opened.journal.position();
    let deadline = Duration::from_secs(10);
    let wait = |wanted: bool| {
        let journal = opened.journal.clone();
        async move |news: &mut tokio::sync::watch::Receiver<super::Position>| {
            let changed = news.wait_for(|_| journal.trouble().is_some() == wanted);
            tokio::time::timeout(deadline, changed).await.unwrap().unwrap();
        }
    };
    wait(true)(&mut news).await;
    assert!(opened.journal.permit(1).is_none());
    assert!(opened.journal.trouble().unwrap().contains("spare"));
    std::fs::remove_dir(&spare).unwrap();
    wait(false)(&mut news).await;
    assert!(opened.journal.permit(1).is_some());
    close(opened);
}
