//! What others do in the tree, noticed with inotify.
//!
//! Each observed directory has a watch, which tells of its entries and of what is done to them under
//! their names there. A thread reads the events as they come, a batch at a time; of each batch it
//! looks once at every directory and every entry named, and reports what it finds: however often
//! something was changed meanwhile, its attributes now are what counts.

use super::attributes::{proc_path, stat_at};
use super::tree::Tree;
use crate::store::{Errno, Noticed, Result};
use crate::wire::{FileId, Name, Node};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::thread::JoinHandle;

/// What is to be told of a directory and its entries. `CLOSE_WRITE` comes after the last store
/// through a mapping, which nothing else tells of.
const EVENTS: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);
/// Those after which a directory has other entries.
const OF_ENTRIES: ReadFlags = ReadFlags::CREATE
    .union(ReadFlags::DELETE)
    .union(ReadFlags::MOVED_FROM)
    .union(ReadFlags::MOVED_TO);
/// Those after which a watch is no more.
const OF_END: ReadFlags = ReadFlags::DELETE_SELF
    .union(ReadFlags::UNMOUNT)
    .union(ReadFlags::IGNORED);
/// Events read at once: at least 240 of them.
const BUFFER_BYTES: usize = 64 << 10;

/// Reports to whoever watches.
pub type Sink = Box<dyn Fn(Noticed) + Send + Sync>;

/// A thread that reports, until this is dropped.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    tree: Arc<Tree>,
    inotify: OwnedFd,
    /// Readable once the thread is to end.
    end: OwnedFd,
    observed: Mutex<Observed>,
}

/// The observed directories, by their watches and the other way round.
#[derive(Default)]
struct Observed {
    nodes: HashMap<i32, Node>,
    watches: HashMap<FileId, i32>,
    /// It was logged that there are no more watches.
    exhausted: bool,
}

/// What a batch of events asks to look at, by watch.
#[derive(Default)]
struct Batch {
    dirs: BTreeMap<i32, Touched>,
    overflow: bool,
}

#[derive(Default)]
struct Touched {
    /// The directory's entries.
    entries: bool,
    /// The directory's own attributes.
    itself: bool,
    /// Entries whose content or attributes may have changed.
    names: BTreeSet<Name>,
    /// The watch is no more.
    ended: bool,
}

impl Watch {
    /// Nothing is observed yet. `EMFILE` if the user has too many inotify instances.
    pub fn start(tree: Arc<Tree>, sink: Sink) -> Result<Watch> {
        let shared = Arc::new(Shared {
            tree,
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            end: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            observed: Mutex::default(),
        });
        let thread = std::thread::Builder::new().name("memfs-watch".to_string());
        let run = {
            let shared = Arc::clone(&shared);
            move || shared.run(&sink)
        };
        let thread = thread.spawn(run).map_err(|_| Errno::AGAIN)?;
        Ok(Watch {
            shared,
            thread: Some(thread),
        })
    }

    /// See [`crate::store::Store::observe`].
    pub fn observe(&self, dir: &Node) {
        let shared = &self.shared;
        let Ok(found) = shared.tree.resolve(dir) else {
            return;
        };
        // Held while the watch is added: its first event may be read before this returns.
        let mut observed = shared.observed.lock();
        match inotify::add_watch(&shared.inotify, proc_path(&found.fd), EVENTS) {
            Ok(watch) => {
                observed.nodes.insert(watch, dir.clone());
                observed.watches.insert(dir.id, watch);
            }
            Err(Errno::NOSPC) if !observed.exhausted => {
                observed.exhausted = true;
                let shown = shared.tree.shown().display();
                tracing::warn!(
                    "{shown}: some local changes will only be noticed when a file is opened: no \
                     more inotify watches (fs.inotify.max_user_watches)"
                );
            }
            Err(error) => tracing::debug!("{:?} is not watched: {error}", dir.path),
        }
    }

