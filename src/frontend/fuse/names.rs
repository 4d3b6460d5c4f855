//! What the kernel may keep of names, and how it is told that it may not.
//!
//! Taking one name back (FUSE_NOTIFY_INVAL_ENTRY) needs the lock on its directory, which a request on that
//! directory may hold while it waits for the authority, which waits for this mount to take the name back. Linux 6.16
//! can take back all names at once without a lock: each is of the epoch in which its LOOKUP *began*, and counts only as
//! long as that is the present one (FUSE_NOTIFY_INC_EPOCH, include/uapi/linux/fuse.h). What was kept is then looked
//! up anew when it is used next, which costs no more than it did in the first place.
//!
//! But whatever is of an older epoch the kernel treats like a name that is gone: what is mounted on or below it, in any
//! mount namespace, is unmounted. Nobody expects that, so names are kept only where the user has asked for it
//! (`--keep-names`, `--immutable`) and the kernel can; otherwise each use of a name is a LOOKUP, answered from the
//! replica's coherent copy.
//!
//! An answer to READDIRPLUS is different: its names are of the epoch in which they are *taken in*, and what it says of
//! inodes that the kernel does not know yet cannot be taken back either. So before anything is taken back, such answers
//! have to be in:
//!
//! ```text
//!   answer to READDIRPLUS ──▶ on its way ──▶ in: the kernel asks for something else by the same handle,
//!                                            or for a change of the directory, whose lock excludes a listing,
//!                                            or it has given that lock to us
//! ```
//!
//! What was listed before a name changed, and is handed out after the change has been told, is not to be kept at all
//! ([`Replica::is_current`](crate::node::replica::Replica::is_current)).
//!
//! The last of the three is a notice about a name that hardly exists, sent only where somebody waits, by a thread that may wait
//! for that lock.

use crate::node::replica::{HandleNo, NodeNo};
use fuser::{INodeNo, Notifier, Version};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The version of the interface with epochs.
const SINCE: Version = Version(7, 44);
/// FUSE_NOTIFY_INC_EPOCH.
const INC_EPOCH: i32 = 8;
/// A name that is hardly in any directory; where it is, it is looked up anew.
const NO_NAME: &str = "\u{1}memfs\u{1}";
/// So long a listing is waited for. The lock on its directory may be shared by a LOOKUP that waits for a silent
/// authority: then the listing is in, most likely, and only that cannot be seen.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The names that the kernel keeps above one mount.
pub(super) struct Names {
    device: OwnedFd,
    /// The kernel knows epochs.
    kept: AtomicBool,
    state: Mutex<State>,
    /// A listing is in.
    changed: Condvar,
    /// Directories whose lock is to be asked for.
    probes: mpsc::Sender<Probe>,
}

#[derive(Default)]
struct State {
    /// Counts the answers.
    answers: u64,
    /// Those on their way: the directory, and the count.
    listings: HashMap<HandleNo, (NodeNo, u64)>,
    /// Somebody has stopped waiting: names are to be taken back again when they are in.
    late: bool,
}

/// To find out that all answers up to a count are in.
struct Probe {
    dir: NodeNo,
    answer: u64,
}

impl Names {
    /// `device` is where the kernel's requests come from.
    pub fn new(device: OwnedFd) -> (Names, Probes) {
        let (probes, receiver) = mpsc::channel();
        let names = Names {
            device,
            kept: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
            probes,
        };
        (names, Probes(receiver))
    }

    /// Names are to be kept, if the kernel's version of the interface allows it.
    pub fn keep(&self, version: Version) {
        let kept = (version.0, version.1) >= (SINCE.0, SINCE.1);
        self.kept.store(kept, Ordering::Relaxed);
        if !kept {
            tracing::debug!(
                "the kernel looks each name up each time: to keep names it needs Linux 6.16"
            );
        }
    }

