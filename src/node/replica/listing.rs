//! Listing directories.
//!
//! A listing comes in answers of some hundreds of entries; while one is being handed on, the next is on its way. A
//! whole listing is kept beside the names it told of, and forgotten with any of them: the next one is taken from there.

use super::link::Moment;
use super::nodes::Node;
use super::{DirItem, Entry, HandleNo, NodeNo, ROOT, Replica, Shared};
use crate::store::{Errno, Result};
use crate::wire::{self, Answer, Attr, DirEntry, Name, ReadRequest};
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;

/// Entries handed to a front end at once.
const BATCH: usize = 512;
/// Longer listings are not kept.
const KEPT_MAX: usize = 1 << 17;

/// A directory that is being read: what it listed so far.
pub(super) struct DirHandle {
    dir: Arc<Node>,
    listing: tokio::sync::Mutex<Listing>,
}

#[derive(Default)]
struct Listing {
    items: Vec<(Name, Arc<Node>, Attr)>,
    next: Next,
    /// The cursor after the last of them.
    after: u64,
    /// [`Node::names_version`] when it began.
    version: u64,
}

/// How a listing goes on.
#[derive(Default)]
enum Next {
    /// It does not.
    #[default]
    End,
    /// The authority is to be asked for what comes after this cursor.
    After(u64),
    /// It has been asked.
    Coming(oneshot::Receiver<Result<Entries>>),
}

/// Some entries, and as of when.
type Entries = (Moment, Vec<DirEntry>);

impl Shared {
    /// Takes in what the authority has listed of the root when it let this mount in.
    pub(super) fn take_in(&self, listing: &wire::Listing, at: Moment) {
        if let Ok(root) = self.nodes.get(ROOT) {
            for entry in &listing.entries {
                self.listed(&root, &entry.name, &entry.attr, at);
            }
        }
    }

    /// Asks the authority for entries after a cursor.
    async fn list(&self, dir: &Node, cursor: u64) -> Result<Entries> {
        let request = ReadRequest::ReadDir {
            dir: dir.to_wire()?,
            cursor,
            xattrs: self.xattrs_wanted.load(Ordering::Relaxed) > 0,
        };
        match self.link.read(request).await? {
            (at, Answer::Entries(entries)) => Ok((at, entries)),
            _ => Err(Errno::PROTO),
        }
    }

    /// As [`Shared::list`], as a task.
    fn list_ahead(self: &Arc<Self>, dir: &Arc<Node>, cursor: u64) -> Next {
        let (tell, coming) = oneshot::channel();
        let (shared, dir) = (self.clone(), dir.clone());
        self.runtime.spawn(async move {
            let _ = tell.send(shared.list(&dir, cursor).await);
        });
        Next::Coming(coming)
    }

    /// The whole listing of a directory, if it is known and all that belongs to it.
    fn kept_listing(&self, dir: &Node) -> Option<Listing> {
        if !self.link.may_use_copies() {
            return None;
        }
        let wanted = self.xattrs_wanted.load(Ordering::Relaxed) > 0;
        let (kept, version) = dir.kept_listing()?;
        let items = kept.iter().map(|(name, no)| {
            let node = self.nodes.get(*no).ok()?;
            let attr = node.cached_attr()?;
            let whole = !wanted || node.cached_xattrs(|_| ()).is_some();
            whole.then(|| (name.clone(), node, attr))
        });
        Some(Listing {
            items: items.collect::<Option<_>>()?,
            version,
            ..Listing::default()
        })
    }
}

impl Replica {
    /// Opens a directory: what it lists is as of its last read at cursor 0.
    pub fn open_dir(&self, dir: NodeNo) -> Result<HandleNo> {
        let dir = self.shared.nodes.get(dir)?;
        let handle = self.shared.new_handle();
        let listing = tokio::sync::Mutex::new(Listing::default());
        let open = Arc::new(DirHandle { dir, listing });
        self.shared.dirs.write().insert(handle, open);
        Ok(handle)
    }

    /// Closes a directory.
    pub fn close_dir(&self, handle: HandleNo) {
        self.shared.dirs.write().remove(&handle);
        self.shared.sweep();
    }

