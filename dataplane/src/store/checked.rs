//! Pieces of files with their length and checksum in front.

use std::io::{self, Read, Write};

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it ends too early")]
    Short,
    #[error("a checksum is wrong")]
    Checksum,
    #[error("its content is of another kind: {0}")]
    Content(#[from] minicbor::decode::Error),
    #[error("its parts do not belong together")]
    Parts,
}

/// Writes a piece.
pub(super) fn write(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(&(bytes.len() as u64).to_be_bytes())?;
    out.write_all(&crc32c::crc32c(bytes).to_be_bytes())?;
    out.write_all(bytes)
}

/// Bytes in front of a piece.
pub(super) const HEAD: usize = 12;

/// Reads a piece of at most `most` bytes.
pub(super) fn read(from: &mut impl Read, most: u64) -> Result<Vec<u8>, Damage> {
    let mut head = [0; HEAD];
    fill(from, &mut head)?;
    let (length, crc) = head.split_at(8);
    let length = u64::from_be_bytes(length.try_into().map_err(|_| Damage::Short)?);
    if length > most {
        return Err(Damage::Short);
    }
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(Damage::Short);
    }
    if crc != crc32c::crc32c(&bytes).to_be_bytes() {
        return Err(Damage::Checksum);
    }
    Ok(bytes)
}

/// Fills a buffer; a file that ends before is damaged.
pub(super) fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<(), Damage> {
    from.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Damage::Short,
        _ => error.into(),
    })
}
