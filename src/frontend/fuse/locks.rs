//! Requests on locks.
//!
//! A program that waits for a lock may get a signal ([`super::askers`]): then the answer is `EINTR`. The kernel has the program
//! handle the signal, and makes the call again if the program wants that.

use super::convert::{self, errno};
use super::reply;
use super::run::Adapter;
use crate::node::replica::{HandleNo, LockAsked};
use crate::region::{LockKey, LockMode, LockRun, LockSpace};
use crate::sys;
use fuser::{LockOwner, ReplyEmpty, ReplyLock, Request};
use rustix::io::Errno;
use std::sync::Arc;

/// What the kernel asks for, of GETLK and SETLK alike.
pub(super) struct Asked {
    pub handle: HandleNo,
    pub owner: LockOwner,
    /// First byte.
    pub start: u64,
    /// The last byte.
    pub last: u64,
    pub kind: i32,
    pub pid: u32,
}

impl Asked {
    /// `None` as mode: unlock.
    fn run(&self) -> Result<(Option<LockMode>, LockRun), Errno> {
        let mode = match self.kind {
            libc::F_RDLCK => Some(LockMode::Shared),
            libc::F_WRLCK => Some(LockMode::Exclusive),
            libc::F_UNLCK => None,
            _ => return Err(Errno::INVAL),
        };
        if self.start > self.last {
            return Err(Errno::INVAL);
        }
        let end = match self.last >= convert::OFFSET_MAX {
            true => u64::MAX,
            false => self.last + 1,
        };
        let run = LockRun {
            start: self.start,
            end,
            mode: mode.unwrap_or(LockMode::Shared),
        };
        Ok((mode, run))
    }

    fn key(&self, space: LockSpace) -> LockKey {
        let owner = self.owner.0;
        LockKey { space, owner }
    }
}

impl Adapter {
    pub(super) fn set_lock(&self, request: &Request, asked: Asked, wait: bool, reply: ReplyEmpty) {
        let (mode, run) = match asked.run() {
            Ok(run) => run,
            Err(error) => return reply.error(errno(error)),
        };
        let space = match sys::is_flock(request, asked.handle.0, asked.owner.0) {
            Some(true) => LockSpace::Flock,
            Some(false) | None => LockSpace::Fcntl,
        };
        let (replica, thread) = (Arc::clone(&self.replica), request.pid());
        let key = asked.key(space);
        let wanted = LockAsked {
            key,
            pid: asked.pid,
            run,
        };
        let answer = move |outcome| reply::empty(reply, outcome);
        if mode.is_some() && wait {
            let askers = Arc::clone(&self.askers);
            return self.start(async move {
                let stop = askers.signalled(thread);
                answer(replica.lock_waiting(asked.handle, wanted, stop).await);
            });
        }
        let work = async move {
            match mode {
                None => replica.unlock(asked.handle, key, run.range()).await,
                Some(_) => replica.lock(asked.handle, wanted).await,
            }
        };
        self.run(request, work, answer);
    }

    pub(super) fn get_lock(&self, request: &Request, asked: Asked, reply: ReplyLock) {
        let run = match asked.run() {
            Ok((_, run)) => run,
            Err(error) => return reply.error(errno(error)),
        };
        let wanted = LockAsked {
            key: asked.key(LockSpace::Fcntl),
            pid: asked.pid,
            run,
        };
        let replica = Arc::clone(&self.replica);
        let work = async move { replica.test_lock(asked.handle, wanted).await };
        self.run(request, work, move |outcome| match outcome {
            Ok(None) => reply.locked(asked.start, asked.last, libc::F_UNLCK, 0),
            Ok(Some(held)) => {
                let kind = match held.run.mode {
                    LockMode::Shared => libc::F_RDLCK,
                    LockMode::Exclusive => libc::F_WRLCK,
                };
                let last = held.run.end.saturating_sub(1).min(convert::OFFSET_MAX);
                reply.locked(held.run.start.min(last), last, kind, held.pid);
            }
            Err(error) => reply.error(errno(error)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_the_kernel() {
        let run = |start, last, kind| {
            Asked {
                handle: HandleNo(1),
                owner: LockOwner(2),
                start,
                last,
                kind,
                pid: 3,
            }
            .run()
        };
        let (mode, whole) = run(0, i64::MAX as u64, libc::F_WRLCK).unwrap();
        assert_eq!((mode, whole.end), (Some(LockMode::Exclusive), u64::MAX));
        let (mode, one) = run(5, 5, libc::F_UNLCK).unwrap();
        assert_eq!((mode, one.start, one.end), (None, 5, 6));
        assert_eq!(run(6, 5, libc::F_RDLCK), Err(Errno::INVAL));
        assert_eq!(run(0, 5, 77), Err(Errno::INVAL));
    }
}
