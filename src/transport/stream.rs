//! Messages and frames on QUIC streams.

use crate::wire::codec::CodecError;
use crate::wire::frame::FrameError;

/// Why nothing could be read from or written to a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection or stream has ended: worth doing again over a new connection.
    #[error("the link is gone: {0}")]
    Link(String),
    /// The peer broke the protocol.
    #[error("the other side broke the protocol: {0}")]
    Protocol(String),
}

impl From<CodecError> for StreamError {
    fn from(error: CodecError) -> StreamError {
        StreamError::Protocol(error.to_string())
    }
}

impl From<FrameError> for StreamError {
    fn from(error: FrameError) -> StreamError {
        StreamError::Protocol(error.to_string())
    }
}

/// Whether a connection was closed because the server does not let our key in.
pub fn is_unauthorized(_connection: &quinn::Connection) -> bool {
    unimplemented!()
}

/// Sends one message.
///
/// # Errors
/// [`StreamError`].
pub async fn send<M: bincode::Encode>(
    _stream: &mut quinn::SendStream,
    _message: &M,
) -> Result<(), StreamError> {
    unimplemented!()
}

/// Receives one message; `None` where the stream ends before its first byte.
///
/// # Errors
/// [`StreamError`].
pub async fn receive<M: bincode::Decode<()>>(
    _stream: &mut quinn::RecvStream,
) -> Result<Option<M>, StreamError> {
    unimplemented!()
}

/// Sends `bytes` as one frame, packed as [`crate::wire::frame::pack`] finds best. At most
/// [`crate::wire::frame::FRAME_BYTES_MAX`] of them. Plain data is not copied again.
///
/// # Errors
/// [`StreamError`].
pub async fn send_frame(
    _stream: &mut quinn::SendStream,
    _bytes: bytes::Bytes,
    _compress: bool,
) -> Result<(), StreamError> {
    unimplemented!()
}

/// Sends a frame of `len` zeroes.
///
/// # Errors
/// [`StreamError`].
pub async fn send_zeroes(_stream: &mut quinn::SendStream, _len: u32) -> Result<(), StreamError> {
    unimplemented!()
}

/// What a frame holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// These bytes, in pieces as they came from the connection (not copied together), at least one.
    Data(Vec<bytes::Bytes>),
    /// This many zeroes.
    Zero(u32),
}

/// Receives one frame, unpacked.
///
/// # Errors
/// [`StreamError`]; a frame that stands for more than `len_max` bytes is a breach of the protocol.
pub async fn receive_frame(
    _stream: &mut quinn::RecvStream,
    _len_max: u64,
) -> Result<Frame, StreamError> {
    unimplemented!()
}
