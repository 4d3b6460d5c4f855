//! Programs that get a signal while they wait for an answer.
//!
//! The kernel tells of that by INTERRUPT, which fuser refuses, and from then on the kernel does not even let a killed
//! program go before it has its answer, nor anybody who waits for a lock that it holds. So the signals of a thread that
//! has waited for long are looked at now and then. Once it is being killed its request is answered.
//!
//! `/proc/N/status` tells of them without a lock that a program has amid execve(2) or exit(2), which may be what waits here
//! (`/proc/N/stat` does not). Still this may be the last to let go of the memory of a program that ends, and has to
//! write back then what that had mapped. So it is read by a thread that answers nobody.

use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Who has waited for so long is looked at.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often those are looked at who wait for a lock.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// The others are looked at every so many times.
const SELDOM: u32 = 4;

/// What a thread is looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// It is being killed.
    Death,
    /// It has a signal to handle, or is being killed.
    Signals,
}

/// A thread that waits.
struct Look {
    thread: u32,
    what: For,
    tell: oneshot::Sender<()>,
}

/// Who asks the kernel, and waits.
pub(super) struct Askers {
    looks: Mutex<mpsc::Sender<Look>>,
    /// A thread that was killed: it may have more files to close.
    killed: Arc<AtomicU32>,
    /// Process number of [`super::Helper`].
    helper: u32,
}

impl Askers {
    /// Starts the thread that looks; it ends when this is gone.
    pub fn start(helper: u32) -> io::Result<Askers> {
        let (looks, receiver) = mpsc::channel();
        let killed = Arc::new(AtomicU32::new(0));
        let watcher = Watcher {
            looks: receiver,
            killed: killed.clone(),
            waiting: Vec::new(),
        };
        std::thread::Builder::new()
            .name("memfs-askers".into())
            .spawn(move || watcher.run())?;
        Ok(Askers {
            looks: Mutex::new(looks),
            killed,
            helper,
        })
    }

    /// Whether it is the helper that asks.
    pub fn is_helper(&self, thread: u32) -> bool {
        thread == self.helper
    }

    /// Waits until a thread that waits for an answer is being killed. Does not end where that cannot be seen: it is in
    /// another namespace of processes, or the kernel asks by itself.
    pub async fn killed(&self, thread: u32) {
        if thread == 0 || self.is_helper(thread) {
            return std::future::pending().await;
        }
        if self.killed.load(Ordering::Relaxed) != thread {
            tokio::time::sleep(PATIENCE).await;
        }
        self.look(thread, For::Death).await;
    }

    /// The same, or until it has a signal to handle.
    pub async fn signalled(&self, thread: u32) {
        if thread == 0 {
            return std::future::pending().await;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        self.look(thread, For::Signals).await;
    }

    async fn look(&self, thread: u32, what: For) {
        let (tell, told) = oneshot::channel();
        // Where the thread that looks is gone, nobody tells.
        let _ = self.looks.lock().send(Look { thread, what, tell });
        if told.await.is_err() {
            std::future::pending().await
        }
    }
}

/// The thread that looks.
struct Watcher {
    looks: mpsc::Receiver<Look>,
    killed: Arc<AtomicU32>,
    waiting: Vec<Look>,
}

impl Watcher {
    fn run(mut self) {
        let (mut due, mut round) = (Instant::now(), 0);
        loop {
            let next = match self.waiting.is_empty() {
                true => {
                    due = Instant::now() + LOOK_INTERVAL;
                    self.looks.recv().map_err(RecvTimeoutError::from)
                }
                false => (self.looks).recv_timeout(due.saturating_duration_since(Instant::now())),
            };
            match next {
                Ok(look) => self.waiting.extend(self.waits_on(look)),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() < due {
                continue;
            }
            round = (round + 1) % SELDOM;
            for look in std::mem::take(&mut self.waiting) {
                let kept = match look.what == For::Signals || round == 0 {
                    true => self.waits_on(look),
                    false => Some(look),
                };
                self.waiting.extend(kept);
            }
            due = Instant::now() + LOOK_INTERVAL;
        }
    }

    /// Looks; `None` where that was the last time.
    fn waits_on(&self, look: Look) -> Option<Look> {
        if look.tell.is_closed() {
            return None;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", look.thread)).ok()?;
        let killed = is_killed(&status);
        if killed {
            self.killed.store(look.thread, Ordering::Relaxed);
        }
        if killed || look.what == For::Signals && has_signal(&status) {
            // Just now it may have got its answer.
            let _ = look.tell.send(());
            return None;
        }
        Some(look)
    }
}

/// What a line of `/proc/N/status` says.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.map(str::trim)
}

/// Signals that such a line counts up.
fn signals(status: &str, name: &str) -> u64 {
    let mask = field(status, name).and_then(|mask| u64::from_str_radix(mask, 16).ok());
    mask.unwrap_or(0)
}

/// Whether the thread with this `/proc/N/status` is being killed: SIGKILL is what the kernel gives each thread of a process
/// that a signal ends. One that is closing its files in the end (it has no table of them any more) has taken that, but what
/// was sent to the process is still there; nothing is where it ends by itself, and that is waited for as for close(2).
fn is_killed(status: &str) -> bool {
    let (own, shared) = (signals(status, "SigPnd:"), signals(status, "ShdPnd:"));
    let spared = ["SigBlk:", "SigIgn:", "SigCgt:"].map(|name| signals(status, name));
    let deadly = shared & !spared.into_iter().fold(0, |all, some| all | some);
    let kill = 1 << (libc::SIGKILL - 1);
    (own | shared) & kill != 0 || field(status, "FDSize:") == Some("0") && deadly != 0
}

/// Whether the thread with this `/proc/N/status` has a signal to handle. One that was sent to the process is its own
/// if it is the first thread and does not block it: then the kernel chooses it before others. For other threads
/// only their own count: without a signal to handle, `EINTR` would be seen by the program as an error it does not know.
fn has_signal(status: &str) -> bool {
    let blocked = signals(status, "SigBlk:");
    let first = field(status, "Tgid:") == field(status, "Pid:");
    let shared = match first {
        true => signals(status, "ShdPnd:"),
        false => 0,
    };
    (signals(status, "SigPnd:") | shared) & !blocked != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(thread: u32, own: u64, shared: u64, blocked: u64) -> String {
        format!(
            "Name:\tcat\nTgid:\t7\nPid:\t{thread}\nFDSize:\t64\nThreads:\t1\nSigPnd:\t{own:016x}\n\
             ShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t0000000000000000\n\
             SigCgt:\t0000000000000002\n"
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
    fn who_is_killed_is_told_from_who_ends_or_handles_a_signal() {
        assert!(!is_killed(&status(7, 0, 0, 0)) && !is_killed(""));
        assert!(is_killed(&status(7, 0x100, 0, 0)) && is_killed(&status(8, 0, 0x100, 0)));
        assert!(!is_killed(&status(7, 0x4, 0x2, 0)), "it may be handled");
        let ending = |shared| status(7, 0, shared, 0x8).replace("FDSize:\t64", "FDSize:\t0");
        assert!(!is_killed(&ending(0)), "by itself");
        assert!(is_killed(&ending(0x100)) && is_killed(&ending(0x4000)));
        assert!(!is_killed(&ending(0xa)), "handled, and blocked");
    }
}
