use super::generations::{base_path, generations, log_path};
use super::open::Opened;
use super::*;
use crate::image::Image;
use crate::live::fixtures::{self, at};
use std::path::Path;
use std::time::Duration;
use turnpike_config::{Change, KeyDigest, KeyId, KeyRecord, Routing};
use uuid::Uuid;

/// An edge's files, and what should be in them.
struct Disk {
    directory: tempfile::TempDir,
    expected: Routing,
}

impl Disk {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), expected: Routing::default() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn keeper(&self) -> Keeper {
        open(self.path(), 3).unwrap().keeper
    }

    fn whole(&mut self, keeper: &Keeper, routing: Routing) {
        let mut image = Image::default();
        routing.changes().for_each(|change| image.build(change).unwrap());
        keeper.whole(Base::new(at(routing.version), image.finish()));
        self.expected = routing;
    }

    fn step(&mut self, keeper: &Keeper, changes: Vec<Change>) {
        let from = position(&self.expected);
        changes.iter().cloned().for_each(|change| self.expected.apply(change));
        self.expected.version += 1;
        keeper.step(Record { from, to: at(self.expected.version), changes, early: None });
    }

    /// Starts as after a crash.
    fn found(&self) -> Option<Routing> {
        open(self.path(), 3).unwrap().state.map(|base| routing(&base))
    }

    fn newest(&self) -> u64 {
        *generations(self.path()).unwrap().last().unwrap()
    }
}

fn position(routing: &Routing) -> turnpike_config::log::Position {
    if routing.version == 0 { Default::default() } else { at(routing.version) }
}

fn routing(base: &Base) -> Routing {
    let mut routing = Routing::default();
    base.records.iter().cloned().for_each(|change| routing.apply(change));
    for (index, rest) in base.rests.iter().enumerate() {
        routing.apply(Change::PutKey(base.keys.record(index, *rest).unwrap()));
    }
    routing.version = base.at.version;
    assert_eq!(base.at, position(&routing));
    routing
}

fn key(n: u64) -> KeyRecord {
    let like = fixtures::routing().keys.values().next().unwrap().clone();
    KeyRecord { id: KeyId(Uuid::from_u128(n.into())), digest: KeyDigest::of(&n.to_string()), ..like }
}

fn flush(keeper: &Keeper) {
    keeper.flush(Duration::from_secs(30));
}

#[test]
fn an_edge_starts_by_what_was_pushed_to_it() {
    let mut disk = Disk::new();
    assert_eq!(disk.found(), None);
    let keeper = disk.keeper();
    disk.whole(&keeper, fixtures::routing());
    for n in 0..20 {
        disk.step(&keeper, vec![Change::PutKey(key(n)), Change::DropKey(key(n.wrapping_sub(7)).digest)]);
    }
    flush(&keeper);
    assert_eq!(disk.found().as_ref(), Some(&disk.expected));
    // What is from beyond the position is told apart from it, and over once the position is there.
    for (version, change) in [(25, Change::DropKey(key(19).digest)), (23, Change::DropKey(key(18).digest))] {
        keeper.step(Record { from: at(21), to: at(21), changes: vec![change], early: Some(version) });
    }
    flush(&keeper);
    let opened = open(disk.path(), 3).unwrap();
    assert_eq!(opened.state.as_ref().map(routing).as_ref(), Some(&disk.expected));
    let versions = |opened: &Opened| opened.early.keys().copied().collect::<Vec<_>>();
    assert_eq!(versions(&opened), [23, 25]);
    for _ in 22..=24 {
        disk.step(&keeper, vec![Change::PutKey(key(30))]);
    }
    flush(&keeper);
    let opened = open(disk.path(), 3).unwrap();
    assert_eq!(versions(&opened), [25]);
    // Without a whole state, from nothing.
    let mut disk = Disk::new();
    let keeper = disk.keeper();
    let all = fixtures::routing().changes().collect();
    disk.step(&keeper, all);
    disk.step(&keeper, vec![Change::PutKey(key(1))]);
    flush(&keeper);
    assert_eq!(disk.found().as_ref(), Some(&disk.expected));
}

#[test]
fn a_long_log_becomes_a_new_generation_and_two_are_kept() {
    let mut disk = Disk::new();
    let keeper = disk.keeper();
    disk.whole(&keeper, fixtures::routing());
    flush(&keeper);
    let first = disk.newest();
    for round in 0..80 {
        let changes = (0..500).map(|n| Change::PutKey(key(round % 3 * 500 + n))).collect();
        disk.step(&keeper, changes);
        flush(&keeper);
    }
    flush(&keeper);
    assert!(disk.newest() > first + 1, "generation {}", disk.newest());
    assert_eq!(generations(disk.path()).unwrap().len(), 2);
    assert_eq!(disk.found().as_ref(), Some(&disk.expected));
    // The newest whole state is damaged: the one before and both logs come to the same.
    let path = base_path(disk.path(), disk.newest());
    damage(&path, 5_000);
    assert_eq!(disk.found().as_ref(), Some(&disk.expected));
    assert!(base_path(disk.path(), disk.newest()) != path, "it was written anew");
    assert_eq!(disk.found().as_ref(), Some(&disk.expected));
}

