//! Learning of the death of the process that started this one, even where it cannot be buried yet.

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The signal it is told by.
const SIGNAL: Signal = Signal::USR1;

/// What `command` starts ends when this thread does, whatever ends it.
pub fn end_with_us(command: &mut Command) {
    let parent = getpid();
    let watch = move || {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        match getppid() == Some(parent) {
            true => Ok(()),
            // We ended before that.
            false => Err(rustix::io::Errno::SRCH.into()),
        }
    };
    // SAFETY: it makes two system calls and allocates nothing, also for an error, which is a bare number: that may be
    // done between fork and exec.
    unsafe { command.pre_exec(watch) };
}

/// Tells when the thread that started this process ends. That comes before the whole process is gone: a
/// thread of it that waits in the kernel may keep it, with all its descriptors, for as long as it waits.
#[derive(Debug)]
pub struct ParentDeath {
    signals: libc::sigset_t,
}

impl ParentDeath {
    /// Begins to watch. To be called while this process has one thread.
    ///
    /// # Errors
    /// As `prctl(2)` and `pthread_sigmask(3)`.
    pub fn watch() -> io::Result<ParentDeath> {
        let mut signals = MaybeUninit::uninit();
        // SAFETY: sigemptyset fills in the set it is given, which is ours.
        let signals = unsafe {
            libc::sigemptyset(signals.as_mut_ptr());
            signals.assume_init()
        };
        let mut watch = ParentDeath { signals };
        // SAFETY: the set is initialized and ours, and no set of old signals is asked for.
        let error = unsafe {
            libc::sigaddset(&mut watch.signals, SIGNAL.as_raw());
            libc::pthread_sigmask(libc::SIG_BLOCK, &watch.signals, std::ptr::null_mut())
        };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        set_parent_process_death_signal(Some(SIGNAL))?;
        Ok(watch)
    }

    /// Waits for it.
    pub fn wait(&self) {
        let mut signal = 0;
        // SAFETY: the set is initialized, and both pointers are to memory that lives through the call.
        while unsafe { libc::sigwait(&self.signals, &mut signal) } != 0 {}
    }
}
