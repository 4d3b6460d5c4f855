//! Calls that nobody waits for any more: the program that made them was killed.
//!
//! What changes something, or opens something, goes on until it is known what has become of it, as what is noted here is
//! to be true. But what has not been sent by then is not sent any more: nobody expects it to be done later.

use crate::store::{Errno, Result};
use std::sync::Arc;
use tokio::sync::watch;

tokio::task_local! {
    static CALL: Call;
}

/// A call, as the one sees it who waits for it.
#[derive(Clone, Default)]
pub struct Call(Arc<watch::Sender<bool>>);

impl Call {
    /// Makes it.
    pub async fn run<R>(&self, work: impl Future<Output = R>) -> R {
        CALL.scope(self.clone(), work).await
    }

    /// Nobody waits for it any more.
    pub fn give_up(&self) {
        self.0.send_replace(true);
    }
}

/// `EINTR` where nobody waits any more for what runs here.
pub(super) fn check() -> Result<()> {
    match CALL.try_with(|call| *call.0.borrow()) {
        Ok(true) => Err(Errno::INTR),
        Ok(false) | Err(_) => Ok(()),
    }
}

/// Waits for `work` as long as somebody waits for what runs here; then `EINTR`.
pub(super) async fn or_given_up<R>(work: impl Future<Output = Result<R>>) -> Result<R> {
    let Ok(mut given_up) = CALL.try_with(|call| call.0.subscribe()) else {
        return work.await;
    };
    tokio::select! {
        biased;
        outcome = work => outcome,
        // The sender lives as long as the call.
        _ = given_up.wait_for(|given_up| *given_up) => Err(Errno::INTR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_is_given_up_waits_no_longer_and_sends_nothing() {
        let call = Call::default();
        let never = std::future::pending::<Result<()>>;
        let within = call.run(async {
            assert_eq!(check(), Ok(()));
            assert_eq!(or_given_up(async { Ok(1) }).await, Ok(1));
            let waited = or_given_up(never()).await;
            (waited, check())
        });
        let (outcome, ()) = tokio::join!(within, async { call.give_up() });
        assert_eq!(outcome, (Err(Errno::INTR), Err(Errno::INTR)));
        assert_eq!(check(), Ok(()), "another one");
    }
}