fn damage(path: &Path, place: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let place = place % bytes.len();
    bytes[place] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// Two generations with steps in both, at versions 2 and 5.
fn two_generations() -> (Disk, Routing) {
    let mut disk = Disk::new();
    let keeper = disk.keeper();
    disk.whole(&keeper, fixtures::routing());
    disk.step(&keeper, vec![Change::PutKey(key(1))]);
    let before = disk.expected.clone();
    let mut other = disk.expected.clone();
    other.version = 4;
    other.apply(Change::PutKey(key(2)));
    disk.whole(&keeper, other);
    disk.step(&keeper, vec![Change::PutKey(key(3))]);
    flush(&keeper);
    (disk, before)
}

#[test]
fn damage_costs_no_more_than_it_must_and_is_never_served_by() {
    for place in [0, 9, 20, 60, 150, 400, 700, usize::MAX] {
        let (disk, before) = two_generations();
        damage(&base_path(disk.path(), disk.newest()), place);
        // The second generation did not follow from the first: what was pushed since cannot be known.
        assert_eq!(disk.found().as_ref(), Some(&before), "at {place}");
    }
    for place in [0, 9, 18, 25, 60, usize::MAX] {
        let (disk, _) = two_generations();
        damage(&log_path(disk.path(), disk.newest()), place);
        assert_eq!(disk.found().map(|found| found.version), Some(4), "at {place}");
        assert_eq!(disk.found().map(|found| found.version), Some(4), "at {place}");
    }
    for path in [base_path, log_path] {
        let (disk, _) = two_generations();
        damage(&path(disk.path(), disk.newest() - 1), 30);
        assert_eq!(disk.found().as_ref(), Some(&disk.expected));
        let (disk, _) = two_generations();
        std::fs::remove_file(path(disk.path(), disk.newest())).unwrap();
        assert!(disk.found().is_some_and(|found| [2, 4].contains(&found.version)));
    }
    let (disk, _) = two_generations();
    for generation in generations(disk.path()).unwrap() {
        damage(&base_path(disk.path(), generation), 100);
    }
    assert_eq!(disk.found(), None);
    let mut disk = Disk { expected: Routing::default(), ..disk };
    let keeper = disk.keeper();
    disk.whole(&keeper, fixtures::routing());
    flush(&keeper);
    assert_eq!(disk.found().as_ref(), Some(&disk.expected), "a new one is kept");
}

#[test]
fn a_torn_tail_is_cut_off_wherever_it_is_torn() {
    let length = {
        let (disk, _) = two_generations();
        std::fs::read(log_path(disk.path(), disk.newest())).unwrap().len()
    };
    for torn in (0..length).rev().step_by(9) {
        let (disk, _) = two_generations();
        let path = log_path(disk.path(), disk.newest());
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..torn]).unwrap();
        let opened = open(disk.path(), 3).unwrap();
        assert_eq!(opened.state.map(|base| base.at), Some(at(4)), "{torn} of {length} bytes");
        let changes = vec![Change::PutKey(key(3))];
        opened.keeper.step(Record { from: at(4), to: at(5), changes, early: None });
        flush(&opened.keeper);
        assert_eq!(disk.found().as_ref(), Some(&disk.expected));
    }
}

#[test]
fn an_edge_that_dies_by_a_version_goes_back_one_and_does_not_take_it_again() {
    let mut disk = Disk::new();
    let keeper = disk.keeper();
    disk.whole(&keeper, fixtures::routing());
    disk.step(&keeper, vec![Change::PutKey(key(1))]);
    flush(&keeper);
    let good = disk.expected.clone();
    // Stopped in order, or proven: as often as it likes.
    for _ in 0..5 {
        let opened = open(disk.path(), 3).unwrap();
        assert_eq!(opened.given_up, None);
        opened.keeper.succeeded();
        flush(&opened.keeper);
    }
    let keeper = disk.keeper();
    disk.step(&keeper, vec![Change::PutKey(key(2))]);
    flush(&keeper);
    for death in 1..=3 {
        let opened = open(disk.path(), 3).unwrap();
        assert_eq!((opened.given_up, opened.state.unwrap().at), (None, at(3)), "after {death} deaths");
    }
    let opened = open(disk.path(), 3).unwrap();
    assert_eq!((opened.given_up, opened.distrusted), (Some(at(3)), Some(at(3))));
    assert_eq!(opened.state.map(|base| routing(&base)), Some(good));
    // It stays so, also for a start that goes well, until something newer is served by.
    let opened = open(disk.path(), 3).unwrap();
    assert_eq!((opened.given_up, opened.distrusted), (None, Some(at(3))));
    opened.keeper.succeeded();
    opened.keeper.step(Record { from: at(2), to: at(4), changes: vec![Change::PutKey(key(4))], early: None });
    flush(&opened.keeper);
    let opened = open(disk.path(), 3).unwrap();
    assert_eq!((opened.given_up, opened.distrusted, opened.state.unwrap().at), (None, None, at(4)));
}

