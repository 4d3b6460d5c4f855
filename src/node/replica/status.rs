//! What is going on, the push interval, and the end.

use super::nodes::Node;
use super::region::Region;
use super::{Conflict, NodeNo, Replica, Shared};
use crate::store::Errno;
use crate::units::PAGE_BYTES;
use crate::wire::RelPath;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, UNIX_EPOCH};

/// State of the link to the authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Requests are answered.
    Up,
    /// The connection is gone; copies are still good until the lease runs out.
    Reconnecting,
    /// The connection is gone and so is the lease: everything waits, or fails after `--soft`; with `--offline serve`,
    /// what is not here.
    Lost,
}

/// What a replica is doing.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// `host:port`.
    pub server: String,
    /// State of the link.
    pub link: LinkState,
    /// Since when it is up, or not; in seconds since 1970.
    #[serde(default)]
    pub link_since: u64,
    /// What went wrong when the link was last to be made again, if it is not up.
    #[serde(default)]
    pub link_error: Option<String>,
    /// Copies are used also while it is lost.
    #[serde(default)]
    pub serve_offline: bool,
    /// Round-trip time in microseconds, as QUIC estimates it.
    pub rtt_us: u64,
    /// Bytes pulled since the mount.
    pub pulled_bytes: u64,
    /// Bytes pushed since the mount.
    pub pushed_bytes: u64,
    /// Bytes of copies from before that were found to be the authority's, by hashes, since the mount.
    pub confirmed_bytes: u64,
    /// Bytes of hashes that came for that.
    pub hash_bytes: u64,
    /// Requests that are waiting for the authority.
    pub waiting: u64,
    /// Bytes that all copies take.
    pub copy_bytes: u64,
    /// Copies outlive this mount.
    pub copies_last: bool,
    /// What is kept beside files that others have changed.
    pub conflicts: Vec<Conflict>,
    /// Regions that are open, or have copies.
    pub regions: Vec<RegionStatus>,
}

/// What a replica knows of a region.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct RegionStatus {
    /// Path below the mount.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes present.
    pub present_bytes: u64,
    /// Bytes dirty.
    pub dirty_bytes: u64,
    /// Bytes being pulled or pushed.
    pub in_flight_bytes: u64,
    /// Open handles.
    pub opens: u64,
    /// The kernel reads the copy itself.
    pub lent: bool,
    /// Why what is dirty was not taken when it was pushed last.
    pub refused: Option<String>,
}

impl Replica {
    /// What is going on, for `memfs status`.
    pub fn status(&self) -> Status {
        let shared = &self.shared;
        let nodes: Vec<_> = shared.regions.lock().values().cloned().collect();
        let mut regions: Vec<_> = nodes.iter().filter_map(region_status).collect();
        regions.sort_by(|a, b| a.path.cmp(&b.path));
        let since = *shared.link.since.lock();
        Status {
            server: shared.link.name(),
            link: shared.link.state(),
            link_since: (since.duration_since(UNIX_EPOCH)).map_or(0, |since| since.as_secs()),
            link_error: shared.link.trouble.lock().clone(),
            serve_offline: shared.options.serve_offline,
            rtt_us: shared.link.rtt().map_or(0, |rtt| rtt.as_micros() as u64),
            pulled_bytes: shared.pulled_bytes.load(Ordering::Relaxed),
            pushed_bytes: shared.pushed_bytes.load(Ordering::Relaxed),
            confirmed_bytes: shared.confirmed_bytes.load(Ordering::Relaxed),
            hash_bytes: shared.hash_bytes.load(Ordering::Relaxed),
            waiting: shared.link.waiting.load(Ordering::Relaxed),
            copy_bytes: shared.copy_bytes.load(Ordering::Relaxed),
            copies_last: shared.cache.is_some(),
            conflicts: self.conflicts(),
            regions,
        }
    }

    /// Every node that has something dirty.
    pub fn dirty_nodes(&self) -> Vec<NodeNo> {
        let regions = self.shared.regions();
        let dirty = regions
            .iter()
            .filter(|region| region.look(|inner| inner.core.dirty_pages() > 0));
        dirty.map(|region| region.node.no).collect()
    }

    /// Pushes everything and says goodbye. What could not be pushed: a path and why, each.
    pub async fn shut_down(&self, patience: Duration) -> Vec<(RelPath, Errno)> {
        let deadline = tokio::time::Instant::now() + patience;
        let flushes = self.shared.regions().into_iter().map(|region| {
            let shared = self.shared.clone();
            tokio::spawn(async move {
                let flushed = shared.flush_node(&region.node);
                let outcome = tokio::time::timeout_at(deadline, flushed).await;
                let errno = outcome.unwrap_or(Err(Errno::TIMEDOUT)).err()?;
                Some((region.node.path_or_unnamed(), errno))
            })
        });
        let mut left = Vec::new();
        for flush in flushes.collect::<Vec<_>>() {
            left.extend(flush.await.ok().flatten());
        }
        self.say_last_word().await;
        self.shared.finish_recording().await;
        self.shared.link.close(Duration::from_secs(2)).await;
        self.close_cache().await;
        left
    }
}

fn region_status(node: &Arc<Node>) -> Option<RegionStatus> {
    let region = node.region.lock().clone()?;
    let path = node
        .path_or_unnamed()
        .as_os()
        .to_string_lossy()
        .into_owned();
    Some(region.look(|inner| RegionStatus {
        path,
        size: inner.core.size(),
        present_bytes: (inner.core.present_pages() * PAGE_BYTES).min(inner.core.size()),
        dirty_bytes: inner.core.dirty_pages() * PAGE_BYTES,
        in_flight_bytes: inner.core.in_flight_bytes(),
        opens: u64::from(inner.opens),
        lent: inner.lending.is_lent(),
        refused: (inner.refusal).map(|refusal| std::io::Error::from(refusal.errno).to_string()),
    }))
}

impl Shared {
    /// All regions there are.
    pub(super) fn regions(&self) -> Vec<Arc<Region>> {
        let nodes: Vec<_> = self.regions.lock().values().cloned().collect();
        nodes
            .iter()
            .filter_map(|node| node.region.lock().clone())
            .collect()
    }
}

/// Has what programs store leave within the push interval: pushes what is dirty, and asks the kernel for the
/// pages they have dirtied through mappings. The two do not wait for each other: the kernel may have to ask
/// for attributes first, which are those after a push.
pub(super) async fn push_at_intervals(shared: Weak<Shared>, interval: Duration) {
    // Twice as often as promised: a store may come right after the kernel was asked.
    let interval = (interval / 2).max(Duration::from_millis(1));
    tokio::spawn(write_back_at_intervals(shared.clone(), interval));
    let mut ticks = ticks(interval);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        for region in shared.regions() {
            region.push_due();
        }
        shared.record_bases();
    }
}

async fn write_back_at_intervals(shared: Weak<Shared>, interval: Duration) {
    let mut ticks = ticks(interval);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        for region in shared.regions() {
            if region.look(|inner| inner.mappers > 0)
                && let Some(kernel) = shared.kernel.get()
                && let Ok(path) = region.node.path()
            {
                kernel.write_back(region.node.no, path).await;
                region.push_due();
            }
        }
    }
}

fn ticks(interval: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}
