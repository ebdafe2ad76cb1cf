//! Frames over streams.

use super::LinkError;
use super::streams::{Receiver, Sender};
use crate::wire::{self, BadFrame, MAX_FRAME};
use minicbor::{Decode, Encode};
use std::time::Duration;
use tokio::time::timeout;

/// A message that has begun is there within this time.
const FRAME_DEADLINE: Duration = Duration::from_secs(60);

/// Bytes of a length.
const PREFIX: usize = 4;

/// Sends one message.
pub async fn write_frame<T: Encode<()>>(stream: &mut Sender, message: &T) -> Result<(), LinkError> {
    let bytes = wire::frame(message)?;
    stream.write(&bytes).await
}

/// Receives one message; `None` when the peer has finished the stream between two messages.
pub async fn read_frame<T: for<'b> Decode<'b, ()>>(stream: &mut Receiver) -> Result<Option<T>, LinkError> {
    Ok(read_sized_frame(stream).await?.map(|(message, _)| message))
}

/// Receives one message and says how many bytes it took.
pub async fn read_sized_frame<T: for<'b> Decode<'b, ()>>(
    stream: &mut Receiver,
) -> Result<Option<(T, usize)>, LinkError> {
    let mut prefix = [0; PREFIX];
    // There may be nothing to say for as long as it likes.
    if !stream.fill(&mut prefix[..1]).await? {
        return Ok(None);
    }
    let reading = async {
        if !stream.fill(&mut prefix[1..]).await? {
            return Err(LinkError::Lost("stream ended inside a message".to_owned()));
        }
        let length = u32::from_be_bytes(prefix) as usize;
        if length > MAX_FRAME {
            return Err(BadFrame::TooLong(length).into());
        }
        // Grows with what arrives: a peer that only announces 32 MiB does not make us allocate them.
        let mut body = Vec::new();
        while body.len() < length {
            let wanted = (length - body.len()).min(64 << 10);
            stream.append(&mut body, wanted).await?;
        }
        Ok(body)
    };
    let slow = |_| LinkError::Lost("the peer sends too slowly".to_owned());
    let body = timeout(FRAME_DEADLINE, reading).await.map_err(slow)??;
    Ok(Some((wire::unframe(&body)?, PREFIX + body.len())))
}
