//! Messages and frames on QUIC streams.
//!
//! None of the calls is safe to cancel: dropped halfway, the stream is in the middle of a message.
//! Give each stream to one task and let it finish, or reset the stream.

use crate::wire::TRANSFER_BYTES_MAX;
use crate::wire::codec::{self, CodecError, LENGTH_BYTES};
use crate::wire::frame::{self, FRAME_BYTES_MAX, FrameError, HEADER_BYTES, Header, Kind, Packed};
use bytes::Bytes;
use quinn::{ReadError, ReadExactError, WriteError};
use std::task::{Context, Waker};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Why nothing could be read from or written to a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection or stream has ended, maybe in the middle of a message: worth doing again over a
    /// new connection.
    #[error("the link is gone: {0}")]
    Link(String),
    /// Only when sending: the other side takes no more of this stream. Its answer, on the same
    /// stream, tells why.
    #[error("the other side does not want the rest")]
    Stopped,
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

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> StreamError {
        StreamError::Link(error.to_string())
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> StreamError {
        match error {
            WriteError::Stopped(_) => StreamError::Stopped,
            error => StreamError::Link(error.to_string()),
        }
    }
}

/// A stream ends within a message where the sending task was dropped: its process is ending.
fn ended_early() -> StreamError {
    StreamError::Link("a stream ended in the middle of a message".into())
}

/// Whether a connection was closed because the server does not let our key in.
pub fn is_unauthorized(connection: &quinn::Connection) -> bool {
    match connection.close_reason() {
        Some(quinn::ConnectionError::ApplicationClosed(close)) => {
            close.error_code == super::endpoint::CLOSE_UNAUTHORIZED
        }
        _ => false,
    }
}

/// Sends one message.
///
/// # Errors
/// [`StreamError`]; `Protocol` where the message is too long to be sent.
pub async fn send<M: bincode::Encode>(
    stream: &mut quinn::SendStream,
    message: &M,
) -> Result<(), StreamError> {
    Ok(stream.write_chunk(codec::encode(message)?.into()).await?)
}

/// Receives one message; `None` where the stream ends before its first byte.
///
/// # Errors
/// [`StreamError`].
pub async fn receive<M: bincode::Decode<()>>(
    stream: &mut quinn::RecvStream,
) -> Result<Option<M>, StreamError> {
    match receive_length(stream).await? {
        Some(len) => receive_rest(stream, len).await.map(Some),
        None => Ok(None),
    }
}

/// As [`receive`]; before a message of more than `free` bytes is received, it takes a permit a byte of `room`, which
/// is to be kept as long as the message is.
///
/// # Errors
/// [`StreamError`].
pub async fn receive_within<'a, M: bincode::Decode<()>>(
    stream: &mut quinn::RecvStream,
    free: usize,
    room: &'a Semaphore,
) -> Result<Option<(M, Option<SemaphorePermit<'a>>)>, StreamError> {
    let Some(len) = receive_length(stream).await? else {
        return Ok(None);
    };
    let taken = match len > free {
        // Lengths are far below 4 GiB. Nobody closes it.
        true => room.acquire_many(len as u32).await.ok(),
        false => None,
    };
    Ok(Some((receive_rest(stream, len).await?, taken)))
}

/// The length of the next message.
async fn receive_length(stream: &mut quinn::RecvStream) -> Result<Option<usize>, StreamError> {
    let mut length = [0; LENGTH_BYTES];
    match stream.read_exact(&mut length).await {
        Ok(()) => Ok(Some(codec::decode_length(length)?)),
        Err(ReadExactError::FinishedEarly(0)) => Ok(None),
        Err(ReadExactError::FinishedEarly(_)) => Err(ended_early()),
        Err(ReadExactError::ReadError(error)) => Err(error.into()),
    }
}

async fn receive_rest<M: bincode::Decode<()>>(
    stream: &mut quinn::RecvStream,
    len: usize,
) -> Result<M, StreamError> {
    let payload = Payload::receive(stream, len).await?;
    Ok(codec::decode(&payload.join())?)
}

