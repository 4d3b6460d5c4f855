//! Requests on locks.
//!
//! A program that waits for a lock may get a signal. The kernel tells of that by INTERRUPT, which fuser refuses, and from
//! then on the kernel does not even let a killed program go before it has its answer. So the signals that a waiting thread has
//! are looked at now and then, and when there is one the answer is `EINTR`: the kernel has the program
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
use std::time::Duration;

/// How often it is looked whether a waiting thread has got a signal.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

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
        self.run(async move {
            let outcome = match (mode, wait) {
                (None, _) => replica.unlock(asked.handle, key, run.range()).await,
                (Some(_), false) => replica.lock(asked.handle, wanted).await,
                (Some(_), true) => {
                    let stop = signalled(thread);
                    replica.lock_waiting(asked.handle, wanted, stop).await
                }
            };
            reply::empty(reply, outcome);
        });
    }

    pub(super) fn get_lock(&self, asked: Asked, reply: ReplyLock) {
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
        self.run(async move {
            match replica.test_lock(asked.handle, wanted).await {
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
            }
        });
    }
}

/// Waits until a thread that waits for an answer has got a signal to handle. Does not end where its signals cannot be seen.
async fn signalled(thread: u32) {
    if thread == 0 {
        // It is in another namespace of processes.
        return std::future::pending().await;
    }
    let path = format!("/proc/{thread}/status");
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        match std::fs::read_to_string(&path) {
            Ok(status) if has_signal(&status) => return,
            Ok(_) => {}
            Err(_) => return std::future::pending().await,
        }
    }
}

/// Whether the thread with this `/proc/N/status` has a signal to handle. One that was sent to the process is its own
/// if it is the first thread and does not block it: then the kernel chooses it before others. For other threads
/// only their own count: without a signal to handle, `EINTR` would be seen by the program as an error it does not know.
fn has_signal(status: &str) -> bool {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
    };
    let signals = |name| field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let (own, blocked) = (signals("SigPnd:"), signals("SigBlk:"));
    let first = field("Tgid:") == field("Pid:");
    let shared = signals("ShdPnd:").filter(|_| first);
    (own.unwrap_or(0) | shared.unwrap_or(0)) & !blocked.unwrap_or(0) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(thread: u32, own: u64, shared: u64, blocked: u64) -> String {
        format!(
            "Name:\tcat\nTgid:\t7\nPid:\t{thread}\nThreads:\t1\nSigPnd:\t{own:016x}\n\
             ShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t0000000000000000\n"
        )
    }

    #[test]
    fn signals_to_be_handled_are_seen() {
        assert!(!has_signal(&status(7, 0, 0, 0)) && !has_signal(""));
        assert!(has_signal(&status(7, 0x100, 0, 0)));
        assert!(has_signal(&status(7, 0, 0x2000, 0x1000)));
        assert!(!has_signal(&status(7, 0, 0x2000, 0x2000)));
        assert!(!has_signal(&status(8, 0, 0x2000, 0)), "another thread's");
        assert!(has_signal(&status(8, 0x100, 0x2000, 0)));
    }

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
