//! Runs the ClickHouse engine inside `libchdb.so` as a server process of its own.
//!
//! `turnpike-clickhouse LIBRARY ARGUMENT…` calls the library's copy of `clickhouse-local` with these arguments, among
//! them a file of statements that makes it listen, and then lets it read further statements from a pipe that never says
//! anything: the engine serves until the pipe is closed, which is what SIGTERM and SIGINT do.
//!
//! A program of its own, and the one place in the project with `unsafe` code: a C library is called, and signals must be
//! blocked before its threads start. Whoever starts it sees to it that it ends with them (`turnpike_parts::process`).

#![expect(unsafe_code, reason = "calls a C library and blocks signals before its threads start")]

use libloading::{Library, Symbol};
use std::ffi::{CString, OsString, c_char, c_int};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::os::unix::ffi::OsStringExt as _;

/// `int chdb_query_cmdline(int argc, char ** argv)`: runs clickhouse-local and gives its exit status.
type Run = unsafe extern "C" fn(c_int, *mut *mut c_char) -> c_int;
/// `void chdb_set_signal_handlers_enabled(int)`
type SetSignalHandlers = unsafe extern "C" fn(c_int);

/// What ends the server in good order.
const STOP: [c_int; 2] = [libc::SIGTERM, libc::SIGINT];

fn main() {
    let status = serve().unwrap_or_else(|reason| {
        let _ = writeln!(std::io::stderr(), "turnpike-clickhouse: {reason}");
        1
    });
    // SAFETY: ends the process at once. The library's own clean-up at exit would wait for threads that have no end.
    unsafe { libc::_exit(status) }
}

fn serve() -> Result<c_int, String> {
    let mut arguments = std::env::args_os().skip(1);
    let path = arguments.next().ok_or("usage: turnpike-clickhouse LIBRARY ARGUMENT…")?;
    let stop = block_stop_signals()?;
    // SAFETY: the caller has checked that this is the library we know; its initialisers may run on any thread.
    let library = unsafe { Library::new(&path) }.map_err(|e| format!("loading {}: {e}", path.display()))?;
    // SAFETY: the types are those of the library's header.
    let (run, set_signal_handlers): (Symbol<'_, Run>, Symbol<'_, SetSignalHandlers>) = unsafe {
        let missing = |e| format!("{} is not the expected library: {e}", path.display());
        (
            library.get(b"chdb_query_cmdline\0").map_err(missing)?,
            library.get(b"chdb_set_signal_handlers_enabled\0").map_err(missing)?,
        )
    };
    // SAFETY: called before the engine runs, as the library asks for.
    unsafe { set_signal_handlers(0) };

    let (reader, writer) = std::io::pipe().map_err(|e| format!("making a pipe: {e}"))?;
    let endless = OsString::from(format!("/dev/fd/{}", reader.as_raw_fd()));
    let words = [OsString::from("clickhouse")].into_iter().chain(arguments).chain([endless]);
    let words: Result<Vec<CString>, _> = words.map(|word| CString::new(word.into_vec())).collect();
    let words = words.map_err(|e| format!("an argument holds a NUL: {e}"))?;
    let mut pointers: Vec<*mut c_char> = words.iter().map(|word| word.as_ptr().cast_mut()).collect();
    let count = c_int::try_from(pointers.len()).map_err(|e| e.to_string())?;
    pointers.push(std::ptr::null_mut());

    let writer = writer.into_raw_fd();
    std::thread::spawn(move || {
        wait_for(&stop);
        // SAFETY: this thread alone owns the descriptor.
        unsafe { libc::close(writer) };
    });
    // SAFETY: argv is an array of `count` NUL-terminated strings and a null pointer, all of which outlive the call.
    Ok(unsafe { run(count, pointers.as_mut_ptr()) })
}

/// From now on, the signals that stop us wait until they are asked for, in every thread that is started later.
fn block_stop_signals() -> Result<libc::sigset_t, String> {
    // SAFETY: a signal set is plain memory that sigemptyset fills; all pointers are to it.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in STOP {
            libc::sigaddset(&raw mut set, signal);
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => Ok(set),
            error => Err(format!("blocking signals: {}", std::io::Error::from_raw_os_error(error))),
        }
    }
}

/// Waits for one of these signals.
fn wait_for(signals: &libc::sigset_t) {
    let mut received = 0;
    // SAFETY: both pointers are to live memory. An error is a signal set gone wrong, which ends the server too.
    unsafe { libc::sigwait(signals, &raw mut received) };
}
