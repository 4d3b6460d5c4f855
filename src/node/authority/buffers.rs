//! Memory that files are read into: used again when the connection is done with it, because giving it back to
//! the system and having new pages zeroed costs more than the reading does.

use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;

/// Free buffers that are kept.
const KEPT_MAX: usize = 32;

/// Buffers of one size.
pub(super) struct Buffers {
    len: usize,
    free: Mutex<Vec<Box<[u8]>>>,
}

/// One of them. What it holds is from its last use.
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    home: Arc<Buffers>,
}

impl Buffers {
    /// Buffers of `len` bytes.
    pub fn new(len: usize) -> Arc<Buffers> {
        Arc::new(Buffers {
            len,
            free: Mutex::default(),
        })
    }

    /// A buffer that nobody else has.
    pub fn take(self: &Arc<Self>) -> Buffer {
        let free = self.free.lock().pop();
        Buffer {
            bytes: free.unwrap_or_else(|| vec![0; self.len].into()),
            home: self.clone(),
        }
    }
}

impl Buffer {
    /// All of it, to be filled.
    pub fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// As bytes to send; the buffer is free again when the last of them is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut free = self.home.free.lock();
        if free.len() < KEPT_MAX {
            free.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_its_last_bytes_are_dropped() {
        let buffers = Buffers::new(8);
        let mut buffer = buffers.take();
        buffer.as_mut().fill(1);
        let bytes = buffer.freeze();
        let (first, last) = (bytes.slice(..4), bytes.slice(4..));
        drop((bytes, first));
        assert!(buffers.free.lock().is_empty());
        drop(last);
        assert_eq!(buffers.free.lock().len(), 1);
        assert_eq!(buffers.take().as_ref(), [1; 8]);
    }

    #[test]
    fn no_more_are_kept_than_allowed() {
        let buffers = Buffers::new(1);
        let taken: Vec<Buffer> = (0..2 * KEPT_MAX).map(|_| buffers.take()).collect();
        drop(taken);
        assert_eq!(buffers.free.lock().len(), KEPT_MAX);
    }
}
