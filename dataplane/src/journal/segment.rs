//! One segment file: `magic epoch first_seq`, then records of `length crc kind payload`.
//!
//! Numbers are big endian. The checksum (CRC-32C) covers kind and payload. A record's sequence number is its segment's
//! first plus its position.

use super::{JournalError, io_error};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use turnpike_config::UsageEvent;

const MAGIC: &[u8; 8] = b"TPKJRNL1";
/// Bytes of a segment's header.
pub(super) const HEADER: u64 = 24;
/// Bytes of a record around its payload.
const FRAME: usize = 9;
/// No event comes near this; a larger length is damage.
const MAX_RECORD: usize = 1 << 20;

/// What a record says. Other kinds (an intent before dispatch) have numbers of their own.
const KIND_FINAL: u8 = 2;

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

/// Appends an event's record to a buffer.
pub(super) fn encode(event: &UsageEvent, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.push(KIND_FINAL);
    // Writing to a Vec cannot fail.
    let _ = minicbor::encode(event, &mut *out);
    let length = u32::try_from(out.len() - start - FRAME).unwrap_or(u32::MAX);
    let crc = crc32c::crc32c(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_be_bytes());
}

/// What a scan over record bytes found.
pub(super) struct Scan {
    /// Decoded records in order.
    pub(super) events: Vec<UsageEvent>,
    /// Bytes of them.
    pub(super) good_bytes: usize,
    /// Whether bytes follow that are no whole record.
    pub(super) torn: bool,
    /// Whether a whole, valid record follows the damage: then it is no torn tail.
    pub(super) damaged_inside: bool,
}

/// Reads records from the beginning of `bytes`, at most `limit`.
pub(super) fn scan(bytes: &[u8], limit: usize) -> Scan {
    let mut scan = Scan { events: Vec::new(), good_bytes: 0, torn: false, damaged_inside: false };
    let mut rest = bytes;
    while !rest.is_empty() && scan.events.len() < limit {
        match record(rest) {
            Some((event, length)) => {
                scan.events.push(event);
                scan.good_bytes += length;
                rest = &rest[length..];
            }
            None => {
                scan.torn = true;
                scan.damaged_inside = follows_valid_record(rest);
                break;
            }
        }
    }
    scan
}

fn record(bytes: &[u8]) -> Option<(UsageEvent, usize)> {
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let crc = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
    if length > MAX_RECORD {
        return None;
    }
    let checked = bytes.get(8..FRAME + length)?;
    let kind = checked.first()?;
    if crc32c::crc32c(checked) != crc || *kind != KIND_FINAL {
        return None;
    }
    Some((minicbor::decode(&checked[1..]).ok()?, FRAME + length))
}

/// After a bad record with a plausible length, is there a good one? Then a crash did not cut the file here.
fn follows_valid_record(bytes: &[u8]) -> bool {
    let length = bytes.get(..4).and_then(|b| b.try_into().ok()).map_or(usize::MAX, |b| u32::from_be_bytes(b) as usize);
    length <= MAX_RECORD && bytes.get(FRAME + length..).is_some_and(|rest| record(rest).is_some())
}

/// A segment's record bytes from `offset` on, at most `most`; checks the header when reading from the beginning.
pub(super) fn read_from(path: &Path, epoch: u64, offset: u64, most: usize) -> Result<Vec<u8>, JournalError> {
    use std::os::unix::fs::FileExt as _;
    let failed = io_error(path);
    let file = File::open(path).map_err(&failed)?;
    let mut head = Vec::new();
    (&file).take(HEADER).read_to_end(&mut head).map_err(&failed)?;
    if head.get(..8) != Some(MAGIC.as_slice()) || head.get(8..16) != Some(epoch.to_be_bytes().as_slice()) {
        return Err(JournalError::Damaged { path: path.to_owned(), offset: 0 });
    }
    let length = file.metadata().map_err(&failed)?.len().saturating_sub(offset);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(most)];
    file.read_exact_at(&mut bytes, offset).map_err(&failed)?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod fixtures {
    use turnpike_config::{Endpoint, EventId, KeyId, OrgId, RequestStatus, UsageEvent, Usd};
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_at_any_byte_loses_at_most_the_last_record() {
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for number in 0..3 {
            encode(&fixtures::event(number), &mut bytes);
            ends.push(bytes.len());
        }
        for cut in 0..=bytes.len() {
            let scan = scan(&bytes[..cut], usize::MAX);
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!((scan.events.len(), scan.good_bytes), (whole, ends[whole]), "cut at {cut}");
            assert!(!scan.damaged_inside);
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed_and_told_from_a_torn_tail() {
        let mut bytes = Vec::new();
        encode(&fixtures::event(1), &mut bytes);
        let first = bytes.len();
        encode(&fixtures::event(2), &mut bytes);
        bytes[first / 2] ^= 4;
        let scan = scan(&bytes, usize::MAX);
        assert_eq!((scan.events.len(), scan.torn, scan.damaged_inside), (0, true, true));
    }
}
