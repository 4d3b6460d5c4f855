//! Who else has a file open: a lease of `fcntl(2)` for writing is granted only to the one who has it alone.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `F_SETSIG` of `fcntl(2)`.
const SET_SIGNAL: libc::c_int = 10;

/// Whether anybody but `file`, which is open for writing, has the same file open, or mapped by such a descriptor.
/// What was mapped through `file` itself does not count.
///
/// # Errors
/// Where the file system has no leases.
pub(super) fn is_open_elsewhere(file: &File) -> io::Result<bool> {
    let ask = |what: libc::c_int, how: libc::c_int| {
        // SAFETY: no memory is passed, and the descriptor is borrowed for the call.
        match unsafe { libc::fcntl(file.as_raw_fd(), what, how) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // Who opens the file in between waits until the lease is given back, and this process is told by a signal: not
    // by SIGIO, which would end it, but by one that does nothing.
    ask(SET_SIGNAL, libc::SIGURG)?;
    match ask(libc::F_SETLEASE, libc::F_WRLCK as libc::c_int) {
        Ok(()) => {
            ask(libc::F_SETLEASE, libc::F_UNLCK as libc::c_int)?;
            Ok(false)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}
