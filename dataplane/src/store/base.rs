//! A whole state in one file.

use super::checked::{self, Damage};
use crate::image::State;
use crate::keys::{Entry, Packed, Rest, Tables};
use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use turnpike_config::Change;
use turnpike_config::log::Position;

const MAGIC: &[u8; 8] = b"TPKBASE1";

/// A whole state as it is written down.
#[derive(Clone, Debug, Default)]
pub(crate) struct Base {
    pub(crate) at: Position,
    pub(crate) records: Arc<Vec<Change>>,
    pub(crate) keys: Arc<Packed>,
    pub(crate) rests: Arc<Vec<Rest>>,
}

impl Base {
    pub(crate) fn new(at: Position, state: State) -> Self {
        let State { records, keys, rests } = state;
        Self { at, records: Arc::new(records), keys: Arc::new(keys), rests: Arc::new(rests) }
    }
}

/// Writes beside the target, syncs, and renames over it.
pub(super) fn save(path: &Path, base: &Base) -> std::io::Result<()> {
    let beside = path.with_extension("tmp");
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&beside)?);
    out.write_all(MAGIC)?;
    checked::write(&mut out, &cbor(&base.at))?;
    checked::write(&mut out, &cbor(&*base.records))?;
    checked::write(&mut out, &cbor(base.keys.tables()))?;
    checked::write(&mut out, base.keys.entries().as_flattened())?;
    checked::write(&mut out, base.rests.as_flattened())?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Reads a state, and checks all of it.
pub(super) fn load(path: &Path) -> Result<(Position, State), Damage> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut magic = [0; 8];
    checked::fill(&mut file, &mut magic)?;
    if magic != *MAGIC {
        return Err(Damage::Parts);
    }
    let mut next = || checked::read(&mut file, size);
    let (at, records, tables) = (next()?, next()?, next()?);
    let entries = split::<{ size_of::<Entry>() }>(&next()?)?;
    let rests = split::<{ size_of::<Rest>() }>(&next()?)?;
    if file.read(&mut [0])? != 0 || entries.len() != rests.len() {
        return Err(Damage::Parts);
    }
    let tables: Tables = minicbor::decode(&tables)?;
    let keys = Packed::from_parts(entries, tables).ok_or(Damage::Parts)?;
    Ok((minicbor::decode(&at)?, State { records: minicbor::decode(&records)?, keys, rests }))
}

fn cbor<T: minicbor::Encode<()> + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing into a Vec cannot fail.
    let _ = minicbor::encode(value, &mut bytes);
    bytes
}

fn split<const N: usize>(bytes: &[u8]) -> Result<Vec<[u8; N]>, Damage> {
    match bytes.as_chunks() {
        (chunks, []) => Ok(chunks.to_vec()),
        _ => Err(Damage::Parts),
    }
}
