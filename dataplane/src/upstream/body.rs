//! The body of a node's answer, taken out of what was read.

use super::head::{Framing, Wrong};
use bytes::{Buf as _, Bytes, BytesMut};

/// Longest line between chunks, bytes: a size with its extensions, or a trailer.
const MAX_LINE: usize = 16 << 10;

/// Where in a body the reading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes are left.
    Length(u64),
    UntilClose,
    /// Before the size of a chunk.
    ChunkSize,
    /// So many bytes of a chunk are left, and then the end of its line.
    Chunk(u64),
    /// After the last chunk.
    Trailers,
    Over,
    /// What follows is no body; what came before it has been taken.
    Broken(Wrong),
}

impl From<Framing> for Body {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Length(0) => Self::Over,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::ChunkSize,
            Framing::UntilClose => Self::UntilClose,
        }
    }
}

impl Body {
    /// Everything of the body that was read, without the marks around it; empty if there is nothing yet.
    pub(super) fn take(&mut self, buffer: &mut BytesMut) -> Result<Bytes, Wrong> {
        match self {
            Self::Over => Ok(Bytes::new()),
            Self::UntilClose => Ok(buffer.split().freeze()),
            Self::Length(left) => {
                let there = split_most(buffer, left);
                if *left == 0 {
                    *self = Self::Over;
                }
                Ok(there.freeze())
            }
            Self::Broken(wrong) => Err(wrong),
            Self::ChunkSize | Self::Chunk(_) | Self::Trailers => {
                // One chunk is not copied; what follows it is, behind it.
                let mut taken = BytesMut::new();
                if let Err(wrong) = self.take_chunks(buffer, &mut taken) {
                    *self = Self::Broken(wrong);
                }
                match self {
                    Self::Broken(wrong) if taken.is_empty() => Err(wrong),
                    _ => Ok(taken.freeze()),
                }
            }
        }
    }

    fn take_chunks(&mut self, buffer: &mut BytesMut, taken: &mut BytesMut) -> Result<(), Wrong> {
        loop {
            match self {
                Self::ChunkSize => {
                    let Some(line) = take_line(buffer)? else { return Ok(()) };
                    *self = match size(&line).ok_or("a chunk of no size")? {
                        0 => Self::Trailers,
                        size => Self::Chunk(size),
                    };
                }
                Self::Chunk(0) => {
                    if buffer.len() < 2 {
                        return Ok(());
                    }
                    if !buffer.starts_with(b"\r\n") {
                        return Err("a chunk longer than it said");
                    }
                    buffer.advance(2);
                    *self = Self::ChunkSize;
                }
                Self::Chunk(left) => {
                    if buffer.is_empty() {
                        return Ok(());
                    }
                    let piece = split_most(buffer, left);
                    if taken.is_empty() {
                        *taken = piece;
                    } else {
                        // Room for all that may follow, so that it is copied once.
                        taken.reserve(piece.len() + buffer.len());
                        taken.extend_from_slice(&piece);
                    }
                }
                Self::Trailers => match take_line(buffer)? {
                    Some(line) if line.is_empty() => *self = Self::Over,
                    Some(_) => {}
                    None => return Ok(()),
                },
                Self::Over | Self::Length(_) | Self::UntilClose | Self::Broken(_) => return Ok(()),
            }
        }
    }
}

/// As much as is there of what is `left`.
fn split_most(buffer: &mut BytesMut, left: &mut u64) -> BytesMut {
    let there = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    *left -= there as u64;
    buffer.split_to(there)
}

fn take_line(buffer: &mut BytesMut) -> Result<Option<BytesMut>, Wrong> {
    match memchr::memchr(b'\n', buffer) {
        Some(end) if end <= MAX_LINE => {
            let mut line = buffer.split_to(end + 1);
            if !line.ends_with(b"\r\n") {
                return Err("a line that ends like none");
            }
            line.truncate(end - 1);
            Ok(Some(line))
        }
        None if buffer.len() <= MAX_LINE => Ok(None),
        _ => Err("a line without an end"),
    }
}

/// The size of a chunk: hexadecimal digits, and perhaps extensions that mean nothing here.
fn size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let rest = line[digits..].trim_ascii_start();
    if digits == 0 || digits > 15 || !(rest.is_empty() || rest.starts_with(b";")) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a body that is read in two parts; what is wrong is told once what came before it was taken.
    fn read(framing: Framing, text: &[u8], cut: usize) -> Result<(Vec<u8>, Body, usize), Wrong> {
        let (mut body, mut buffer, mut taken) = (Body::from(framing), BytesMut::new(), Vec::new());
        for part in [&text[..cut], &text[cut..], &[]] {
            buffer.extend_from_slice(part);
            taken.extend_from_slice(&body.take(&mut buffer)?);
        }
        Ok((taken, body, buffer.len()))
    }

    #[test]
    fn chunks_are_put_together_wherever_they_are_cut() {
        let text = b"3;x=\"y\"\r\none\r\n00A\r\n two three\r\n0 \r\nx-trailer: a\r\n\r\n";
        for cut in 0..=text.len() {
            assert_eq!(read(Framing::Chunked, text, cut), Ok((b"one two three".to_vec(), Body::Over, 0)), "{cut}");
        }
    }

    #[test]
    fn all_chunks_that_are_there_are_one_piece() {
        let mut buffer = BytesMut::from("1\r\na\r\n1\r\nb\r\n2\r\nc");
        let mut body = Body::ChunkSize;
        assert_eq!(body.take(&mut buffer), Ok(Bytes::from_static(b"abc")));
        assert_eq!(body, Body::Chunk(1));
    }

    #[test]
    fn what_follows_a_body_is_not_of_it() {
        for cut in 0..=8 {
            assert_eq!(read(Framing::Length(5), b"hello!!!", cut), Ok((b"hello".to_vec(), Body::Over, 3)));
        }
        assert_eq!(read(Framing::Chunked, b"0\r\n\r\nmore", 4), Ok((Vec::new(), Body::Over, 4)));
        assert_eq!(read(Framing::UntilClose, b"all", 1), Ok((b"all".to_vec(), Body::UntilClose, 0)));
    }

    #[test]
    fn what_came_before_a_wrong_chunk_is_taken_first() {
        let (mut body, mut buffer) = (Body::ChunkSize, BytesMut::from("2\r\nok\r\nnonsense\r\n"));
        assert_eq!(body.take(&mut buffer), Ok(Bytes::from_static(b"ok")));
        for _ in 0..2 {
            assert!(body.take(&mut buffer).is_err(), "and it stays wrong");
        }
    }

    #[test]
    fn chunks_that_are_none_are_refused() {
        let endless = format!("1{}", " ".repeat(MAX_LINE + 1));
        for text in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "1\na\r\n",
            "1\r\nab\r\n",
            "1 x\r\n",
            "1111111111111111\r\n",
            &endless,
            "0\r\nx\n",
        ] {
            assert!(read(Framing::Chunked, text.as_bytes(), 0).is_err(), "{text}");
        }
    }
}
