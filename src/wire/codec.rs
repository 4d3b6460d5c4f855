//! Encoding of messages: bincode 2 with a limit, behind a length.

use super::MESSAGE_BYTES_MAX;
use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};

/// Bytes of the length before each message.
pub const LENGTH_BYTES: usize = 4;

type Config = Configuration<LittleEndian, Varint, Limit<MESSAGE_BYTES_MAX>>;
const CONFIG: Config = bincode::config::standard().with_limit::<MESSAGE_BYTES_MAX>();

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The length before a message is beyond the limit.
    #[error("a message of {0} bytes, at most {MESSAGE_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// Not an encoding of the expected message.
    #[error("not a valid message: {0}")]
    Invalid(String),
}

/// The message with its length in front, ready to be sent.
///
/// # Errors
/// [`CodecError::TooLong`] where it would pass [`MESSAGE_BYTES_MAX`].
pub fn encode<M: Encode>(message: &M) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![0; LENGTH_BYTES];
    bincode::encode_into_std_write(message, &mut bytes, CONFIG)
        .map_err(|e| CodecError::Invalid(e.to_string()))?;
    let len = bytes.len() - LENGTH_BYTES;
    if len > MESSAGE_BYTES_MAX {
        return Err(CodecError::TooLong(len));
    }
    bytes[..LENGTH_BYTES].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(bytes)
}

/// The length of the message that follows these bytes.
///
/// # Errors
/// [`CodecError::TooLong`].
pub fn decode_length(bytes: [u8; LENGTH_BYTES]) -> Result<usize, CodecError> {
    let len = u32::from_le_bytes(bytes) as usize;
    if len > MESSAGE_BYTES_MAX {
        Err(CodecError::TooLong(len))
    } else {
        Ok(len)
    }
}

/// The message in these bytes (without the length), which it must fill to the end.
///
/// # Errors
/// [`CodecError::Invalid`].
pub fn decode<M: Decode<()>>(bytes: &[u8]) -> Result<M, CodecError> {
    let (message, used) = bincode::decode_from_slice(bytes, CONFIG)
        .map_err(|e| CodecError::Invalid(e.to_string()))?;
    if used != bytes.len() {
        return Err(CodecError::Invalid(format!(
            "{} bytes too many",
            bytes.len() - used
        )));
    }
    Ok(message)
}
