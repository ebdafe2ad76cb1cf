//! The head of a node's answer.

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Longest head, bytes, and most lines in it.
pub(super) const MAX_HEAD: usize = 64 << 10;
const MAX_LINES: usize = 128;

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// What a node says before the body, without what concerns its connection alone.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Of the body, if the node knows it before.
    pub(crate) length: Option<u64>,
}

/// A head, and what it says of its connection.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) head: Head,
    pub(super) framing: Framing,
    /// The node keeps the connection open afterwards.
    pub(super) keeps: bool,
}

/// What is wrong with an answer.
pub(super) type Wrong = &'static str;

/// Takes the head out of what was read; `None` if it is not all there yet. Interim answers are passed over.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Found>, Wrong> {
    loop {
        let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
        let mut parsed = httparse::Response::new(&mut lines);
        let length = match parsed.parse(buffer) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if buffer.len() > MAX_HEAD => return Err("a head without an end"),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("no HTTP/1.1"),
        };
        let (Some(status), Some(version)) = (parsed.code, parsed.version) else { return Err("no status") };
        if status == 101 {
            return Err("another protocol");
        }
        if (100..200).contains(&status) {
            buffer.advance(length);
            continue;
        }
        // Where the values stand: they are taken as they are, not copied.
        let start = buffer.as_ptr().addr();
        let spans: Vec<_> = parsed
            .headers
            .iter()
            .map(|line| {
                (HeaderName::from_bytes(line.name.as_bytes()), line.value.as_ptr().addr() - start, line.value.len())
            })
            .collect();
        let text = buffer.split_to(length).freeze();
        let lines = spans.into_iter().map(|(name, from, length)| (name, text.slice(from..from + length)));
        return read(status, version, lines).map(Some);
    }
}

fn read(
    status: u16,
    version: u8,
    lines: impl ExactSizeIterator<Item = (Result<HeaderName, http::header::InvalidHeaderName>, Bytes)>,
) -> Result<Found, Wrong> {
    let status = StatusCode::from_u16(status).map_err(|_| "no such status")?;
    // And those that the edge has to say.
    let mut headers = HeaderMap::with_capacity(lines.len() + 16);
    let (mut length, mut chunked, mut keeps) = (None, false, version == 1);
    for (name, value) in lines {
        let name = name.map_err(|_| "a name that is none")?;
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| "a value that is none")?;
        if name == CONTENT_LENGTH {
            let said = number(&value).ok_or("a length that is none")?;
            if length.replace(said).is_some_and(|before| before != said) {
                return Err("two lengths");
            }
        } else if name == TRANSFER_ENCODING {
            if chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err("a transfer encoding that is not known");
            }
            chunked = true;
        } else if name == CONNECTION {
            keeps = if version == 1 { !says(&value, "close") } else { says(&value, "keep-alive") };
        } else if !is_for_one_hop(&name) {
            headers.append(name, value);
        }
    }
    let framing = match (chunked, length) {
        // One of them is a lie, and another answer may begin where the other says.
        (true, Some(_)) => return Err("a length and chunks"),
        _ if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) => Framing::Length(0),
        (true, None) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::UntilClose,
    };
    let length = match framing {
        Framing::Length(length) => Some(length),
        Framing::Chunked | Framing::UntilClose => None,
    };
    let head = Head { status, headers, length };
    Ok(Found { head, framing, keeps: keeps && framing != Framing::UntilClose })
}

fn number(value: &HeaderValue) -> Option<u64> {
    let digits = value.to_str().ok()?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn says(value: &HeaderValue, word: &str) -> bool {
    value.to_str().is_ok_and(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
}

/// Headers that speak of a connection and not of what comes over it; beside `Connection`, lengths and encodings.
pub(crate) fn is_for_one_hop(name: &HeaderName) -> bool {
    [TE, TRAILER, UPGRADE].contains(name) || ["keep-alive", "proxy-connection"].contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str) -> Result<Option<Found>, Wrong> {
        take(&mut BytesMut::from(text))
    }

    #[test]
    fn lengths_are_read_as_the_standard_says() {
        for (lines, framing, keeps) in [
            ("content-length: 5\r\n", Framing::Length(5), true),
            ("Content-Length: 5\r\ncontent-length: 5\r\n", Framing::Length(5), true),
            ("transfer-encoding: Chunked\r\n", Framing::Chunked, true),
            ("transfer-encoding: chunked\r\nconnection: x, Close\r\n", Framing::Chunked, false),
            ("", Framing::UntilClose, false),
        ] {
            let head = taken(&format!("HTTP/1.1 200 OK\r\n{lines}x-a: b\r\n\r\n")).unwrap().unwrap();
            assert_eq!((head.framing, head.keeps), (framing, keeps), "{lines}");
            assert_eq!(head.head.headers.len(), 1, "only what is to be passed on");
        }
        let old = taken("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n").unwrap().unwrap();
        assert!(!old.keeps);
        let empty = taken("HTTP/1.1 204 No Content\r\n\r\n").unwrap().unwrap();
        assert_eq!(empty.framing, Framing::Length(0));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for lines in [
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: +5\r\n",
            "content-length: 5, 5\r\n",
            "content-length: 99999999999999999999\r\n",
            "content-length: 5\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "content-length : 5\r\n",
        ] {
            assert!(taken(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).is_err(), "{lines}");
        }
        for text in
            ["nonsense\r\n\r\n", "HTTP/2 200\r\n\r\n", "HTTP/1.1 101 Switching\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n"]
        {
            assert!(taken(text).is_err(), "{text}");
        }
        assert!(taken(&("HTTP/1.1 200 OK\r\n".to_owned() + &"x: y\r\n".repeat(20_000))).is_err());
    }

    #[test]
    fn interim_answers_are_passed_over_and_what_follows_stays() {
        let mut buffer = BytesMut::from("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
        let whole = buffer.clone();
        for cut in 0..buffer.len() - 2 {
            assert!(take(&mut BytesMut::from(&whole[..cut])).unwrap().is_none(), "{cut}");
        }
        assert_eq!(take(&mut buffer).unwrap().unwrap().head.status, 200);
        assert_eq!(buffer, "hi");
    }
}
