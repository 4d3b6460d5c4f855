//! Keeping the kernel's cache coherent with the replica's.
//!
//! One thread does everything to the kernel's cache, in order: what is put there was read from the local copy
//! before anything that came later was dropped from it. Calls into the kernel may wait for a page that a READ
//! holds, and that READ for a pull, so nothing that answers requests ever waits for this thread.
//!
//! Pages are put into the cache for those who will want them one by one. A sequential reader, by read(2) or through a
//! mapping, asks for so many at a time that its own READs are cheaper (a tenth of all processor time of a read over
//! loopback), so nothing is put for it. Nor is anything while the order in which a file is
//! touched is being learned ([`super::learn`]).
//!
//! Putting pages into the cache overwrites what is there, so it must not meet a page that a program has
//! dirtied: it is done only while nobody has the file open for writing, and whoever opens it for writing
//! waits until it is done ([`Region::begin_writing`]).
//!
//! A program's write(2) changes the kernel's page first and arrives here then. Where the page is dropped in between, and
//! read anew, it comes back without those bytes. So reads wait for the stores that wait for something
//! ([`Region::begin_store`]), and where a store comes soon after a drop its pages are dropped once more
//! ([`Shared::was_written`]).
//!
//! Nothing is put, or stays that was being put, once the lease is lost: see [`super::revoke`].
//!
//! Writing back has a second thread, because it opens the file through the mount, which is a request that may
//! wait for the authority.

use super::nodes::Node;
use super::region::Region;
use super::{KernelCache, NodeNo, Shared};
use crate::units::{ByteRange, PAGE_BYTES, PageRange};
use crate::wire::{RelPath, ReplicaEvent};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;

/// Bytes put into the page cache by one call.
const PUT_BYTES: u64 = 1 << 20;
/// No write(2) takes longer from the kernel's page to the copy, unless it waits here for something.
const ON_ITS_WAY_MAX: Duration = Duration::from_secs(1);
/// Jobs that put pages are dropped where so many jobs wait: the kernel will ask for the pages.
const PUTS_WAITING_MAX: usize = 1024;

/// A job for the kernel thread.
pub(super) enum Job {
    DropAttributes(NodeNo),
    DropNames,
    /// See [`Shared::drop_pages`].
    DropPages(Arc<Node>, ByteRange),
    Put(Weak<Region>, ByteRange),
    /// Everything before this has been done: the authority may be told, on a session of this generation, that the
    /// change has been taken in.
    Taken {
        generation: u64,
        change: u64,
    },
}

/// A job for the write-back thread.
pub(super) struct WriteBack {
    pub node: NodeNo,
    pub path: RelPath,
    pub done: oneshot::Sender<()>,
}

/// The two threads of a mount.
pub(super) struct Kernel {
    pub cache: Arc<dyn KernelCache>,
    jobs: mpsc::Sender<Job>,
    write_backs: mpsc::Sender<WriteBack>,
    waiting: Arc<std::sync::atomic::AtomicUsize>,
}

impl Kernel {
    /// Starts the threads; they end when this and the replica are gone.
    pub fn start(cache: Arc<dyn KernelCache>, shared: &Arc<Shared>) -> std::io::Result<Kernel> {
        let (jobs, job_receiver) = mpsc::channel();
        let (write_backs, write_back_receiver) = mpsc::channel::<WriteBack>();
        let waiting = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let below = cache.clone();
        let worker = Worker {
            cache: cache.clone(),
            shared: Arc::downgrade(shared),
            waiting: waiting.clone(),
            buffer: Vec::new(),
        };
        std::thread::Builder::new()
            .name("memfs-kernel".into())
            .spawn(move || worker.run(&job_receiver))?;
        std::thread::Builder::new()
            .name("memfs-writeback".into())
            .spawn(move || {
                while let Ok(job) = write_back_receiver.recv() {
                    cache.write_back(job.node, &job.path);
                    let _ = job.done.send(());
                }
            })?;
        Ok(Kernel {
            cache: below,
            jobs,
            write_backs,
            waiting,
        })
    }

    /// Queues a job.
    pub fn queue(&self, job: Job) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _ = self.jobs.send(job);
    }

    /// Writes back what programs have dirtied through mappings, and waits.
    pub async fn write_back(&self, node: NodeNo, path: RelPath) {
        let (done, receiver) = oneshot::channel();
        if self
            .write_backs
            .send(WriteBack { node, path, done })
            .is_ok()
        {
            let _ = receiver.await;
        }
    }
}

