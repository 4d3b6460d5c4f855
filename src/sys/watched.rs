//! Waiting for a descriptor among tasks.

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime that this is called in.
///
/// # Errors
/// From `epoll_ctl(2)`: a descriptor that cannot be waited for, or too many of them.
pub fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor has to stay the same open one until it is deregistered. It is owned by what is
    // returned, which deregisters it before closing it, and an `OwnedFd` never changes its descriptor.
    let watched = unsafe { AsyncFd::register(fd) };
    Ok(watched?)
}
