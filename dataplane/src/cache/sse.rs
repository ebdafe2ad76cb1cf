//! Takes a whole event stream apart.

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data<'a> {
    /// The text of its one `data` line.
    Json(&'a str),
    /// `[DONE]`: nothing comes after.
    Done,
    /// Comments and empty events, which keep connections open.
    Nothing,
    /// Several `data` lines, or bytes that are no text. No engine sends such events.
    Odd,
}

/// The events of a stream, each with the empty line that ends it; the last may lack it.
pub(crate) fn split(stream: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = stream;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (event, after) = rest.split_at_checked(event_end(rest))?;
        rest = after;
        Some(event)
    })
}

/// Where the first event ends: after an empty line, with LF or CRLF.
fn event_end(bytes: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', bytes)
        .find_map(|at| match bytes.get(at + 1..)? {
            [b'\n', ..] => Some(at + 2),
            [b'\r', b'\n', ..] => Some(at + 3),
            _ => None,
        })
        .unwrap_or(bytes.len())
}

/// Reads an event.
pub(crate) fn data(event: &[u8]) -> Data<'_> {
    let Ok(text) = std::str::from_utf8(event) else { return Data::Odd };
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim);
    match (lines.next(), lines.next()) {
        (None, _) | (Some(""), None) => Data::Nothing,
        (Some("[DONE]"), None) => Data::Done,
        (Some(json), None) => Data::Json(json),
        (Some(_), Some(_)) => Data::Odd,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_comes_apart() {
        let stream = b": hello\n\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:{}\nid: 1\n\ndata: 1\ndata: 2\n\n\
            data: \xff\n\ndata:\n\n\ndata: [DONE]\n";
        let events: Vec<_> = split(stream).collect();
        assert_eq!(events.concat(), stream);
        let said: Vec<_> = events.into_iter().map(data).filter(|data| *data != Data::Nothing).collect();
        assert_eq!(said, [Data::Json("{\"a\":1}"), Data::Json("{}"), Data::Odd, Data::Odd, Data::Done]);
        assert_eq!(split(b"").count(), 0);
    }
}