    /// How long the kernel may keep a name that is good for so long.
    pub fn ttl(&self, good: Duration) -> Duration {
        match self.kept.load(Ordering::Relaxed) {
            true => good,
            false => Duration::ZERO,
        }
    }

    /// READDIRPLUS is about to be answered.
    pub fn listing(&self, handle: HandleNo, dir: NodeNo) {
        if self.kept.load(Ordering::Relaxed) {
            let mut state = self.state.lock();
            state.answers += 1;
            let answer = state.answers;
            state.listings.insert(handle, (dir, answer));
        }
    }

    /// The kernel asks for something by the handle of a directory: the listing before is in.
    pub fn asked_by(&self, handle: HandleNo) {
        if self.kept.load(Ordering::Relaxed) && self.state.lock().listings.remove(&handle).is_some()
        {
            self.changed.notify_all();
        }
    }

    /// The kernel asks for a change of a directory, whose lock it holds: no listing of it is on its way.
    pub fn locked(&self, dir: NodeNo) {
        if self.kept.load(Ordering::Relaxed) {
            self.are_in(dir, u64::MAX);
        }
    }

    fn are_in(&self, dir: NodeNo, up_to: u64) {
        let mut state = self.state.lock();
        let before = state.listings.len();
        state
            .listings
            .retain(|_, (of, answer)| *of != dir || *answer > up_to);
        if state.listings.len() != before {
            self.changed.notify_all();
        }
    }

    /// Waits until the kernel has taken in what it was told of names: what it is told from here on comes later.
    pub fn settle(&self) {
        let mut state = self.state.lock();
        if state.listings.is_empty() {
            return;
        }
        let newest = state.answers;
        for (dir, answer) in state.listings.values() {
            let (dir, answer) = (*dir, *answer);
            // The thread lives as long as this does.
            let _ = self.probes.send(Probe { dir, answer });
        }
        let deadline = Instant::now() + WAIT_MAX;
        let waits =
            |state: &mut State| state.listings.values().any(|(_, answer)| *answer <= newest);
        if self
            .changed
            .wait_while_until(&mut state, waits, deadline)
            .timed_out()
            && waits(&mut state)
        {
            tracing::debug!("listings that were answered are not in after {WAIT_MAX:?}");
            state.late = true;
        }
    }

    /// Takes back all names.
    ///
    /// # Errors
    /// Where the file system is unmounted.
    pub fn take_back(&self) -> io::Result<()> {
        if !self.kept.load(Ordering::Relaxed) {
            return Ok(());
        }
        // struct fuse_out_header: length, code, and 0 for what is no answer.
        let mut header = [0; 16];
        header[..4].copy_from_slice(&16u32.to_ne_bytes());
        header[4..8].copy_from_slice(&INC_EPOCH.to_ne_bytes());
        rustix::io::write(&self.device, &header)?;
        Ok(())
    }
}

/// What the thread that may wait for locks on directories is to do.
pub(super) struct Probes(mpsc::Receiver<Probe>);

impl Probes {
    /// Runs until `names` is gone.
    pub fn run(self, names: &std::sync::Weak<Names>, notifier: &Notifier) {
        while let Ok(Probe { dir, answer }) = self.0.recv() {
            let wanted = |names: &Arc<Names>| {
                let state = names.state.lock();
                state
                    .listings
                    .values()
                    .any(|(of, on_its_way)| *of == dir && *on_its_way <= answer)
            };
            if !names.upgrade().as_ref().is_some_and(wanted) {
                continue;
            }
            // ENOENT, and not before the lock was had.
            let _ = notifier.inval_entry(INodeNo(dir.0), OsStr::new(NO_NAME));
            let Some(names) = names.upgrade() else { return };
            names.are_in(dir, answer);
            let late = {
                let mut state = names.state.lock();
                state.listings.is_empty() && std::mem::take(&mut state.late)
            };
            if late && let Err(why) = names.take_back() {
                tracing::debug!("dropping names: {why}");
            }
        }
    }
}
