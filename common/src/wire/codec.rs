//! bincode behind one door: the only module that names it, so that the format can be pinned and its limits kept.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::{Serialize, de::DeserializeOwned};

use super::MAX_FRAME_BYTES;

const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_FRAME_BYTES>> =
    bincode::config::standard().with_limit::<MAX_FRAME_BYTES>();

/// Bytes that are not one whole message of the wanted type.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A message could not be written; only one that exceeds [`MAX_FRAME_BYTES`] can do that.
    #[error("cannot encode a {what}: {reason}")]
    Encode {
        /// Rust name of the message.
        what: &'static str,
        /// bincode's words.
        reason: String,
    },
    /// Truncated, oversized or unknown content.
    #[error("cannot decode {bytes} bytes as a {what}: {reason}")]
    Decode {
        /// Rust name of the message.
        what: &'static str,
        /// How many bytes there were.
        bytes: usize,
        /// bincode's words.
        reason: String,
    },
    /// A whole message with something behind it.
    #[error("{left} bytes left over behind a {what}")]
    Trailing {
        /// Rust name of the message.
        what: &'static str,
        /// How many bytes.
        left: usize,
    },
}

/// Encodes one message.
///
/// # Errors
/// When it would exceed [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(message, CONFIG)
        .map_err(|error| CodecError::Encode { what: short_name::<T>(), reason: error.to_string() })?;
    if bytes.len() > MAX_FRAME_BYTES {
        let reason = format!("{} bytes exceed the {MAX_FRAME_BYTES} allowed", bytes.len());
        return Err(CodecError::Encode { what: short_name::<T>(), reason });
    }
    Ok(bytes)
}

/// Decodes exactly one message; allocates no more than [`MAX_FRAME_BYTES`] whatever the bytes claim.
///
/// # Errors
/// When the bytes are truncated, oversized, unknown, or more than one message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (message, used) = bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|error| {
        CodecError::Decode { what: short_name::<T>(), bytes: bytes.len(), reason: error.to_string() }
    })?;
    match bytes.len() - used {
        0 => Ok(message),
        left => Err(CodecError::Trailing { what: short_name::<T>(), left }),
    }
}

fn short_name<T>() -> &'static str {
    let name = core::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}
