//! Which Redis programs to run.

use super::Error;
use crate::process;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Oldest major version whose programs understand all we ask of them (`redis-cli -e` is the newest of it).
pub(super) const MIN_VERSION: u32 = 7;

/// The machine's own programs.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    server: PathBuf,
    cli: PathBuf,
}

impl Programs {
    /// On PATH, else in `/usr/bin`.
    pub(super) fn find() -> Result<Self, Error> {
        let (server, cli) = (find("redis-server")?, find("redis-cli")?);
        for program in [&server, &cli] {
            check_version(program)?;
        }
        Ok(Self { server, cli })
    }

    pub(super) fn server(&self) -> &Path {
        &self.server
    }

    pub(super) fn cli(&self) -> &Path {
        &self.cli
    }
}

fn find(program: &'static str) -> Result<PathBuf, Error> {
    process::find_program(&[program]).ok_or(Error::NotFound(program))
}

fn check_version(program: &Path) -> Result<(), Error> {
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(Error::io(format!("running {}", program.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if major_version(&text).is_some_and(|major| major >= MIN_VERSION) {
        return Ok(());
    }
    Err(Error::TooOld { program: program.display().to_string(), found: text.trim().to_owned() })
}

/// `Redis server v=7.0.15 sha=…` or `redis-cli 7.0.15` → 7
fn major_version(text: &str) -> Option<u32> {
    let mut words = text.split_whitespace();
    let number = words.find_map(|word| {
        let word = word.strip_prefix("v=").unwrap_or(word);
        word.starts_with(|c: char| c.is_ascii_digit()).then_some(word)
    })?;
    number.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_programs_print() {
        assert_eq!(major_version("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64"), Some(7));
        assert_eq!(major_version("redis-cli 6.0.16 (git:0)"), Some(6));
        assert_eq!(major_version("something else"), None);
    }

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let message = find("redis-no-such-program").unwrap_err().to_string();
        assert!(message.contains("redis-no-such-program") && message.contains("apt-get install redis-server"));
    }
}
