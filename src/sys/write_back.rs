//! `sync_file_range(2)`: writing back a file's pages and nothing else of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Writes back the dirty pages of `file` and waits until that is done. `fsync(2)` would also ask the file
/// system to make it durable.
///
/// # Errors
/// As `sync_file_range(2)`.
pub fn write_back(file: impl AsFd) -> io::Result<()> {
    let how = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: no memory is passed, and the descriptor is borrowed for the call.
    let result = unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, how) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
