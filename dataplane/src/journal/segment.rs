//! One segment file: `magic epoch first_seq`, then records of `length crc seq kind payload`.
//!
//! Numbers are big endian. The checksum (CRC-32C) covers sequence number, kind and payload. A record bears its own
//! number, so that one which was damaged on disk costs itself and nothing after it.

use super::record::{FINAL, Record};
use super::{JournalError, io_error};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"TPKJRNL2";
/// Bytes of a segment's header.
pub(super) const HEADER: u64 = 24;
/// Bytes of a record around its payload.
const FRAME: usize = 17;
/// No record comes near this; a larger length is damage.
const MAX_RECORD: usize = 1 << 20;

/// Where a segment lies. The name orders segments by their first sequence number.
pub(super) fn path(directory: &Path, first_seq: u64) -> PathBuf {
    directory.join(format!("{first_seq:020}.journal"))
}

/// First sequence numbers of all segments in a directory, ascending.
pub(super) fn list(directory: &Path) -> Result<Vec<u64>, JournalError> {
    let failed = io_error(directory);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(&failed)? {
        let name = entry.map_err(&failed)?.file_name();
        let number: Option<u64> =
            name.to_str().and_then(|name| name.strip_suffix(".journal")).and_then(|n| n.parse().ok());
        found.extend(number);
    }
    found.sort_unstable();
    Ok(found)
}

pub(super) fn header(epoch: u64, first_seq: u64) -> Vec<u8> {
    [MAGIC.as_slice(), &epoch.to_be_bytes(), &first_seq.to_be_bytes()].concat()
}

/// Appends a record to a buffer.
pub(super) fn encode(seq: u64, record: &Record, out: &mut Vec<u8>) {
    frame(seq, |payload| record.encode(payload), out);
}

/// Appends a record of any kind.
#[cfg(test)]
pub(super) fn encode_raw(seq: u64, kind: u8, payload: &[u8], out: &mut Vec<u8>) {
    let write = |to: &mut Vec<u8>| {
        to.extend_from_slice(payload);
        kind
    };
    frame(seq, write, out);
}

/// `write` appends the payload and says its kind.
fn frame(seq: u64, write: impl FnOnce(&mut Vec<u8>) -> u8, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&seq.to_be_bytes());
    out.push(0);
    out[start + 16] = write(out);
    let length = u32::try_from(out.len() - start - FRAME).unwrap_or(u32::MAX);
    let crc = crc32c::crc32c(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_be_bytes());
}

/// A whole record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a> {
    pub(super) seq: u64,
    kind: u8,
    payload: &'a [u8],
}

impl<'a> Found<'a> {
    /// What it says; `None` if this version cannot read it.
    pub(super) fn decode(&self) -> Option<Record> {
        Record::decode(self.kind, self.payload)
    }

    /// The event as it was encoded, if it is one.
    pub(super) const fn event(&self) -> Option<&'a [u8]> {
        if self.kind == FINAL { Some(self.payload) } else { None }
    }
}

/// What a scan over record bytes found.
#[derive(Debug, Default)]
pub(super) struct Scan<'a> {
    /// Records, in order.
    pub(super) records: Vec<Found<'a>>,
    /// Bytes up to the end of the last of them.
    pub(super) good_bytes: usize,
    /// Bytes of damage between good records.
    pub(super) damaged_bytes: usize,
}

/// Reads all records in `bytes`.
pub(super) fn scan_all(bytes: &[u8]) -> Scan<'_> {
    scan(bytes, usize::MAX, u64::MAX)
}

/// Reads records from the beginning of `bytes`, at most `limit`, up to the first that has number `end` or a later one. What
/// follows the last good record otherwise is a torn tail, or goes on beyond the bytes.
pub(super) fn scan(bytes: &[u8], limit: usize, end: u64) -> Scan<'_> {
    let mut scan = Scan::default();
    let mut at = 0;
    while at < bytes.len() && scan.records.len() < limit {
        match record(&bytes[at..]) {
            Some(found) if found.seq >= end => break,
            Some(found) => {
                scan.records.push(found);
                at += FRAME + found.payload.len();
                scan.good_bytes = at;
            }
            None => match next_record(bytes, at) {
                Some(next) => {
                    scan.damaged_bytes += next - at;
                    at = next;
                }
                None => break,
            },
        }
    }
    scan
}