/// The kernel thread.
struct Worker {
    cache: Arc<dyn KernelCache>,
    shared: Weak<Shared>,
    waiting: Arc<std::sync::atomic::AtomicUsize>,
    buffer: Vec<u8>,
}

impl Worker {
    fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let waiting = self.waiting.fetch_sub(1, Ordering::Relaxed);
            match job {
                Job::DropNames => self.cache.drop_names(),
                Job::DropAttributes(node) => self.cache.drop_attributes(node),
                Job::DropPages(node, range) => {
                    if let Some(shared) = self.shared.upgrade() {
                        shared.drop_now(&node, range);
                    }
                }
                Job::Taken { generation, change } => {
                    if let Some(shared) = self.shared.upgrade() {
                        let taken = ReplicaEvent::Taken { change };
                        shared.link.send_about(generation, taken);
                    }
                }
                Job::Put(region, range) => {
                    if let Some(region) = region.upgrade()
                        && waiting < PUTS_WAITING_MAX
                    {
                        self.put(&region, range);
                    }
                }
            }
        }
    }

    fn put(&mut self, region: &Arc<Region>, range: ByteRange) {
        let may = region.update(|inner| {
            let wanted = inner.writers == 0 && !inner.core.is_read_in_order();
            inner.putting = wanted && inner.opens > 0;
            inner.putting
        });
        if !may {
            return;
        }
        let mut from = range.start;
        while from < range.end && region.look(|inner| inner.writers == 0) {
            let to = range.end.min(from + PUT_BYTES);
            let runs = region.look(|inner| {
                inner
                    .core
                    .present_runs(ByteRange::new(from, to).pages_touched())
            });
            for run in runs {
                self.put_run(region, run);
            }
            from = to;
        }
        region.update(|inner| inner.putting = false);
        region.changed.notify_waiters();
    }

    fn put_run(&mut self, region: &Region, run: PageRange) {
        let bytes = run.bytes();
        let buffer = &mut self.buffer;
        // Copied, because putting waits for pages whose READ may wait for the lock that guards the copy.
        let copied = region.look(|inner| {
            let whole = inner.core.size() / PAGE_BYTES * PAGE_BYTES;
            let bytes = bytes.intersect(ByteRange::new(0, whole.min(inner.copy.len())));
            inner
                .copy
                .with_bytes(bytes.start, bytes.len() as usize, |source| {
                    buffer.clear();
                    buffer.extend_from_slice(source);
                })
        });
        let leased = || (self.shared.upgrade()).is_some_and(|shared| shared.link.may_use_copies());
        if copied.is_ok() && !self.buffer.is_empty() && leased() {
            self.cache
                .put_pages(region.node.no, bytes.start, &self.buffer);
            if !leased() {
                self.cache.drop_pages(region.node.no, bytes);
            }
        }
    }
}

impl Node {
    /// Pages of it are going to be dropped.
    pub(super) fn begin_drop(&self) {
        self.drops.fetch_add(1, Ordering::AcqRel);
    }

    fn end_drop(&self) {
        self.drops.fetch_sub(1, Ordering::Release);
    }
}

impl Shared {
    /// Drops pages, as was announced by [`Node::begin_drop`].
    pub(super) fn drop_now(&self, node: &Node, range: ByteRange) {
        if let Some(kernel) = self.kernel.get() {
            let note = || {
                let now = self.link.clock.elapsed().as_nanos() as u64;
                node.last_drop_ns.store(now, Ordering::Release);
            };
            note();
            kernel.cache.drop_pages(node.no, range);
            note();
        }
        node.end_drop();
    }

    /// A program has stored by write(2): should it have been on its way while pages were dropped, the kernel may have
    /// read what was there before.
    pub(super) fn was_written(&self, node: &Arc<Node>, range: ByteRange) {
        let last = Duration::from_nanos(node.last_drop_ns.load(Ordering::Acquire));
        if !last.is_zero() && self.link.clock.elapsed() < last + ON_ITS_WAY_MAX {
            self.drop_pages(node, range);
        }
    }
}

/// Lets the kernel thread put a range that has arrived into the page cache.
pub(super) fn put_later(shared: &Shared, region: &Arc<Region>, range: ByteRange) {
    if let Some(kernel) = shared.kernel.get()
        && region.look(|inner| {
            let wanted = inner.writers == 0 && inner.opens > 0 && !inner.learning;
            wanted && !inner.lending.is_lent()
        })
    {
        kernel.queue(Job::Put(Arc::downgrade(region), range));
    }
}
