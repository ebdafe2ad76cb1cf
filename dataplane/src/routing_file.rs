//! The last good routing on disk: what an edge serves by when it starts without a control plane.

use crate::files::write_atomically;
use std::path::Path;
use turnpike_config::Routing;

const MAGIC: &[u8; 8] = b"TPKROUT1";

/// Why the file is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadRoutingFile {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("checksum or format is wrong")]
    Damaged,
    #[error("{0}")]
    Unfit(String),
}

/// Keeps a routing for the next start.
pub(crate) fn save(path: &Path, routing: &Routing) -> std::io::Result<()> {
    let mut body = Vec::new();
    // Writing to a Vec cannot fail.
    let _ = minicbor::encode(routing, &mut body);
    let crc = crc32c::crc32c(&body).to_be_bytes();
    write_atomically(path, &[MAGIC.as_slice(), &crc, &body].concat())
}

/// The kept routing; `None` if there is none yet.
pub(crate) fn load(path: &Path) -> Result<Option<Routing>, BadRoutingFile> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let (magic, rest) = bytes.split_at_checked(8).ok_or(BadRoutingFile::Damaged)?;
    let (crc, body) = rest.split_at_checked(4).ok_or(BadRoutingFile::Damaged)?;
    if magic != MAGIC || crc != crc32c::crc32c(body).to_be_bytes() {
        return Err(BadRoutingFile::Damaged);
    }
    let routing: Routing = minicbor::decode(body).map_err(|_| BadRoutingFile::Damaged)?;
    match routing.faults().first() {
        Some(fault) => Err(BadRoutingFile::Unfit(fault.clone())),
        None => Ok(Some(routing)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::fixtures;

    #[test]
    fn a_damaged_file_is_not_served_by() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("routing");
        assert!(load(&path).unwrap().is_none());
        let routing = fixtures::routing();
        save(&path, &routing).unwrap();
        assert_eq!(load(&path).unwrap(), Some(routing));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(load(&path), Err(BadRoutingFile::Damaged)));
    }
}
