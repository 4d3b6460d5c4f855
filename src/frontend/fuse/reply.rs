//! Outcomes as answers to the kernel.

use super::convert::{self, errno};
use super::names::Names;
use crate::node::replica::Entry;
use fuser::{Generation, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr};
use rustix::io::{Errno, Result};
use std::time::Duration;

pub(super) fn empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn entry(reply: ReplyEntry, names: &Names, result: Result<Entry>) {
    match result {
        Ok(entry) => reply.entry_with_ttls(
            &entry.ttl,
            &names.ttl(entry.name_ttl),
            &convert::file_attr(&entry),
            Generation(entry.generation),
        ),
        Err(error) => reply.error(errno(error)),
    }
}

/// There is no such name, and for so long the kernel may keep that.
pub(super) fn absent(reply: ReplyEntry, names: &Names, ttl: Duration) {
    let ttl = names.ttl(ttl);
    if ttl.is_zero() {
        return reply.error(errno(Errno::NOENT));
    }
    reply.entry_with_ttls(&Duration::ZERO, &ttl, &convert::no_attr(), Generation(0));
}

pub(super) fn attr(reply: ReplyAttr, result: Result<Entry>) {
    match result {
        Ok(entry) => reply.attr(&entry.ttl, &convert::file_attr(&entry)),
        Err(error) => reply.error(errno(error)),
    }
}

/// A value whose reader has room for `room` bytes, or asks with 0 how many there are.
pub(super) fn xattr(reply: ReplyXattr, room: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(value) if room == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= room as usize => reply.data(&value),
        Ok(_) => reply.error(errno(Errno::RANGE)),
        Err(error) => reply.error(errno(error)),
    }
}
