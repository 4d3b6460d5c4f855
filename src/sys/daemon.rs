//! Becoming a daemon whose caller learns the outcome.
//!
//! ```text
//! caller ── detach() ──┬── child goes on ───── done(): own session, no stdio ──▶ works
//!                      └── waits on a pipe ◀── one byte ──┘   exit 0
//!                              ◀── its end, if the child ends without it   exit as the child did
//! ```
//!
//! Until `done` the child is in the caller's session: it may print, ask on the terminal, and Ctrl-C
//! ends both. A signal that ends the caller alone ends the child as well: it is sent SIGTERM then.

use super::{Forked, close_standard_streams, fork};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_parent_process_death_signal,
    setsid, waitpid,
};
use std::io::{self, Write as _};
use std::marker::PhantomData;
use std::os::fd::OwnedFd;

/// A daemon that has yet to say that it is up.
#[must_use = "the caller waits until it is done"]
pub struct Starting {
    report: OwnedFd,
    /// Stays with the thread that is told of the caller's end: see prctl(2).
    _thread: PhantomData<*const ()>,
}

/// Goes on in a child process; the calling one waits for it and then ends, with the exit code of the
/// outcome: this returns only in the child.
///
/// # Errors
/// As [`fork`]: this process may have no other thread.
pub fn detach() -> io::Result<Starting> {
    // What stands in the buffer would be printed by both.
    io::stdout().flush()?;
    let (outcome, report) = pipe_with(PipeFlags::CLOEXEC)?;
    let caller = getpid();
    match fork()? {
        Forked::Child => {
            set_parent_process_death_signal(Some(Signal::TERM))?;
            if getppid() != Some(caller) {
                // It ended before that.
                kill_process(getpid(), Signal::TERM)?;
            }
            Ok(Starting {
                report,
                _thread: PhantomData,
            })
        }
        Forked::Parent(child) => {
            drop(report);
            std::process::exit(wait(outcome, child))
        }
    }
}

/// The exit code of a start: 0 once the child is up, else what the child ended with.
fn wait(outcome: OwnedFd, child: Pid) -> i32 {
    let mut byte = [0];
    let up = loop {
        match rustix::io::read(&outcome, &mut byte) {
            Err(rustix::io::Errno::INTR) => {}
            read => break read == Ok(1),
        }
    };
    if up {
        return 0;
    }
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(Some((_, status))) => {
                let by_signal = || status.terminating_signal().map(|signal| 128 + signal);
                // A child that ended well without being up was asked to do nothing more.
                return status.exit_status().or_else(by_signal).unwrap_or(1);
            }
            Ok(None) | Err(_) => return 1,
        }
    }
}

impl Starting {
    /// The daemon is up: leaves the session and the standard streams, and lets the caller end.
    ///
    /// # Errors
    /// Where there is no `/dev/null`.
    pub fn done(self) -> io::Result<()> {
        io::stdout().flush()?;
        set_parent_process_death_signal(None)?;
        close_standard_streams()?;
        // Fails only for the leader of a process group, which a child just forked is not.
        let _ = setsid();
        // Nobody listens where the caller was killed: the daemon is up all the same.
        let _ = rustix::io::write(&self.report, &[1]);
        Ok(())
    }
}
