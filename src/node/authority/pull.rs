//! Pulls: bytes of a region, in frames.
//!
//! Holes are found by asking the store where data begins, and are sent as zero frames without being read. Where
//! data ends is not asked: some file systems walk over every page up to there (tmpfs, to the end of a file
//! without holes). A hole behind data is read as zeroes, up to a batch of it. The store is read some frames ahead of the connection; how far is bounded for each session, separately for
//! pulls that somebody waits for, so that those never wait for the others.

use super::buffers::Buffers;
use super::connection::Attached;
use super::request::send_reply;
use super::session::Handle;
use super::{BRIEF_BYTES, PRIORITY_BACKGROUND, reply};
use crate::store::{Errno, Result, StoreFile};
use crate::transport::stream::{self, StreamError};
use crate::wire::frame::FRAME_BYTES_MAX;
use crate::wire::{Answer, HandleId, TRANSFER_BYTES_MAX};
use bytes::Bytes;
use quinn::SendStream;
use std::sync::Arc;

/// So much is read at a time.
pub(super) const BATCH_BYTES: u64 = 4 * FRAME_BYTES_MAX as u64;

/// What is asked for.
pub(super) struct Asked {
    pub handle: HandleId,
    pub start: u64,
    pub end: u64,
    pub demand: bool,
    pub compress: bool,
}

/// A frame to be.
enum Piece {
    Data(Bytes),
    Zero(u32),
}

/// A range of a file being read.
struct Reader {
    handle: Arc<Handle>,
    buffers: Arc<Buffers>,
    at: u64,
    end: u64,
    /// Up to here it is read without looking for holes.
    data_until: u64,
}

/// The beginning of an answer.
struct First {
    size: u64,
    zero_until: u64,
    reader: Reader,
    pieces: Vec<Piece>,
}

impl Attached {
    /// Answers a pull.
    pub(super) async fn pull(
        &self,
        send: &mut SendStream,
        asked: Asked,
    ) -> std::result::Result<(), StreamError> {
        let handle = match self.session.handle(asked.handle) {
            Ok(_) if asked.start > asked.end || asked.end - asked.start > TRANSFER_BYTES_MAX => {
                Err(Errno::INVAL)
            }
            found => found,
        };
        let handle = match handle {
            Ok(handle) => handle,
            Err(errno) => return self.pull_failed(send, errno).await,
        };
        let coherence = &self.service.coherence;
        let at = coherence.subscribe_first(self.session.client, handle.node.id);
        let len = asked.end - asked.start;
        let room = &self.session.pull_room[usize::from(asked.demand)];
        // Never closed. Held until the last piece was taken by the connection.
        let _room = room.acquire_many(len.min(BATCH_BYTES) as u32).await;
        let buffers = self.service.buffers.clone();
        let begin = || First::read(handle, buffers, asked.start, asked.end);
        let first = match len <= BRIEF_BYTES {
            true => self.brief(begin).await,
            false => self.blocking(begin).await,
        };
        let first = match first {
            Ok(first) => first,
            Err(errno) => return self.pull_failed(send, errno).await,
        };
        let answer = Answer::Pulled {
            size: first.size,
            zero_until: first.zero_until,
        };
        send_reply(send, &reply(at, Ok(answer))).await?;
        if !asked.demand {
            // An error means that the connection is gone, as sending will show.
            let _ = send.set_priority(PRIORITY_BACKGROUND);
        }
        let First {
            mut reader,
            mut pieces,
            ..
        } = first;
        loop {
            for piece in pieces {
                match piece {
                    Piece::Data(bytes) => stream::send_frame(send, bytes, asked.compress).await?,
                    Piece::Zero(len) => stream::send_zeroes(send, len).await?,
                }
            }
            if reader.at == reader.end {
                break;
            }
            // It is too late for an errno. The replica asks again, and gets it at the beginning.
            let read = self.blocking(|| reader.batch()).await;
            pieces = read.map_err(|errno| StreamError::Link(errno.to_string()))?;
        }
        let _ = send.finish();
        Ok(())
    }

    async fn pull_failed(
        &self,
        send: &mut SendStream,
        errno: Errno,
    ) -> std::result::Result<(), StreamError> {
        tracing::debug!(peer = %self.peer, %errno, "a pull fails");
        send_reply(send, &self.refuse(errno)).await?;
        let _ = send.finish();
        Ok(())
    }
}

impl First {
    /// Reads the first pieces of `start..end`, as far as the file goes.
    fn read(handle: Arc<Handle>, buffers: Arc<Buffers>, start: u64, end: u64) -> Result<First> {
        let size = handle.file.attr()?.size;
        let mut zero_until = end;
        if end < size {
            let data = match handle.file.next_data(end) {
                Err(Errno::NXIO) => size,
                found => found?,
            };
            zero_until = data.max(end);
        }
        let mut reader = Reader {
            handle,
            buffers,
            at: start,
            end: end.min(size).max(start),
            data_until: start,
        };
        let pieces = reader.batch()?;
        Ok(First {
            size,
            zero_until,
            reader,
            pieces,
        })
    }
}

impl Reader {
    /// The next pieces; none only at the end.
    fn batch(&mut self) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut room = BATCH_BYTES;
        while self.at < self.end && room > 0 {
            if self.at >= self.data_until {
                self.skip_hole(&mut pieces)?;
                continue;
            }
            let len = (self.data_until - self.at).min(room);
            room -= len;
            let bytes = self.read(len as usize)?;
            let read = bytes.len() as u64;
            self.at += read;
            let frames = (0..bytes.len()).step_by(FRAME_BYTES_MAX as usize);
            let frame =
                |from: usize| bytes.slice(from..bytes.len().min(from + FRAME_BYTES_MAX as usize));
            pieces.extend(frames.map(|from| Piece::Data(frame(from))));
            if read < len {
                // It has become shorter: the replica will hear of that, and this is never seen.
                self.zeroes(self.end, &mut pieces);
            }
        }
        Ok(pieces)
    }

    /// Reads `len` bytes; fewer at the end of the file.
    fn read(&self, len: usize) -> Result<Bytes> {
        if len as u64 <= BRIEF_BYTES {
            let mut bytes = vec![0; len];
            let read = self.file().read_at(&mut bytes, self.at)?;
            bytes.truncate(read);
            return Ok(bytes.into());
        }
        let mut buffer = self.buffers.take();
        let read = self.file().read_at(&mut buffer.as_mut()[..len], self.at)?;
        Ok(buffer.freeze().slice(..read.min(len)))
    }

    /// At a place where there may be a hole: goes on to the next data.
    fn skip_hole(&mut self, pieces: &mut Vec<Piece>) -> Result<()> {
        let data = match self.file().next_data(self.at) {
            Err(Errno::NXIO) => self.end,
            found => found?.clamp(self.at, self.end),
        };
        self.zeroes(data, pieces);
        self.data_until = self.end.min(self.at + BATCH_BYTES);
        Ok(())
    }

    fn zeroes(&mut self, until: u64, pieces: &mut Vec<Piece>) {
        // A transfer is never longer than a zero frame may be.
        if until > self.at {
            pieces.push(Piece::Zero((until - self.at) as u32));
            self.at = until;
        }
    }

    fn file(&self) -> &dyn StoreFile {
        &*self.handle.file
    }
}
