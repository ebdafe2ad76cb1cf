//! Files and directories that only their owner may read, and random secrets to put there.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Makes a directory (and those above it) with access for its owner alone; one that is there is closed to others.
pub(crate) fn directory(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|e| named(path, &e))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(|e| named(path, &e))
}

/// Writes a file whole or not at all, with access for its owner alone.
pub(crate) fn write(path: &Path, contents: impl AsRef<[u8]>) -> io::Result<()> {
    // Aside and renamed: a crash leaves the old file or the new one, and the mode is right from the first byte.
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let attempt = || {
        let _ = std::fs::remove_file(&aside);
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(contents.as_ref())?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    };
    attempt().map_err(|e| named(path, &e))
}

/// The file's text without the newline at its end; `None` if there is no such file.
pub(crate) fn read(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(named(path, &e)),
    }
}

/// A new secret: `prefix` and 256 random bits.
pub(crate) fn secret(prefix: &str) -> io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, file) = (dir.path().join("a/b"), dir.path().join("a/b/secret"));
        directory(&folder, 0o700).unwrap();
        assert_eq!(read(&file).unwrap(), None);
        write(&file, "one\n").unwrap();
        write(&file, "two\n").unwrap();
        assert_eq!(read(&file).unwrap().as_deref(), Some("two"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn secrets_differ() {
        let [a, b] = [(), ()].map(|()| secret("tk-").unwrap());
        assert!(a != b && a.starts_with("tk-") && a.len() == 3 + 43);
    }
}
