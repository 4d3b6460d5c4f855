//! Frames: how page bytes travel.
//!
//! ```text
//! 0        1                4           8           12
//! | kind   | reserved, zero | len (LE)  | wire (LE) | payload: `wire` bytes
//! ```
//!
//! `len` is how many bytes of the region the frame stands for, `wire` how many follow.
//!
//! | kind | | wire |
//! |---|---|---|
//! | 0 | data as it is | = `len` |
//! | 1 | zeroes | 0 |
//! | 2 | an LZ4 block (no size in front) that decompresses to `len` bytes | < `len` |
//!
//! `len` is 1 to [`FRAME_BYTES_MAX`] for data and LZ4, 1 to [`super::TRANSFER_BYTES_MAX`] for zeroes.

use super::TRANSFER_BYTES_MAX;
use lz4_flex::block::{compress, compress_into, decompress, get_maximum_output_size};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 12;
/// The most bytes of a region one data or LZ4 frame stands for.
pub const FRAME_BYTES_MAX: u32 = 128 << 10;

/// What a frame's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data as it is.
    Data,
    /// Zeroes; there is no payload.
    Zero,
    /// An LZ4 block.
    Lz4,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// How many bytes of the region it stands for.
    pub len: u32,
    /// How many bytes of payload follow.
    pub wire: u32,
}

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Kind, reserved bytes or lengths are not allowed.
    #[error("not a valid frame header: {0:02x?}")]
    Header([u8; HEADER_BYTES]),
    /// The payload does not decompress to the length that was told.
    #[error("a compressed frame does not hold the {0} bytes it should")]
    Lz4(u32),
}

impl Header {
    /// The bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = match self.kind {
            Kind::Data => 0,
            Kind::Zero => 1,
            Kind::Lz4 => 2,
        };
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.wire.to_le_bytes());
        bytes
    }

    /// The header in these bytes.
    ///
    /// # Errors
    /// [`FrameError::Header`] for anything the module's table does not allow.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (len, wire) = (word(4), word(8));
        let sized = (1..=FRAME_BYTES_MAX).contains(&len);
        let kind = match bytes[0] {
            0 if sized && wire == len => Kind::Data,
            1 if 1 <= len && u64::from(len) <= TRANSFER_BYTES_MAX && wire == 0 => Kind::Zero,
            2 if sized && 1 <= wire && wire < len => Kind::Lz4,
            _ => return Err(FrameError::Header(bytes)),
        };
        if bytes[1..4] != [0; 3] {
            return Err(FrameError::Header(bytes));
        }
        Ok(Header { kind, len, wire })
    }
}

/// How a run of bytes is best sent.
pub enum Packed {
    /// As it is.
    Data,
    /// As zeroes.
    Zero,
    /// As this LZ4 block.
    Lz4(Vec<u8>),
}

/// A part of an extent is tried first: where it does not shrink to this share, the rest is not tried.
const SAMPLE_BYTES: usize = 4096;

/// Chooses how to send `bytes`, at most [`FRAME_BYTES_MAX`] of them: zeroes are found always, LZ4 is
/// tried where `try_lz4` and taken only if it saves an eighth.
pub fn pack(bytes: &[u8], try_lz4: bool) -> Packed {
    if is_zero(bytes) {
        return Packed::Zero;
    }
    let worth = |packed: usize, plain: usize| packed <= plain - plain / 8;
    if !try_lz4 || bytes.len() < 512 {
        return Packed::Data;
    }
    if bytes.len() > 2 * SAMPLE_BYTES {
        let middle = bytes.len() / 2;
        let sample = &bytes[middle..middle + SAMPLE_BYTES];
        let mut packed = [0; get_maximum_output_size(SAMPLE_BYTES)];
        if !compress_into(sample, &mut packed).is_ok_and(|len| worth(len, sample.len())) {
            return Packed::Data;
        }
    }
    let packed = compress(bytes);
    if worth(packed.len(), bytes.len()) {
        Packed::Lz4(packed)
    } else {
        Packed::Data
    }
}

/// The bytes of an LZ4 frame.
///
/// # Errors
/// [`FrameError::Lz4`] where the payload is not a block of exactly `len` bytes, or `len` is not
/// allowed.
pub fn unpack(payload: &[u8], len: u32) -> Result<Vec<u8>, FrameError> {
    if len > FRAME_BYTES_MAX {
        return Err(FrameError::Lz4(len));
    }
    match decompress(payload, len as usize) {
        Ok(bytes) if bytes.len() == len as usize => Ok(bytes),
        _ => Err(FrameError::Lz4(len)),
    }
}

/// Whether all bytes are zero; ends at the first that is not.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(64)
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
