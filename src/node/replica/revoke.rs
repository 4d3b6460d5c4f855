//! Taking back what the kernel has when the lease is lost.
//!
//! Dropping a page waits for a READ of it that is under way, and that READ for the authority, which cannot be reached:
//! it may take for ever, while other pages are still read from the kernel's cache. So a thread that gets stuck is
//! left behind, and another one goes on with what it had not come to, page by page. Those that were left behind
//! end when their READs are answered.
//!
//! All of it has to be done before the authority counts the lease as run out, and lets others change what is still to
//! be seen here: our side of the lease ends earlier by [`MARGIN`] of its length.

use super::Shared;
use super::kernel::Job;
use super::nodes::Node;
use crate::units::{ByteRange, PAGE_BYTES, PageRange};
use crate::wire::Kind;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// What part of a lease is for taking back what it was for.
pub(super) const MARGIN: u32 = 10;
/// Pages that are dropped by one call.
const CHUNK_BYTES: u64 = 256 << 10;
/// A thread that is at one call for so long is stuck.
const STUCK: Duration = Duration::from_millis(10);
/// Threads that may be stuck: there are no more READs under way than programs make.
const THREADS_MAX: usize = 512;

/// Pages of a file.
type Part = (Arc<Node>, ByteRange);

#[derive(Default)]
struct State {
    left: VecDeque<Part>,
    /// What the thread that was started last is at.
    current: Option<Part>,
    /// Which thread that is.
    thread: usize,
    /// Calls that have ended.
    done: u64,
}

/// What is being taken back.
struct Revocation {
    shared: Arc<Shared>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// The kernel must not answer from its cache any more: every access comes here, and waits.
    pub(super) fn revoke_kernel(self: &Arc<Self>) {
        let Some(kernel) = self.kernel.get() else {
            return;
        };
        let mut left = VecDeque::new();
        let mut others = Vec::new();
        for node in self.nodes.all() {
            match node.kind {
                Kind::File => left.extend(parts(&node)),
                _ => others.push(node.no),
            }
        }
        for (node, _) in &left {
            node.begin_drop();
        }
        let revocation = Arc::new(Revocation {
            shared: self.clone(),
            state: Mutex::new(State {
                left,
                ..State::default()
            }),
            changed: Condvar::new(),
        });
        let cache = kernel.cache.clone();
        let revoke = revocation.clone();
        let started = std::thread::Builder::new()
            .name("memfs-revoke".into())
            .spawn(move || {
                cache.drop_names();
                others.iter().for_each(|&node| cache.drop_attributes(node));
                revoke.watch();
            });
        if let Err(error) = started {
            tracing::error!("what the kernel has is taken back one by one: {error}");
            for (node, range) in revocation.state.lock().left.drain(..) {
                self.queue(Job::DropPages(node, range));
            }
        }
    }
}

/// All pages of a file, by chunks as far as it is known to reach.
fn parts(node: &Arc<Node>) -> impl Iterator<Item = Part> + use<> {
    let region = node.region.lock().clone();
    let size = match region {
        Some(region) => region.look(|inner| inner.core.reach()),
        None => node.cached_attr().map_or(0, |attr| attr.size),
    };
    let end = size.next_multiple_of(CHUNK_BYTES);
    let node = node.clone();
    let starts = (0..end).step_by(CHUNK_BYTES as usize);
    let chunks = starts.map(|start| ByteRange::new(start, start + CHUNK_BYTES));
    let rest = ByteRange::new(end, u64::MAX);
    chunks.chain([rest]).map(move |range| (node.clone(), range))
}

impl Revocation {
    /// Has threads do it until nothing is left but what they are stuck at.
    fn watch(self: &Arc<Self>) {
        for number in 1..=THREADS_MAX {
            let mut state = self.state.lock();
            if let Some((node, range)) = state.current.take()
                && range.len() > PAGE_BYTES
                && range.end < u64::MAX
            {
                // The pages behind the one that it is stuck at, and that one too: nobody knows which it is.
                let pages = range.pages_touched();
                for page in (pages.start..pages.end).rev() {
                    node.begin_drop();
                    let page = PageRange::new(page, page + 1).bytes();
                    state.left.push_front((node.clone(), page));
                }
            }
            if state.left.is_empty() {
                return;
            }
            state.thread = number;
            let revocation = self.clone();
            let worker = std::thread::Builder::new().name("memfs-revoke".into());
            if let Err(error) = worker.spawn(move || revocation.work(number)) {
                drop(state);
                tracing::error!("no thread takes back what the kernel has: {error}");
                return self.work(number);
            }
            let mut done = state.done;
            loop {
                let waited = self.changed.wait_for(&mut state, STUCK);
                if state.left.is_empty() && state.current.is_none() {
                    return;
                }
                if waited.timed_out() && state.done == done && state.current.is_some() {
                    break;
                }
                done = state.done;
            }
        }
    }

    /// Drops what is left, unless another thread has taken over.
    fn work(&self, number: usize) {
        let mut state = self.state.lock();
        while state.thread == number
            && let Some((node, range)) = state.left.pop_front()
        {
            state.current = Some((node.clone(), range));
            drop(state);
            self.shared.drop_now(&node, range);
            state = self.state.lock();
            state.done += 1;
            if state.thread == number {
                state.current = None;
            }
        }
        drop(state);
        self.changed.notify_all();
    }
}
