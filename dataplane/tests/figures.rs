//! What many keys cost: bytes in memory, time to start, time to change one. `TURNPIKE_KEYS=1000000 cargo test --release -p
//! turnpike-dataplane --features bench --test figures -- --nocapture` prints the figures of a million.
#![expect(clippy::unwrap_used, reason = "tests fail loudly, and print what they measured")]

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::hint::black_box;
use std::time::{Duration, Instant};
use turnpike_config::{KeyDigest, RateLimits};
use turnpike_dataplane::bench::{Large, key};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that are held since a region began.
fn held(region: &Region<'_, System>) -> i64 {
    let change = region.change();
    i64::try_from(change.bytes_allocated).unwrap() - i64::try_from(change.bytes_deallocated).unwrap()
}

fn each(times: u32, mut what: impl FnMut(u32)) -> Duration {
    let began = Instant::now();
    (0..times).for_each(&mut what);
    began.elapsed() / times
}

// One test, so that nothing else allocates meanwhile.
#[test]
fn many_keys_cost_little() {
    let keys: u32 = std::env::var("TURNPIKE_KEYS").map_or(200_000, |keys| keys.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let region = Region::new(ALLOCATOR);
    let mut large = Large::fetched(keys).unwrap();
    large.keep(directory.path()).unwrap();
    // The thread that kept it may take a moment to let go.
    let deadline = Instant::now() + Duration::from_secs(20);
    let limit = 48 * i64::from(keys) + (1 << 20);
    while held(&region) > limit && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let bytes = held(&region);
    let each_key = bytes * 100 / i64::from(keys);
    println!("{keys} keys: {}.{:02} bytes each, with all else that is served by", each_key / 100, each_key % 100);
    assert!(bytes <= limit, "{bytes} bytes");
    assert_eq!(large.len(), keys as usize);

    let began = Instant::now();
    let restarted = Large::restarted(directory.path()).unwrap();
    let restart = began.elapsed();
    assert_eq!(restarted.len(), keys as usize);
    println!("started from disk in {restart:?}");
    drop(restarted);

    let mut changed = key(7);
    let change = each(500, |n| {
        changed.limits = RateLimits { requests_per_minute: Some(1 + n), ..changed.limits };
        large.change(changed.clone()).unwrap();
    });
    println!("one key changed in {change:?}");
    let digests: Vec<KeyDigest> = (0..1_000).map(|n| key(n * (keys / 1_000)).digest).collect();
    let first = each(1_000, |n| assert!(black_box(large.find(&digests[n as usize]))));
    let again = each(100_000, |n| assert!(black_box(large.find(&digests[n as usize % 1_000]))));
    println!("a key is found in {first:?} when it is used first, in {again:?} later");
    let began = Instant::now();
    for n in 0..=(1_024 + keys / 1_024) {
        large.change(key(keys + n)).unwrap();
    }
    let added = began.elapsed();
    let began = Instant::now();
    assert!(large.tidy());
    println!("{} keys added in {added:?}, packed in {:?}", 1_025 + keys / 1_024, began.elapsed());
    assert!(change < Duration::from_millis(5), "{change:?}: it must not depend on how many keys there are");

    // Ten million keys are refused before they are in memory.
    if keys >= 1_000_000 {
        let reason = Large::fetched(4_000_001).err().unwrap_or_default();
        assert!(reason.contains("more than 4000000 keys"), "{reason}");
    }
}
