//! The order in which programs touch regions: told to the authority, and asked of it.
//!
//! Every read that the kernel asks for is a touch, whether its pages are here or not. What the kernel has in its own
//! cache is not asked for; so while the authority knows no order of a region yet, what comes in the background is
//! not put there ([`super::kernel`]).
//!
//! Touches are told every second and before the region's handle is closed. What is lost with a connection
//! is lost: it was a hint.

use super::link::{self, Session};
use super::region::Region;
use super::{Replica, Shared};
use crate::region::{ORDER_RUNS_MAX, Order};
use crate::store::{Errno, Result};
use crate::units::{ByteRange, PageRange};
use crate::wire::{Access, Answer, HandleId, Learning, Pages, ReadRequest, Request};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// At the end the authority has so long to take in what is told last.
const LAST_WORD_MAX: Duration = Duration::from_secs(2);
/// Readers that go forward at the same time and whose touches are still joined.
const READERS_MAX: usize = 8;

/// What was touched of a region and not told yet.
#[derive(Default)]
pub(super) struct Touches {
    on: AtomicBool,
    /// The order has been asked for.
    asked: AtomicBool,
    runs: Mutex<Vec<PageRange>>,
    /// Held by who tells some of it again and again.
    telling: tokio::sync::Mutex<()>,
}

impl Touches {
    /// A program has read this.
    pub fn note(&self, range: ByteRange) {
        if !self.on.load(Ordering::Relaxed) {
            return;
        }
        let pages = range.pages_touched();
        let mut runs = self.runs.lock();
        let mut latest = runs.iter_mut().rev().take(READERS_MAX);
        let joined = latest.find(|run| run.start <= pages.start && pages.start <= run.end);
        if let Some(run) = joined {
            run.end = run.end.max(pages.end);
        } else if runs.len() < ORDER_RUNS_MAX {
            // More in a second than that is lost.
            runs.push(pages);
        }
    }

    /// Waits until nobody tells anything who does it again and again.
    pub async fn told(&self) {
        drop(self.telling.lock().await);
    }

    pub fn take(&self) -> Vec<Pages> {
        let runs = std::mem::take(&mut *self.runs.lock());
        runs.into_iter().map(Pages::from).collect()
    }
}

impl Shared {
    /// A file was opened anew: does with its region what the authority can remember.
    pub(super) fn learn(self: &Arc<Self>, region: &Arc<Region>, learning: Learning) {
        let learning = match self.options.learn {
            true => learning,
            false => Learning::Off,
        };
        let touches = &region.touches;
        touches
            .on
            .store(learning != Learning::Off, Ordering::Relaxed);
        let wanted = learning == Learning::Known
            && self.may_pull_ahead()
            && !touches.asked.swap(true, Ordering::Relaxed);
        region.update(|inner| {
            inner.learning = learning == Learning::New;
            if wanted {
                inner.core.expect_order();
            }
        });
        if wanted {
            let (shared, region) = (self.clone(), region.clone());
            self.runtime.spawn(async move {
                let order = ask(&shared, &region).await.unwrap_or_else(|errno| {
                    tracing::debug!("no order: {errno}");
                    Order::default()
                });
                region.update(|inner| inner.core.handle_order(&order));
            });
        }
    }

    /// Tells what was touched, before `handle` is closed. Nobody waits, but for the end of the mount.
    pub(super) async fn tell(&self, session: &Session, handle: HandleId, runs: Vec<Pages>) {
        if !runs.is_empty() {
            let request = Request::Read(ReadRequest::Touched { handle, runs });
            if let Err(error) = link::exchange(session, &request).await {
                tracing::debug!("what was touched is not told: {error}");
            }
        }
    }

    async fn tell_region(self: &Arc<Self>, region: &Region) {
        let Some(session) = self.link.session_now() else {
            return;
        };
        // The handle is not closed meanwhile.
        let _turn = region.touches.telling.lock().await;
        let remote = *region.remote.lock().await;
        let current = remote.filter(|remote| remote.generation == session.generation);
        if let Some(remote) = current {
            // Before it is taken: the end of the mount waits for what is on its way as well.
            let _telling = Telling::new(self);
            self.tell(&session, remote.handle, region.touches.take())
                .await;
        }
    }

    async fn tell_all(self: &Arc<Self>) {
        for region in self.regions() {
            if !region.touches.runs.lock().is_empty() {
                self.tell_region(&region).await;
            }
        }
    }
}

impl Replica {
    /// Tells what is left to tell.
    pub(super) async fn say_last_word(&self) {
        let shared = &self.shared;
        let mut telling = shared.telling.subscribe();
        let all_told = async {
            shared.tell_all().await;
            let _ = telling.wait_for(|&telling| telling == 0).await;
        };
        let _ = tokio::time::timeout(LAST_WORD_MAX, all_told).await;
    }
}

/// While it lives something is being told.
pub(super) struct Telling(Arc<Shared>);

impl Telling {
    pub fn new(shared: &Arc<Shared>) -> Telling {
        shared.telling.send_modify(|telling| *telling += 1);
        Telling(shared.clone())
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.telling.send_modify(|telling| *telling -= 1);
    }
}

async fn ask(shared: &Arc<Shared>, region: &Arc<Region>) -> Result<Order> {
    let handle = shared.handle_of(region, Access::Read).await?;
    match shared.link.read(ReadRequest::Order { handle }).await? {
        (_, Answer::Order(runs)) => Ok(runs.into_iter().map(PageRange::from).collect()),
        _ => Err(Errno::PROTO),
    }
}

/// Tells again and again.
pub(super) async fn tell_at_intervals(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(TELL_INTERVAL).await;
        match shared.upgrade() {
            Some(shared) => shared.tell_all().await,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PAGE_BYTES;

    #[test]
    fn touches_are_joined_and_bounded() {
        let touches = Touches::default();
        let page = |page: u64| ByteRange::new(page * PAGE_BYTES, page * PAGE_BYTES + 1);
        touches.note(page(1));
        assert_eq!(touches.take(), [], "off");
        touches.on.store(true, Ordering::Relaxed);
        for at in 0..100 {
            touches.note(page(1000 + at));
            touches.note(page(at));
            touches.note(page(at));
        }
        let runs = [(1000, 100), (0, 100)].map(|(first, count)| Pages { first, count });
        assert_eq!(touches.take(), runs);
        for at in 0..ORDER_RUNS_MAX as u64 + 9 {
            touches.note(page(at * 2));
        }
        assert_eq!(touches.take().len(), ORDER_RUNS_MAX);
        assert_eq!(touches.take(), []);
    }
}
