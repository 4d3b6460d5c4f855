//! The disk of the local copies is full.
//!
//! ```text
//! no room for what was pulled: give up copies, pull once more ── no room ─▶ answer without a copy
//! no room for a store:         give up copies, store ── no room ─▶ push all, give up more, store ── no room ─▶ ENOSPC
//! ```

use super::inner::Inner;
use super::link::Moment;
use super::region::Region;
use super::{Shared, transfer};
use crate::region::Failure;
use crate::store::{Errno, Result};
use crate::units::ByteRange;
use crate::wire::Access;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::MutexGuard;

/// A store is tried so often after nothing could be given up: what is read and pulled meanwhile takes of the room
/// as well.
const IN_VAIN_MAX: u32 = 10;
/// How long that may go on before the store is tried again.
const PAUSE: Duration = Duration::from_millis(50);
/// A store is tried so often in all: who reads and who stores may take the room from each other, but not for ever.
const TRIES_MAX: u32 = 500;

/// Whether there was no room for something.
pub(super) fn is_full(errno: Errno) -> bool {
    matches!(errno, Errno::NOSPC | Errno::DQUOT)
}

/// A store that finds no room, or has not yet.
#[derive(Default)]
pub(super) struct Storing<'a> {
    /// Held from the first time on: else others would take the room that is made for it.
    turn: Option<MutexGuard<'a, ()>>,
    tries: u32,
    in_vain: u32,
}

impl<'a> Storing<'a> {
    /// Makes room for the store; false where there is nothing left to do.
    pub async fn make_room(&mut self, shared: &'a Arc<Shared>) -> bool {
        if self.turn.is_none() {
            self.turn = Some(shared.disk_turn.lock().await);
            shared.disk_is_full().await;
            return true;
        }
        self.tries += 1;
        let pushed = shared.push_all().await;
        let freed = shared.disk_is_full().await;
        if !pushed && !freed {
            self.in_vain += 1;
            tokio::time::sleep(PAUSE).await;
        }
        self.in_vain < IN_VAIN_MAX && self.tries < TRIES_MAX
    }
}

impl Shared {
    /// Pushes what is dirty here, without asking the kernel for what it has. What is refused stays. Whether there
    /// was anything that did not.
    async fn push_all(&self) -> bool {
        let flushes: Vec<_> = (self.regions().iter())
            .filter_map(|region| region.flush())
            .collect();
        let mut pushed = false;
        for flushed in flushes {
            pushed |= flushed.await.is_ok_and(|outcome| outcome.is_ok());
        }
        pushed
    }

    /// Reads what the copy has no room for: from the authority, and from the copy what is there.
    pub(super) async fn read_through(
        self: &Arc<Self>,
        region: &Arc<Region>,
        asked: ByteRange,
    ) -> Result<Vec<u8>> {
        loop {
            let session = self.link.session().await?;
            let read = async {
                let handle = transfer::remote(self, region, &session, Access::Read).await?;
                transfer::read_open(&session, handle, asked).await
            };
            let read = read.await;
            match transfer::outcome_of(self, &session, read).await {
                Ok((at, size, bytes)) => {
                    let whole = region.update(|inner| inner.complete(asked, at, size, bytes))?;
                    if let Some(whole) = whole {
                        return Ok(whole);
                    }
                }
                Err(Failure::Link) => {}
                Err(Failure::Refused(errno)) => return Err(super::link::errno_of(errno)),
            }
        }
    }
}

impl Inner {
    /// The bytes of `asked` that the authority had at `at`, when the region had `size` bytes, with those that are
    /// here in their place, to the end of the region. `None` where it has more by now.
    fn complete(
        &mut self,
        asked: ByteRange,
        at: Moment,
        size: u64,
        mut bytes: Vec<u8>,
    ) -> Result<Option<Vec<u8>>> {
        self.adopt_size(at, size)?;
        let end = asked.end.min(self.core.size()).max(asked.start);
        if asked.start + (bytes.len() as u64) < end.min(self.core.base_size()) {
            return Ok(None);
        }
        bytes.resize((end - asked.start) as usize, 0);
        let mut here = Vec::new();
        for run in self.core.present_runs(asked.pages_touched()) {
            let part = run.bytes().intersect(ByteRange::new(asked.start, end));
            if !part.is_empty() {
                self.copy_out(part, &mut here)?;
                let from = (part.start - asked.start) as usize;
                bytes[from..from + here.len()].copy_from_slice(&here);
            }
        }
        Ok(Some(bytes))
    }
}