    /// See [`crate::store::Store::unobserve`].
    pub fn unobserve(&self, dir: FileId) {
        let watch = self.shared.observed.lock().forget(dir);
        if let Some(watch) = watch {
            // It may have ended by itself.
            let _ = inotify::remove_watch(&self.shared.inotify, watch);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Cannot fail: the counter is far from full.
        let _ = rustix::io::write(&self.shared.end, &1u64.to_ne_bytes());
        let Some(thread) = self.thread.take() else {
            return;
        };
        // The last owner of a store may be what the sink holds.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}

impl Observed {
    /// The watch there was.
    fn forget(&mut self, dir: FileId) -> Option<i32> {
        let watch = self.watches.remove(&dir)?;
        self.nodes.remove(&watch);
        Some(watch)
    }

    fn forget_watch(&mut self, watch: i32) {
        if let Some(node) = self.nodes.remove(&watch)
            && self.watches.get(&node.id) == Some(&watch)
        {
            self.watches.remove(&node.id);
        }
    }
}

impl Shared {
    fn run(&self, sink: &Sink) {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        loop {
            let mut fds = [
                PollFd::new(&self.inotify, PollFlags::IN),
                PollFd::new(&self.end, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return self.give_up(sink, error),
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            match self.read(&mut buffer) {
                Ok(batch) => self.report(batch, sink),
                Err(error) => return self.give_up(sink, error),
            }
        }
    }

    fn give_up(&self, sink: &Sink, error: Errno) {
        let shown = self.tree.shown().display();
        tracing::warn!("{shown}: local changes are no longer noticed: {error}");
        sink(Noticed::Overflow);
    }

    fn read(&self, buffer: &mut [MaybeUninit<u8>]) -> Result<Batch> {
        let mut batch = Batch::default();
        let mut events = Reader::new(&self.inotify, buffer);
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(batch),
                Err(error) => return Err(error),
            };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                batch.overflow = true;
            } else {
                let touched = batch.dirs.entry(event.wd()).or_default();
                touched.ended |= flags.intersects(OF_END);
                touched.entries |= flags.intersects(OF_ENTRIES);
                match event.file_name() {
                    Some(name) => touched.names.extend(Name::new(name.to_bytes())),
                    None => touched.itself |= flags.contains(ReadFlags::ATTRIB),
                }
            }
            if events.is_buffer_empty() {
                return Ok(batch);
            }
        }
    }

    fn report(&self, batch: Batch, sink: &Sink) {
        if batch.overflow {
            sink(Noticed::Overflow);
        }
        let mut dirs: Vec<(i32, Touched)> = batch.dirs.into_iter().collect();
        // A directory that was moved is found again by what its new one tells.
        dirs.sort_by_key(|(_, touched)| !touched.entries);
        for (watch, touched) in dirs {
            let mut observed = self.observed.lock();
            let node = observed.nodes.get(&watch).cloned();
            if touched.ended {
                observed.forget_watch(watch);
            }
            drop(observed);
            if let Some(node) = node {
                self.report_directory(&node, &touched, sink);
            }
        }
    }

    fn report_directory(&self, node: &Node, touched: &Touched, sink: &Sink) {
        let Ok(dir) = self.tree.resolve(node) else {
            // What it was removed from tells of a removal. Else others have moved it to where it
            // cannot be followed, and so can nothing below it.
            if !touched.ended {
                let watch = self.observed.lock().forget(node.id);
                watch.map(|watch| inotify::remove_watch(&self.inotify, watch));
                sink(Noticed::Overflow);
            }
            return;
        };
        for name in &touched.names {
            // It may have gone since, or that may be what there is to tell.
            if let Ok(attr) = stat_at(&dir.fd, name) {
                self.tree.places().record(attr.id, node.id, name);
                sink(Noticed::Changed(attr));
            }
        }
        if touched.entries {
            sink(Noticed::Entries(dir.attr));
        } else if touched.itself {
            sink(Noticed::Changed(dir.attr));
        }
    }
}
