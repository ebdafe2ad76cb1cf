//! Points at which tests let a process die, to see that nothing is lost there. Release builds have none.

/// Dies here, as by SIGKILL: without unwinding, destructors or flushing, if `TURNPIKE_CRASH_AT` is `NAME` or, for the n-th
/// time that the point is passed, `NAME#n`.
#[cfg(debug_assertions)]
pub fn crash_point(name: &str) {
    if is_due(name) {
        std::process::abort();
    }
}

/// Whether the process is to die at this point now; for points that do half of something first.
#[cfg(debug_assertions)]
pub fn is_due(name: &str) -> bool {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    static WANTED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("TURNPIKE_CRASH_AT").ok()?;
        let (point, times) = text.split_once('#').unwrap_or((&text, "1"));
        Some((point.to_owned(), times.parse().ok()?))
    });
    wanted.as_ref().is_some_and(|(point, times)| point == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *times)
}

/// Does nothing: release builds do not die on purpose.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn crash_point(_name: &str) {}

/// Never: release builds do not die on purpose.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn is_due(_name: &str) -> bool {
    false
}