/// Where the next good record begins after a bad one.
fn next_record(bytes: &[u8], bad: usize) -> Option<usize> {
    (bad + 1..bytes.len().saturating_sub(FRAME)).find(|at| record(&bytes[*at..]).is_some())
}

fn record(bytes: &[u8]) -> Option<Found<'_>> {
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    if length > MAX_RECORD {
        return None;
    }
    let crc = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
    let checked = bytes.get(8..FRAME + length)?;
    if crc32c::crc32c(checked) != crc {
        return None;
    }
    let seq = u64::from_be_bytes(checked.get(..8)?.try_into().ok()?);
    Some(Found { seq, kind: *checked.get(8)?, payload: &checked[9..] })
}

/// A segment's record bytes from `offset` on, at most `most`.
pub(super) fn read_from(path: &Path, epoch: u64, offset: u64, most: usize) -> Result<Vec<u8>, JournalError> {
    use std::os::unix::fs::FileExt as _;
    let failed = io_error(path);
    let file = File::open(path).map_err(&failed)?;
    let mut head = Vec::new();
    (&file).take(HEADER).read_to_end(&mut head).map_err(&failed)?;
    if head.get(..8) != Some(MAGIC.as_slice()) || head.get(8..16) != Some(epoch.to_be_bytes().as_slice()) {
        return Err(JournalError::Foreign { path: path.to_owned() });
    }
    let length = file.metadata().map_err(&failed)?.len().saturating_sub(offset);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(most)];
    file.read_exact_at(&mut bytes, offset).map_err(&failed)?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod fixtures {
    use super::super::record::{Intent, Record};
    use turnpike_config::{Endpoint, EventId, KeyId, OrgId, Price, RequestStatus, UsageEvent, Usd};
    use uuid::Uuid;

    pub(crate) fn event(number: u32) -> UsageEvent {
        UsageEvent {
            id: EventId(Uuid::now_v7()),
            organization: OrgId(Uuid::from_u128(1)),
            api_key: KeyId(Uuid::from_u128(2)),
            model: Some("m".to_owned()),
            model_version: Some("v1".to_owned()),
            endpoint: Endpoint::Chat,
            status: RequestStatus::Success,
            http_status: 200,
            error_code: None,
            error_message: None,
            prompt_tokens: number,
            completion_tokens: 1,
            estimated: false,
            cost: Usd { pico: i128::from(number) },
            request_bytes: 100,
            response_bytes: 200,
            processing_ms: 1,
            queue_ms: 0,
            total_ms: 1,
            first_byte_ms: Some(1),
            region: "r".to_owned(),
            edge: "e".to_owned(),
            node: Some("n".to_owned()),
            user_agent: None,
            client_ip: None,
            streamed: false,
            retries: 0,
            cache: None,
            price_version: 0,
            cached_tokens: 0,
            shadow: false,
        }
    }

    pub(crate) fn intent(event: &UsageEvent) -> Intent {
        Intent {
            id: event.id,
            organization: event.organization,
            api_key: event.api_key,
            model: "m".to_owned(),
            model_version: "v1".to_owned(),
            endpoint: Endpoint::Chat,
            price_version: 0,
            price: Price::default(),
            reserved_tokens: 10,
            node: "n".to_owned(),
            streamed: false,
            request_bytes: 100,
        }
    }

    pub(crate) fn final_of(number: u32) -> Record {
        Record::Final(Box::new(event(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for number in 0..3 {
            encode(number.into(), &fixtures::final_of(number), &mut bytes);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn a_cut_at_any_byte_loses_at_most_the_last_record() {
        let (bytes, ends) = three();
        for cut in 0..=bytes.len() {
            let scan = scan_all(&bytes[..cut]);
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!((scan.records.len(), scan.good_bytes), (whole, ends[whole]), "cut at {cut}");
            assert_eq!(scan.damaged_bytes, 0);
        }
    }

    #[test]
    fn a_flipped_bit_costs_one_record_wherever_it_is() {
        let (bytes, ends) = three();
        for bit in 0..ends[2] * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let scan = scan_all(&bytes);
            let hit = u64::from(bit / 8 >= ends[1]);
            let kept: Vec<u64> = scan.records.iter().map(|found| found.seq).collect();
            assert_eq!(kept, [0, 1, 2].into_iter().filter(|seq| *seq != hit).collect::<Vec<_>>(), "bit {bit}");
            assert_eq!(scan.good_bytes, bytes.len());
            assert!(scan.damaged_bytes > 0);
        }
    }
}
