//! When to stop: signals, and the end of the process that started us.

use std::io::Read as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Exit status after a second signal, as shells give it for Ctrl-C.
const INTERRUPTED: i32 = 130;

/// SIGXFSZ, by its number on Linux.
const FILE_SIZE_LIMIT: i32 = 25;

/// A token that is cancelled by SIGTERM, SIGINT or SIGHUP; a second signal ends the process at once. Needs a runtime.
pub(crate) fn on_signals() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // A file that has grown to its limit (ulimit -f) is an error like a full disk, and not a death. The handler stays.
    drop(signal(SignalKind::from_raw(FILE_SIZE_LIMIT))?);
    let stop = token.clone();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = hangup.recv() => "SIGHUP",
            };
            if stop.is_cancelled() {
                warn!(signal = name, "second signal: stopping without draining");
                std::process::exit(INTERRUPTED);
            }
            info!(signal = name, "stopping");
            stop.cancel();
        }
    });
    Ok(token)
}

/// Cancels `token` when standard input ends: whoever started us holds its other end, and the kernel closes that end
/// however they die.
pub(crate) fn with_parent(token: CancellationToken) {
    // A thread, for a read of standard input cannot be cancelled and must not hold up the runtime's end.
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while matches!(std::io::stdin().read(&mut buffer), Ok(1..)) {}
        if !token.is_cancelled() {
            token.cancel();
            info!("standard input ended: stopping");
        }
    });
}
