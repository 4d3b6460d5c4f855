//! Which thread runs first.

use std::io;

/// Lets the calling thread run as soon as it has something to do, before all ordinary threads. For
/// what stands for hardware: a wire does not wait until a processor is free.
///
/// # Errors
/// `EPERM` without `CAP_SYS_NICE`.
pub fn run_before_others() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread, and the parameter is read before the call returns.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
