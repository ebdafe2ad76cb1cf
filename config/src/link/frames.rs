//! Frames over QUIC streams.

use super::LinkError;
use crate::wire::{self, BadFrame, MAX_FRAME};
use minicbor::{Decode, Encode};
use quinn::{ReadExactError, RecvStream, SendStream};

/// Sends one message.
pub async fn write_frame<T: Encode<()>>(stream: &mut SendStream, message: &T) -> Result<(), LinkError> {
    let bytes = wire::frame(message)?;
    stream.write_all(&bytes).await.map_err(|e| LinkError::Lost(e.to_string()))
}

/// Receives one message; `None` when the peer has finished the stream between two messages.
pub async fn read_frame<T: for<'b> Decode<'b, ()>>(stream: &mut RecvStream) -> Result<Option<T>, LinkError> {
    Ok(read_sized_frame(stream).await?.map(|(message, _)| message))
}

/// Receives one message and says how many bytes it took.
pub async fn read_sized_frame<T: for<'b> Decode<'b, ()>>(
    stream: &mut RecvStream,
) -> Result<Option<(T, usize)>, LinkError> {
    let mut prefix = [0; 4];
    match stream.read_exact(&mut prefix).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(e) => return Err(LinkError::Lost(e.to_string())),
    }
    let length = u32::from_be_bytes(prefix) as usize;
    if length > MAX_FRAME {
        return Err(BadFrame::TooLong(length).into());
    }
    // Grows with what arrives: a peer that only announces 256 MiB does not make us allocate them.
    let mut body = Vec::new();
    while body.len() < length {
        let wanted = (length - body.len()).min(64 << 10);
        let chunk = stream.read_chunk(wanted, true).await.map_err(|e| LinkError::Lost(e.to_string()))?;
        let chunk = chunk.ok_or_else(|| LinkError::Lost("stream ended inside a message".to_owned()))?;
        body.extend_from_slice(&chunk.bytes);
    }
    Ok(Some((wire::unframe(&body)?, prefix.len() + body.len())))
}
