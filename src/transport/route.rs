//! The way to a server, also when it is gone.
//!
//! One that runs by itself is dialed where it is, again and again. One that ssh has started for a mount goes with its
//! machine, or by itself after some minutes without the mount, and nobody else would start it again:
//!
//! ```text
//!   dial ── answers ──▶ connected
//!    │ ▲
//!    │ └── silent: the network is away, or the server's machine
//!    │
//!    │ nobody listens there any more, or another one; or silent for SILENT_MAX (while dialing goes on)
//!    ▼
//!   ssh ── started ──▶ dial it there
//!    │
//!    └──── failed ───▶ dial the old one; ssh again after a pause that grows
//! ```
//!
//! So a link that was away for a while costs no ssh: the server waits.

use super::ssh::{self, SshTarget, Started};
use super::{ConnectError, Dialer, ServerTrust};
use parking_lot::{Mutex, RwLock};
use std::io;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// A server that has not answered for so long may be gone although nobody says so.
const SILENT_MAX: Duration = Duration::from_secs(60);
/// So long ssh may take to start it.
const START_MAX: Duration = Duration::from_secs(60);
/// The pauses between two tries of that.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The way to a server.
pub struct Route {
    dialer: RwLock<Dialer>,
    far_side: Option<FarSide>,
}

/// A server that ssh has started.
struct FarSide {
    target: SshTarget,
    tries: Mutex<Tries>,
}

/// Of reaching it.
struct Tries {
    /// It has answered nothing since.
    silent_since: Option<Instant>,
    /// It is not started before.
    not_before: Instant,
    /// Before the try after that.
    pause: Duration,
    /// Why the last try has failed.
    failure: Option<String>,
}

impl Tries {
    fn new() -> Tries {
        Tries {
            silent_since: None,
            not_before: Instant::now(),
            pause: PAUSE_MIN,
            failure: None,
        }
    }

    /// Why it has to be started again after an attempt that failed so; `None` where it has not, or not yet.
    fn are_over(&mut self, error: &ConnectError, now: Instant) -> Option<&'static str> {
        let silent_since = *self.silent_since.get_or_insert(now);
        let why = match error {
            ConnectError::Refused { .. } => "the server there is gone",
            // Its key was for it alone.
            ConnectError::Untrusted(_) => "another server is there now",
            _ if now >= silent_since + SILENT_MAX => "no answer for long",
            _ => return None,
        };
        if now < self.not_before {
            return None;
        }
        self.not_before = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Some(why)
    }
}

impl From<Dialer> for Route {
    fn from(dialer: Dialer) -> Route {
        Route {
            dialer: RwLock::new(dialer),
            far_side: None,
        }
    }
}

impl Route {
    /// To what `target` has started, and would start again. To be called within a tokio runtime.
    ///
    /// # Errors
    /// Where no UDP socket can be had.
    pub fn over_ssh(target: SshTarget, started: Started) -> io::Result<Route> {
        Ok(Route {
            dialer: RwLock::new(dialer(started)?),
            far_side: Some(FarSide {
                target,
                tries: Mutex::new(Tries::new()),
            }),
        })
    }

    /// Who dials the server where it is, or was last.
    pub fn dialer(&self) -> Dialer {
        self.dialer.read().clone()
    }

    /// As [`Dialer::connect`], for one who was connected before. It takes longer than `patience` where ssh has to start
    /// the server again; dropped, it ends that.
    ///
    /// # Errors
    /// As there; also where ssh fails.
    pub async fn connect_again(
        &self,
        patience: Duration,
    ) -> Result<quinn::Connection, ConnectError> {
        let dialer = self.dialer();
        let outcome = dialer.connect(patience).await;
        let Some(far_side) = &self.far_side else {
            return outcome;
        };
        let outcome = match outcome {
            Ok(connection) => Ok(connection),
            Err(error) => self.start_again(far_side, &dialer, patience, error).await,
        };
        if outcome.is_ok() {
            *far_side.tries.lock() = Tries::new();
        }
        outcome
    }

    /// After an attempt to connect that has failed with `error`.
    async fn start_again(
        &self,
        far_side: &FarSide,
        dialer: &Dialer,
        patience: Duration,
        error: ConnectError,
    ) -> Result<quinn::Connection, ConnectError> {
        let host = dialer.name();
        let due = far_side.tries.lock().are_over(&error, Instant::now());
        let Some(why) = due else {
            // That it was not started tells more than that nobody is there.
            let failure = far_side.tries.lock().failure.clone();
            return Err(failure.map_or(error, |reason| ConnectError::Failed { host, reason }));
        };
        tracing::warn!("{host}: {why}: starting it again over ssh");
        let started = tokio::select! {
            started = far_side.start() => started,
            connection = until_connected(dialer, patience) => return Ok(connection),
        };
        let started = started.map_err(|reason| ConnectError::Failed { host, reason })?;
        tracing::warn!("{}: started again over ssh", started.name());
        *self.dialer.write() = started.clone();
        started.connect(patience).await
    }
}

impl FarSide {
    async fn start(&self) -> Result<Dialer, String> {
        let started = timeout(START_MAX, ssh::start_unasked(&self.target)).await;
        let outcome = match started {
            Ok(Ok(started)) => dialer(started).map_err(|e| format!("no UDP socket: {e}")),
            Ok(Err(why)) => Err(why),
            Err(_) => Err(format!("ssh is not done after {} s", START_MAX.as_secs())),
        };
        outcome.map_err(|why| {
            let mut tries = self.tries.lock();
            // Not counting what this try has taken.
            tries.not_before = Instant::now() + tries.pause;
            let next = tries.pause.as_secs();
            let failure = format!("not started again over ssh, next try in {next} s: {why}");
            tries.failure = Some(failure.clone());
            failure
        })
    }
}

fn dialer(started: Started) -> io::Result<Dialer> {
    let trust = ServerTrust::Key(started.server);
    Dialer::to_any(&started.hosts, started.port, started.identity, trust)
}

/// Dials until somebody answers.
async fn until_connected(dialer: &Dialer, patience: Duration) -> quinn::Connection {
    loop {
        let next = Instant::now() + patience;
        if let Ok(connection) = dialer.connect(patience).await {
            return connection;
        }
        tokio::time::sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn refused() -> ConnectError {
        let (host, address) = (String::new(), ([127, 0, 0, 1], 1).into());
        ConnectError::Refused { host, address }
    }

    fn silent() -> ConnectError {
        let (host, address) = (String::new(), ([127, 0, 0, 1], 1).into());
        ConnectError::Unreachable { host, address }
    }

    #[test]
    fn one_that_is_gone_is_started_at_once_and_then_less_and_less_often() {
        let mut tries = Tries::new();
        let start = tries.not_before;
        let mut started = Vec::new();
        for second in 0..300 {
            let now = start + SECOND * second;
            started.extend(tries.are_over(&refused(), now).map(|_| second));
        }
        assert_eq!(started, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
    }

    #[test]
    fn one_that_is_silent_may_be_there_for_a_minute() {
        let mut tries = Tries::new();
        let start = tries.not_before;
        let first = (0..300).find(|&n| tries.are_over(&silent(), start + SECOND * n).is_some());
        assert_eq!(first, Some(60));
    }
}