/// Sends `bytes` as one frame, packed as [`crate::wire::frame::pack`] finds best. At most
/// [`crate::wire::frame::FRAME_BYTES_MAX`] of them. Plain data is not copied again.
///
/// # Errors
/// [`StreamError`]; `Protocol` where no frame may have that length.
pub async fn send_frame(
    stream: &mut quinn::SendStream,
    bytes: Bytes,
    compress: bool,
) -> Result<(), StreamError> {
    let len = match u32::try_from(bytes.len()) {
        Ok(len) if (1..=FRAME_BYTES_MAX).contains(&len) => len,
        _ => return Err(unsendable(bytes.len())),
    };
    let (kind, payload) = match frame::pack(&bytes, compress) {
        Packed::Data => (Kind::Data, bytes),
        Packed::Zero => return send_zeroes(stream, len).await,
        Packed::Lz4(packed) => (Kind::Lz4, packed.into()),
    };
    let wire = payload.len() as u32;
    let header = Header { kind, len, wire }.encode();
    let header = Bytes::copy_from_slice(&header);
    Ok(stream.write_all_chunks(&mut [header, payload]).await?)
}

/// Sends a frame of `len` zeroes, 1 to [`TRANSFER_BYTES_MAX`].
///
/// # Errors
/// [`StreamError`]; `Protocol` where no frame may have that length.
pub async fn send_zeroes(stream: &mut quinn::SendStream, len: u32) -> Result<(), StreamError> {
    if len == 0 || u64::from(len) > TRANSFER_BYTES_MAX {
        return Err(unsendable(len as usize));
    }
    let (kind, wire) = (Kind::Zero, 0);
    Ok(stream
        .write_all(&Header { kind, len, wire }.encode())
        .await?)
}

fn unsendable(len: usize) -> StreamError {
    StreamError::Protocol(format!("no frame can have {len} bytes"))
}

/// What a frame holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// These bytes, in pieces as they came from the connection (not copied together), at least one.
    Data(Vec<Bytes>),
    /// This many zeroes.
    Zero(u32),
}

/// Receives one frame, unpacked.
///
/// # Errors
/// [`StreamError`]; a frame that stands for more than `len_max` bytes is a breach of the protocol.
pub async fn receive_frame(
    stream: &mut quinn::RecvStream,
    len_max: u64,
) -> Result<Frame, StreamError> {
    let mut header = [0; HEADER_BYTES];
    match stream.read_exact(&mut header).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(_)) => return Err(ended_early()),
        Err(ReadExactError::ReadError(error)) => return Err(error.into()),
    }
    let Header { kind, len, wire } = Header::decode(header)?;
    if u64::from(len) > len_max {
        let what = format!("a frame of {len} bytes where at most {len_max} were due");
        return Err(StreamError::Protocol(what));
    }
    let payload = Payload::receive(stream, wire as usize).await?;
    Ok(match kind {
        Kind::Data => Frame::Data(payload.0),
        Kind::Zero => Frame::Zero(len),
        Kind::Lz4 => Frame::Data(vec![frame::unpack(&payload.join(), len)?.into()]),
    })
}

/// Takes in that a stream ends after what was received of it, if that is known yet, as it mostly is. A stream that is let go
/// of before counts as unwanted, which the other side is told: in a datagram of its own.
pub fn take_end(stream: &mut quinn::RecvStream) {
    let end = std::pin::pin!(stream.read_chunk(1, true));
    let _ = end.poll(&mut Context::from_waker(Waker::noop()));
}

/// Bytes of known number, in the pieces they came in. Memory is taken as they come, not as they are
/// announced.
struct Payload(Vec<Bytes>);

impl Payload {
    async fn receive(stream: &mut quinn::RecvStream, len: usize) -> Result<Payload, StreamError> {
        let mut pieces = Vec::new();
        let mut missing = len;
        while missing > 0 {
            let Some(chunk) = stream.read_chunk(missing, true).await? else {
                return Err(ended_early());
            };
            missing -= chunk.bytes.len();
            pieces.push(chunk.bytes);
        }
        Ok(Payload(pieces))
    }

    /// In one piece: copied only if it came in several.
    fn join(mut self) -> Bytes {
        match self.0.len() {
            1 => self.0.swap_remove(0),
            _ => self.0.concat().into(),
        }
    }
}
