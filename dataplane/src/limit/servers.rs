//! The servers behind the region's buckets: one, or the nodes of a cluster, each with its own clock and its own failures.

use super::clock::{ServerTime, Vouch};
use super::memory::Memory;
use super::reach::{Reach, Region};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Slots of a Redis cluster.
pub(crate) const SLOTS: u16 = 16_384;

/// One server; what the request path needs of it is in atomics.
#[derive(Debug)]
pub(crate) struct Server {
    region: Mutex<Region>,
    /// 0: it can be reached.
    alone_since_ns: AtomicU64,
    edges: AtomicU32,
    least_edges: u32,
    /// For the only server; those of a cluster are not remembered.
    memory: Option<Memory>,
    run: Mutex<String>,
}

impl Server {
    fn new(edges: u32, now_ns: u64, memory: Option<Memory>) -> Self {
        Self {
            memory,
            run: Mutex::default(),
            region: Mutex::new(Region::new(edges, now_ns)),
            alone_since_ns: AtomicU64::new(now_ns.max(1)),
            edges: AtomicU32::new(edges.max(1)),
            least_edges: edges.max(1),
        }
    }

    /// For [`super::share::Share::take`].
    pub(crate) fn reach(&self) -> Reach {
        let since = self.alone_since_ns.load(Ordering::Acquire);
        Reach { alone_since_ns: (since != 0).then_some(since), edges: self.edges.load(Ordering::Relaxed) }
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.reach().alone_since_ns.is_some()
    }

    pub(crate) fn vouch(&self, now_ns: u64) -> Vouch {
        self.region().vouch(now_ns)
    }

    fn region(&self) -> MutexGuard<'_, Region> {
        self.region.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, with: impl FnOnce(&mut Region)) {
        let mut region = self.region();
        with(&mut region);
        if let Some(memory) = self.memory.as_ref().filter(|_| region.goes_its_own_way()) {
            // The file goes before anything is spent alone, but not under the lock that every ask takes.
            drop(region);
            memory.forget();
            region = self.region();
        }
        let since = region.reach().alone_since_ns.map_or(0, |since| since.max(1));
        self.alone_since_ns.store(since, Ordering::Release);
    }

    fn heard(&self, run: &str, at: ServerTime, sent_ns: u64, received_ns: u64) {
        if let Some(memory) = &self.memory {
            let mut known = self.run.lock().unwrap_or_else(PoisonError::into_inner);
            if *known != run {
                if known.is_empty()
                    && let Some(track) = memory.load(run, received_ns)
                {
                    self.region().resume(track);
                }
                run.clone_into(&mut known);
            }
        }
        self.change(|region| region.heard(at, sent_ns, received_ns));
    }

    /// Keeps what is known for the edge's next life.
    fn remember(&self) {
        let Some(memory) = &self.memory else { return };
        let run = self.run.lock().unwrap_or_else(PoisonError::into_inner).clone();
        memory.save(&run, || self.region().track());
    }

    /// Whether to ask now how it is; then it is taken as asked.
    pub(crate) fn probe_is_due(&self, busy: bool, now_ns: u64) -> bool {
        self.region().probe_is_due(busy, now_ns)
    }

    pub(crate) fn slow(&self, now_ns: u64) {
        self.change(|region| region.slow(now_ns));
    }

    /// It cannot be reached; true if that is news.
    pub(crate) fn failed(&self, now_ns: u64) -> bool {
        let news = !self.is_alone();
        self.change(|region| region.failed(now_ns));
        news
    }
}

/// Which server has which slot, as far as it is known.
#[derive(Debug)]
pub(crate) struct Servers {
    /// Position in `list` by slot; 0 is not known yet. One entry if there is only one server.
    by_slot: Vec<AtomicU32>,
    /// Servers with a slot each to reach them by. The first stands for all that are not known.
    list: ArcSwap<Vec<(u16, Arc<Server>)>>,
    by_run: Mutex<HashMap<String, u32>>,
    tags: Vec<u32>,
    edges: u32,
}

impl Servers {
    pub(crate) fn new(cluster: bool, edges: u32, now_ns: u64, memory: Option<Memory>) -> Self {
        let slots = if cluster { usize::from(SLOTS) } else { 1 };
        Self {
            by_slot: (0..slots).map(|_| AtomicU32::new(0)).collect(),
            list: ArcSwap::from_pointee(vec![(0, Arc::new(Server::new(edges, now_ns, memory.filter(|_| !cluster))))]),
            by_run: Mutex::default(),
            tags: if cluster { tags() } else { Vec::new() },
            edges,
        }
    }

    fn index(&self, slot: u16) -> usize {
        if self.by_slot.len() == 1 { 0 } else { usize::from(slot) }
    }

    /// The server that has a slot.
    pub(crate) fn of(&self, slot: u16) -> Arc<Server> {
        let position = self.by_slot[self.index(slot)].load(Ordering::Acquire);
        Arc::clone(&self.list.load()[position as usize].1)
    }

    /// Whether it is not known yet whose the slot is.
    pub(crate) fn is_unknown(&self, slot: u16) -> bool {
        self.by_slot.len() > 1 && self.by_slot[self.index(slot)].load(Ordering::Acquire) == 0
    }