#[test]
fn a_deadly_whole_state_is_given_up_for_the_generation_before() {
    let (disk, before) = two_generations();
    let keeper = disk.keeper();
    let mut third = disk.expected.clone();
    third.version = 9;
    let mut disk = disk;
    disk.whole(&keeper, third);
    flush(&keeper);
    let last = |disk: &Disk| {
        (0..3).for_each(|_| drop(open(disk.path(), 3).unwrap()));
        open(disk.path(), 3).unwrap()
    };
    assert_eq!(last(&disk).state.map(|base| base.at), Some(at(5)));
    assert!(before.version < 5);
    // There is nothing before the very first state: that is better than nothing.
    let mut disk = Disk::new();
    let keeper = disk.keeper();
    disk.whole(&keeper, fixtures::routing());
    flush(&keeper);
    let opened = last(&disk);
    assert_eq!((opened.given_up, opened.distrusted, opened.state.map(|base| base.at)), (None, None, Some(at(1))));
}

/// Where a whole state is written first: with something in its way the disk refuses it.
fn in_the_way(disk: &Disk) -> std::path::PathBuf {
    let path = base_path(disk.path(), disk.newest() + 1).with_extension("tmp");
    std::fs::create_dir(&path).unwrap();
    path
}

#[test]
fn a_whole_state_that_the_disk_refuses_is_written_later_with_all_that_followed() {
    for steps in [3, 3_000] {
        let mut disk = Disk::new();
        let keeper = disk.keeper();
        disk.whole(&keeper, fixtures::routing());
        disk.step(&keeper, vec![Change::PutKey(key(1))]);
        flush(&keeper);
        let before = disk.expected.clone();
        let obstacle = in_the_way(&disk);
        let next = Routing { version: 9, ..before.clone() };
        disk.whole(&keeper, next);
        for n in 0..steps {
            disk.step(&keeper, vec![Change::PutKey(key(n % 40)), Change::DropKey(key(n.wrapping_sub(20) % 40).digest)]);
        }
        let last = at(disk.expected.version);
        let early = vec![Change::DropKey(key(3).digest)];
        keeper.step(Record { from: last, to: last, changes: early, early: Some(last.version + 2) });
        flush(&keeper);
        let refused = base_path(disk.path(), disk.newest());
        std::fs::remove_dir(obstacle).unwrap();
        // By itself.
        let began = std::time::Instant::now();
        while !refused.exists() {
            assert!(began.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(5));
        }
        flush(&keeper);
        let opened = open(disk.path(), 3).unwrap();
        assert_eq!(opened.state.as_ref().map(routing).as_ref(), Some(&disk.expected), "after {steps} steps");
        assert_eq!(opened.early.len(), 1);
    }
}

#[test]
fn what_a_full_disk_does_not_take_becomes_a_whole_state_and_is_bounded() {
    let mut disk = Disk::new();
    let keeper = disk.keeper();
    disk.whole(&keeper, fixtures::routing());
    flush(&keeper);
    let log = log::Log::reopen(Path::new("/dev/full"), 0).unwrap();
    let generations = generations::Generations::new(disk.path(), disk.newest(), log, at(1));
    let mut work = keeper::Work::new(generations, starts::Starts::read(disk.path()));
    for n in 0..2_500 {
        let (from, changes) = (position(&disk.expected), vec![Change::PutKey(key(n))]);
        changes.iter().cloned().for_each(|change| disk.expected.apply(change));
        disk.expected.version += 1;
        work.step(Record { from, to: at(disk.expected.version), changes, early: None });
        assert!(work.unwritten.len() < queue::WAITING);
    }
    // Its end is its last try: the whole state goes elsewhere than the log.
    let queue = queue::Queue::default();
    queue.close();
    work.run(&queue);
    assert_eq!(disk.found().as_ref(), Some(&disk.expected));
}

#[test]
fn a_state_on_disk_that_cannot_be_served_by_gives_way_to_one_from_nothing() {
    let mut disk = Disk::new();
    let keeper = disk.keeper();
    disk.whole(&keeper, fixtures::routing());
    disk.step(&keeper, vec![Change::PutKey(key(1))]);
    flush(&keeper);
    disk.expected = Routing::default();
    disk.step(&keeper, fixtures::routing().changes().collect());
    disk.step(&keeper, vec![Change::PutKey(key(2))]);
    flush(&keeper);
    assert_eq!(disk.found().as_ref(), Some(&disk.expected));
}
