//! A second process from this one, and what it does without.

use rustix::process::Pid;
use std::io;

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Forked {
    /// The one that called; the other one's number.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Makes a second process of this one, as `fork(2)`.
///
/// # Errors
/// Where this process has more than one thread: the others would be gone in the child, with what they
/// had locked. Otherwise as `fork(2)`.
pub fn fork() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "a process with more than one thread cannot be forked",
        ));
    }
    // SAFETY: there is one thread, as just counted, and only a thread can start another one. So the child
    // is a whole copy, no lock is held by somebody who is not there, and anything may be called in it.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Forked::Child),
        _ => Pid::from_raw(pid)
            .filter(|_| pid > 0)
            .map(Forked::Parent)
            .ok_or_else(io::Error::last_os_error),
    }
}

/// From here on the signals by which people and service managers end a process do nothing.
pub fn ignore_end_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: SIG_IGN is no function of ours, so nothing runs in a signal's context.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Standard input, output and error lead nowhere from here on; who waited for their end waits no more.
///
/// # Errors
/// Where `/dev/null` cannot be opened.
pub fn close_standard_streams() -> io::Result<()> {
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}