    /// A server answered for a slot; `run` tells the servers of a cluster apart.
    pub(crate) fn heard(&self, slot: u16, run: &str, at: ServerTime, sent_ns: u64, received_ns: u64) {
        let server = if self.by_slot.len() == 1 { self.of(slot) } else { self.place(slot, run, received_ns) };
        server.heard(run, at, sent_ns, received_ns);
    }

    /// Keeps what is known of the servers for the edge's next life. Writes a file.
    pub(crate) fn remember(&self) {
        self.known().iter().for_each(|(_, server)| server.remember());
    }

    fn place(&self, slot: u16, run: &str, now_ns: u64) -> Arc<Server> {
        let mut by_run = self.by_run.lock().unwrap_or_else(PoisonError::into_inner);
        let position = match by_run.get(run) {
            Some(position) => *position,
            None => {
                let mut list = Vec::clone(&self.list.load());
                let position = u32::try_from(list.len()).unwrap_or(0);
                list.push((slot, Arc::new(Server::new(self.edges, now_ns, None))));
                self.list.store(Arc::new(list));
                by_run.insert(run.to_owned(), position);
                position
            }
        };
        self.by_slot[usize::from(slot)].store(position, Ordering::Release);
        let list = self.list.load();
        // Somebody of the cluster answered: what is not known yet is worth asking.
        list[0].1.change(Region::reachable);
        Arc::clone(&list[position as usize].1)
    }

    /// Servers to probe, each with a slot of its own. One that has lost all its slots is gone.
    pub(crate) fn known(&self) -> Vec<(u16, Arc<Server>)> {
        let list = self.list.load();
        if list.len() == 1 {
            return Vec::clone(&list);
        }
        let has =
            |slot: u16, position: usize| self.by_slot[usize::from(slot)].load(Ordering::Acquire) as usize == position;
        let found = list.iter().enumerate().skip(1).filter_map(|(position, (slot, server))| {
            let slot = if has(*slot, position) { Some(*slot) } else { (0..SLOTS).find(|slot| has(*slot, position)) };
            Some((slot?, Arc::clone(server)))
        });
        found.collect()
    }

    pub(crate) fn any_alone(&self) -> bool {
        self.known().iter().any(|(_, server)| server.is_alone())
    }

    /// So many edges ask the server of a slot, this one included; `only` if no other did lately.
    pub(crate) fn counted(&self, slot: u16, edges: u32, only: bool) {
        let server = self.of(slot);
        server.edges.store(edges.max(server.least_edges), Ordering::Relaxed);
        server.region().is_only(only);
    }

    /// The sentinel's key in a slot.
    pub(crate) fn sentinel(&self, slot: u16) -> String {
        self.within(slot, "turnpike:limits")
    }

    /// The key of the list of edges in a slot.
    pub(crate) fn edges(&self, slot: u16) -> String {
        self.within(slot, "turnpike:edges")
    }

    fn within(&self, slot: u16, name: &str) -> String {
        self.tags.get(usize::from(slot)).map_or_else(|| name.to_owned(), |tag| format!("{name}:{{{tag}}}"))
    }
}

/// The slot of a hash tag: CRC-16/XMODEM, as the Redis cluster specification has it.
pub(crate) fn slot_of(tag: &str) -> u16 {
    let crc = tag.bytes().fold(0_u16, |crc, byte| {
        (0..8)
            .fold(crc ^ (u16::from(byte) << 8), |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 })
    });
    crc % SLOTS
}

/// For each slot a number whose decimal digits fall into it.
fn tags() -> Vec<u32> {
    let mut tags = vec![u32::MAX; usize::from(SLOTS)];
    let mut missing = tags.len();
    for number in 0_u32.. {
        let tag = &mut tags[usize::from(slot_of(&number.to_string()))];
        if *tag == u32::MAX {
            *tag = number;
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
    }
    tags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot_of("123456789"), 0x31c3 % SLOTS);
        assert_eq!(slot_of("foo"), 12_182);
        let servers = Servers::new(true, 1, 1, None);
        for slot in [0, 1, 8_000, SLOTS - 1] {
            let key = servers.sentinel(slot);
            let tag = key.split(['{', '}']).nth(1).unwrap();
            assert_eq!(slot_of(tag), slot, "{key}");
        }
    }

    #[test]
    fn each_server_of_a_cluster_has_its_own_clock_and_failures() {
        let servers = Servers::new(true, 2, 1, None);
        assert!(servers.is_unknown(5));
        servers.heard(5, "a", 1_000_000, 10, 20);
        servers.heard(6, "b", 9_000_000, 10, 20);
        servers.heard(7, "a", 1_000_001, 30, 40);
        assert!(!servers.is_unknown(5) && servers.is_unknown(8));
        assert!(servers.of(6).failed(50));
        assert!(!servers.of(6).failed(60));
        assert!(servers.of(6).is_alone() && !servers.of(7).is_alone());
        assert_eq!(servers.of(5).vouch(40).from, 1_000_000);
        assert_eq!(servers.known().len(), 2);
        // A replica takes over.
        servers.heard(6, "c", 9_000_000, 70, 80);
        let slots: Vec<_> = servers.known().iter().map(|(slot, _)| *slot).collect();
        assert_eq!(slots, [5, 6]);
        servers.heard(5, "c", 9_000_000, 90, 95);
        assert_eq!(servers.known().iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [7, 6]);
    }
}
