//! The clock of leases: it goes on while this machine is suspended, as the authority's does.
//!
//! [`Instant`] is CLOCK_MONOTONIC, which stands still then: a lease would seem to be in force after waking up that has
//! run out long ago at the authority. CLOCK_BOOTTIME goes on, and a timer on it that is overdue fires at once when the
//! machine wakes up (clock_getres(2), timerfd_create(2)). An authority that sleeps itself waits longer than it need,
//! which does no harm.

use crate::sys::watched;
use rustix::fd::OwnedFd;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use std::io;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;

/// Times on it are [`Instant`]s, those of the moment it was made and later ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    base: Instant,
    /// Since the start of the machine, at `base`.
    boot: Duration,
}

fn since_boot() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    Duration::new(tv_sec.max(0) as u64, tv_nsec.clamp(0, 999_999_999) as u32)
}

impl Clock {
    pub fn new() -> Clock {
        Clock {
            base: Instant::now(),
            boot: since_boot(),
        }
    }

    /// Since it was made.
    pub fn elapsed(&self) -> Duration {
        since_boot().saturating_sub(self.boot)
    }

    pub fn now(&self) -> Instant {
        self.base + self.elapsed()
    }

    /// Since it was made, of a time on it.
    pub fn at(&self, time: Instant) -> Duration {
        time.saturating_duration_since(self.base)
    }
}

/// Waits for times on a [`Clock`].
pub(super) struct Timer {
    clock: Clock,
    fd: AsyncFd<OwnedFd>,
    /// When it goes off.
    armed: Option<Instant>,
}

impl Timer {
    /// # Errors
    /// Where there are no descriptors left.
    pub fn new(clock: Clock) -> io::Result<Timer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Boottime, flags)?;
        Ok(Timer {
            clock,
            fd: watched(fd)?,
            armed: None,
        })
    }

    /// Waits until `time`. It may be dropped and called again.
    pub async fn until(&mut self, time: Instant) {
        while self.clock.now() < time {
            if let Err(error) = self.wait(time).await {
                tracing::error!("the timer of the lease: {error}");
                return tokio::time::sleep_until(time.into()).await;
            }
        }
    }

    async fn wait(&mut self, time: Instant) -> io::Result<()> {
        if self.armed != Some(time) {
            self.arm(time)?;
            self.armed = Some(time);
        }
        let mut ready = self.fd.readable().await?;
        let mut expired = [0; 8];
        // Nothing where it was armed anew since.
        let _ = ready.try_io(|fd| Ok(rustix::io::read(fd, &mut expired)?));
        Ok(())
    }

    fn arm(&self, time: Instant) -> io::Result<()> {
        let at = self.clock.boot + self.clock.at(time);
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let when = Itimerspec {
            it_interval: zero,
            it_value: Timespec {
                tv_sec: at.as_secs().try_into().unwrap_or(i64::MAX),
                // Not 0 in all, which would disarm it.
                tv_nsec: i64::from(at.subsec_nanos()) | 1,
            },
        };
        timerfd_settime(self.fd.get_ref(), TimerfdTimerFlags::ABSTIME, &when)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Lease;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_lease_runs_out_while_the_machine_is_suspended() {
        let clock = Clock::new();
        let lease = Lease::new(clock.now(), clock.boot / 4);
        assert!(lease.is_valid(clock.now()));
        // As if so much of CLOCK_BOOTTIME had passed in which CLOCK_MONOTONIC stood still.
        let woken = Clock {
            boot: clock.boot / 2,
            ..clock
        };
        assert!(!lease.is_valid(woken.now()));
    }

    #[tokio::test]
    async fn a_timer_goes_off_when_it_should_also_when_it_is_set_anew() {
        let clock = Clock::new();
        let mut timer = Timer::new(clock).expect("a descriptor");
        let never = timer.until(clock.now() + HOUR);
        assert!(
            tokio::time::timeout(Duration::from_millis(5), never)
                .await
                .is_err()
        );
        for millis in [3, 0, 7] {
            let time = clock.now() + Duration::from_millis(millis);
            timer.until(time).await;
            assert!(clock.now() >= time);
        }
        timer.until(clock.base).await; // over already
    }
}