    /// Whether the names that are listed by a handle are those of now: only then may they be kept.
    pub async fn is_current(&self, handle: HandleNo) -> bool {
        let Some(open) = self.shared.dirs.read().get(&handle).cloned() else {
            return false;
        };
        let version = open.listing.lock().await.version;
        version == open.dir.names_version()
    }

    /// Entries after `cursor` (0: from the start, anew), `.` and `..` among them; empty at the end.
    pub async fn read_dir(&self, handle: HandleNo, cursor: u64) -> Result<Vec<DirItem>> {
        let open = self
            .shared
            .dirs
            .read()
            .get(&handle)
            .cloned()
            .ok_or(Errno::BADF)?;
        let mut listing = open.listing.lock().await;
        if cursor == 0 {
            *listing = self.begin_listing(&open.dir);
            return self.dots(&open.dir).await;
        }
        // Cursors 1 and 2 are behind `.` and `..`; the entry at index n has cursor n + 3.
        let index = cursor.saturating_sub(2) as usize;
        while listing.items.len() <= index && !matches!(listing.next, Next::End) {
            self.bounded(self.list_more(&open.dir, &mut listing))
                .await?;
        }
        let items = listing.items.iter().enumerate().skip(index).take(BATCH);
        Ok(items
            .map(|(index, (name, node, attr))| {
                let attr = node.cached_attr().unwrap_or(*attr);
                let mut entry = self.shared.entry(node, &attr);
                entry.ttl = Duration::ZERO;
                DirItem {
                    name: OsString::from(name.clone()),
                    entry,
                    cursor: index as u64 + 3,
                }
            })
            .collect())
    }

    fn begin_listing(&self, dir: &Arc<Node>) -> Listing {
        if let Some(kept) = self.shared.kept_listing(dir) {
            return kept;
        }
        let wanted = &self.shared.xattrs_wanted;
        let fewer = |listings: u32| listings.checked_sub(1);
        // Who wants them asks anew where they do not come any more.
        let _ = wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        Listing {
            next: Next::After(0),
            version: dir.names_version(),
            ..Listing::default()
        }
    }

    async fn dots(&self, dir: &Arc<Node>) -> Result<Vec<DirItem>> {
        let this = self.get_attr(dir.no).await?;
        let above = dir
            .state
            .lock()
            .place
            .clone()
            .map_or(ROOT, |(above, _)| above.no);
        let above = Entry {
            node: above,
            ..this
        };
        Ok(vec![
            DirItem {
                name: ".".into(),
                entry: this,
                cursor: 1,
            },
            DirItem {
                name: "..".into(),
                entry: above,
                cursor: 2,
            },
        ])
    }

    async fn list_more(&self, dir: &Arc<Node>, listing: &mut Listing) -> Result<()> {
        // Where this is given up or fails, it goes on from what is there.
        let after = Next::After(listing.after);
        let outcome = match std::mem::replace(&mut listing.next, after) {
            Next::End => return Ok(()),
            Next::After(cursor) => self.shared.list(dir, cursor).await,
            Next::Coming(coming) => coming.await.unwrap_or(Err(Errno::IO)),
        };
        let (at, entries) = outcome.map_err(|errno| self.after(dir, errno))?;
        listing.next = match entries.last() {
            Some(last) => {
                listing.after = last.cursor;
                self.shared.list_ahead(dir, last.cursor)
            }
            None => Next::End,
        };
        for entry in entries {
            let DirEntry {
                name, attr, xattrs, ..
            } = entry;
            let node = self.shared.listed(dir, &name, &attr, at);
            if let Some(xattrs) = xattrs {
                node.learn_xattrs(&xattrs, at);
            }
            listing.items.push((name, node, attr));
        }
        if matches!(listing.next, Next::End) && listing.items.len() <= KEPT_MAX {
            let items = listing.items.iter();
            let items = items.map(|(name, node, _)| (name.clone(), node.no));
            dir.keep_listing(items.collect(), listing.version);
        }
        Ok(())
    }
}
