//! Extended attributes, of any kind of node, held with `O_PATH`.

use super::attributes::proc_path;
use crate::store::{Errno, Result};
use crate::wire::{XATTR_BYTES_MAX, XattrMode};
use rustix::fd::AsFd;
use rustix::fs::XattrFlags;

/// Enough for most values and lists, so that they are read by one call.
const GUESS_BYTES: usize = 1024;
/// The longest list of names (Linux: `XATTR_LIST_MAX`).
const LIST_BYTES_MAX: usize = 65_536;

/// Whether the file system has attributes for users.
pub fn supported(fd: impl AsFd) -> bool {
    get(fd, b"user.memfs") != Err(Errno::OPNOTSUPP)
}

/// Value of an attribute.
pub fn get(fd: impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    let path = proc_path(fd);
    check_name(name)?;
    read(XATTR_BYTES_MAX, |value| {
        rustix::fs::getxattr(&path, name, value)
    })
}

/// Names, each followed by NUL.
pub fn list(fd: impl AsFd) -> Result<Vec<u8>> {
    let path = proc_path(fd);
    read(LIST_BYTES_MAX, |list| rustix::fs::listxattr(&path, list))
}

/// Sets an attribute.
pub fn set(fd: impl AsFd, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
    check_name(name)?;
    if value.len() > XATTR_BYTES_MAX {
        return Err(Errno::TOOBIG);
    }
    let flags = match mode {
        XattrMode::Set => XattrFlags::empty(),
        XattrMode::Create => XattrFlags::CREATE,
        XattrMode::Replace => XattrFlags::REPLACE,
    };
    rustix::fs::setxattr(proc_path(fd), name, value, flags)
}

/// Removes an attribute.
pub fn remove(fd: impl AsFd, name: &[u8]) -> Result<()> {
    check_name(name)?;
    rustix::fs::removexattr(proc_path(fd), name)
}

/// As Linux has it: `ERANGE` for a name too long, or empty.
fn check_name(name: &[u8]) -> Result<()> {
    match name.len() {
        1..=255 if !name.contains(&0) => Ok(()),
        1..=255 => Err(Errno::INVAL),
        _ => Err(Errno::RANGE),
    }
}

/// Reads into a small buffer, and into the largest that can be needed where that is too small.
fn read(bytes_max: usize, call: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut small = [0; GUESS_BYTES];
    match call(&mut small) {
        Ok(len) => return Ok(small[..len].to_vec()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    let mut large = vec![0; bytes_max];
    let len = call(&mut large)?;
    large.truncate(len);
    Ok(large)
}
