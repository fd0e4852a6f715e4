//! Length-prefixed frames on a reliable stream: a little-endian `u32` length, then that many bytes of one message.

use serde::{Serialize, de::DeserializeOwned};
use swarmguard_common::wire::{
    MAX_FRAME_BYTES,
    codec::{self, CodecError},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Why a frame could not be read or written. After any of them the stream is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced more than is allowed; nothing of it was read.
    #[error("the peer announced a frame of {announced} bytes, {MAX_FRAME_BYTES} are allowed")]
    Oversized {
        /// Announced length in bytes.
        announced: usize,
    },
    /// The content is not one message of the protocol.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The stream broke, or ended inside a frame.
    #[error("the control stream broke: {0}")]
    Io(#[from] std::io::Error),
}

/// Encodes a message as a frame, ready to be written (or written again).
///
/// # Errors
/// When the message exceeds [`MAX_FRAME_BYTES`].
pub fn to_bytes<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let body = codec::encode(message)?;
    let mut frame = Vec::with_capacity(4 + body.len());
    // encode() holds the length under MAX_FRAME_BYTES, so it always fits.
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Writes one message as a frame.
///
/// # Errors
/// When the message is too large or the stream is broken.
pub async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), FrameError> {
    stream.write_all(&to_bytes(message)?).await?;
    Ok(())
}

/// Reads one message; `None` when the peer finished the stream between two frames. Not cancel safe: after a
/// cancelled read the stream is in the middle of a frame.
///
/// # Errors
/// When the frame is oversized, truncated or not a message of type `T`.
pub async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<T>, FrameError> {
    let mut length = [0; 4];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let announced = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if announced > MAX_FRAME_BYTES {
        return Err(FrameError::Oversized { announced });
    }
    let mut body = vec![0; announced];
    stream.read_exact(&mut body).await?;
    Ok(Some(codec::decode(&body)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(bytes: &[u8]) -> Result<Option<u64>, FrameError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(read::<u64>(&mut &bytes[..]))
    }

    #[test]
    fn a_frame_reads_back() {
        let bytes = to_bytes(&7_u64).expect("small");
        assert_eq!(read_all(&bytes).expect("whole"), Some(7));
        assert_eq!(read_all(&[]).expect("a clean end"), None);
    }

    #[test]
    fn oversized_truncated_and_trailing_are_told_apart() {
        assert!(matches!(read_all(&u32::MAX.to_le_bytes()), Err(FrameError::Oversized { .. })));
        assert!(matches!(read_all(&[1, 0]), Err(FrameError::Io(_))));
        assert!(matches!(
            read_all(&[2, 0, 0, 0, 7, 7]),
            Err(FrameError::Codec(CodecError::Trailing { left: 1, .. }))
        ));
        assert!(matches!(read_all(&[0, 0, 0, 0]), Err(FrameError::Codec(CodecError::Decode { .. }))));
    }
}
