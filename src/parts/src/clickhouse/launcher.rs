//! The program that turns the library into a server: found beside this one, or built.

use super::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const NAME: &str = "turnpike-clickhouse";
/// Its sources, where this crate was built.
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clickhouse/Cargo.toml");

/// Its path. Where it is missing it is built, with the cargo that runs the tests or the one on PATH.
pub(super) fn launcher() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(Error::io("finding this program"))?;
    let beside = profile_directory(&own);
    let program = beside.join(NAME);
    if !program.is_file() {
        build(beside)?;
    }
    if program.is_file() {
        Ok(program)
    } else {
        Err(Error::Launcher(format!("cargo did not make {}", program.display())))
    }
}

/// `target/debug` for what lies in it, in its `deps` or its `examples`.
fn profile_directory(program: &Path) -> &Path {
    let directory = program.parent().unwrap_or(program);
    let inner = directory.file_name().is_some_and(|name| name == "deps" || name == "examples");
    directory.parent().filter(|_| inner).unwrap_or(directory)
}

fn build(profile_directory: &Path) -> Result<(), Error> {
    let target = profile_directory.parent().unwrap_or(profile_directory);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--manifest-path", MANIFEST, "--target-dir"]).arg(target);
    if profile_directory.file_name() == Some(OsStr::new("release")) {
        command.arg("--release");
    }
    let output = command.stdin(Stdio::null()).output().map_err(|e| Error::Launcher(format!("running cargo: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Launcher(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lies_where_cargo_puts_programs() {
        for program in ["/t/debug/deps/it-1", "/t/debug/examples/meter", "/t/debug/turnpike"] {
            assert_eq!(profile_directory(Path::new(program)), Path::new("/t/debug"), "{program}");
        }
    }
}
