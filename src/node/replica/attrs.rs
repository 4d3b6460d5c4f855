//! Attributes, extended attributes, and whose files they are shown as.

use super::link::Moment;
use super::nodes::Node;
use super::{Entry, HandleNo, NodeNo, Replica, Shared};
use crate::store::{Errno, Result};
use crate::units::ByteRange;
use crate::wire::{
    self, Answer, Attr, Caller, ChangeRequest, HandleId, Kind, ReadRequest, SetAttr, StatFs,
    XattrMode,
};
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the kernel may keep attributes: it is told when they change.
const KERNEL_TTL: Duration = Duration::from_secs(86_400);

/// What the kernel asks for before each store.
const CAPABILITY: &[u8] = b"security.capability";

/// Who asks for an extended attribute has so many listings bring their names.
const XATTR_LISTINGS: u32 = 8;

/// Shows one user's files at the authority as another's here.
#[derive(Default)]
pub(super) struct Owners {
    map: RwLock<Option<(Caller, Caller)>>,
}

impl Owners {
    pub fn set(&self, server: Caller, local: Caller) {
        *self.map.write() = Some((server, local));
    }

    fn to_local(&self, attr: &mut Attr) {
        if let Some((server, local)) = *self.map.read() {
            if attr.uid == server.uid {
                attr.uid = local.uid;
            }
            if attr.gid == server.gid {
                attr.gid = local.gid;
            }
        }
    }

    pub fn to_server(&self, caller: Caller) -> Caller {
        Caller {
            uid: self.uid_to_server(caller.uid),
            gid: self.gid_to_server(caller.gid),
        }
    }

    fn uid_to_server(&self, uid: u32) -> u32 {
        match *self.map.read() {
            Some((server, local)) if uid == local.uid => server.uid,
            _ => uid,
        }
    }

    fn gid_to_server(&self, gid: u32) -> u32 {
        match *self.map.read() {
            Some((server, local)) if gid == local.gid => server.gid,
            _ => gid,
        }
    }
}

impl Shared {
    /// The answer to the kernel about a node, of which `attr` has just been read.
    pub(super) fn entry(&self, node: &Node, attr: &Attr) -> Entry {
        let region = node.region.lock().clone();
        let state = region
            .map(|region| region.look(|inner| (inner.core.size(), inner.core.dirty_pages() > 0)));
        // Looked at after the region: the answer to a push is taken in before its pages are clean. The
        // other way round a push that ends in between would be missed by both.
        let cached = node.cached_attr();
        // What is not cached is older than a change: nobody would take it back from the kernel.
        let mut ttl = cached.map_or(Duration::ZERO, |_| KERNEL_TTL);
        let mut attr = cached.unwrap_or(*attr);
        self.owners.to_local(&mut attr);
        if let Some((size, dirty)) = state {
            attr.size = size;
            if dirty {
                // Its times are not known before it is pushed.
                ttl = Duration::ZERO;
            }
        }
        let name_ttl = self.name_ttl();
        Entry {
            node: node.no,
            generation: node.id.born,
            attr,
            ttl: ttl.min(name_ttl),
            name_ttl,
        }
    }

    /// How long the kernel may keep what a name stands for now, or that it stands for nothing.
    fn name_ttl(&self) -> Duration {
        match self.link.lease_is_valid() {
            true => KERNEL_TTL,
            false => Duration::ZERO,
        }
    }

    /// Takes in attributes from an answer; drops the copy where they show that the content has changed
    /// without being announced.
    pub(super) fn adopt(&self, node: &Arc<Node>, attr: &Attr, at: Moment) -> bool {
        let region = node.region.lock().clone();
        let pushing = region
            .as_ref()
            .is_some_and(|region| region.look(|inner| inner.is_pushing()));
        if pushing {
            // Its own pushes change it.
            node.adopt_own(attr, at);
        }
        let good = pushing || node.adopt(attr, at);
        if let Some(region) = region {
            let mut dropped = Vec::new();
            let cut = region.update(|inner| {
                if !good {
                    let whole = ByteRange::new(0, u64::MAX);
                    inner.invalidate(at, whole, &mut dropped);
                }
                inner.adopt_size(at, attr.size)
            });
            if let Err(errno) = cut {
                tracing::error!(
                    "{:?}: the local copy cannot be cut: {errno}",
                    node.path_or_unnamed()
                );
            }
        }
        if !good {
            let whole = ByteRange::new(0, u64::MAX);
            self.drop_pages(node, whole);
        }
        good
    }

    async fn list_xattrs(&self, node: &Node) -> Result<Vec<u8>> {
        let request = ReadRequest::ListXattr {
            node: node.to_wire()?,
        };
        let (at, Answer::Bytes(names)) = self.link.read(request).await? else {
            return Err(Errno::PROTO);
        };
        node.learn_xattrs(&names, at);
        Ok(names)
    }

    /// A file was opened for writing: the kernel asks for an extended attribute before it stores anything, and should not
    /// have to wait for a link that is lost by then.
    pub(super) fn foresee_store(self: &Arc<Self>, node: &Arc<Node>) {
        if self.capabilities.xattrs && node.cached_xattrs(|_| ()).is_none() {
            let (shared, node) = (self.clone(), node.clone());
            self.runtime.spawn(async move {
                // Where that fails, the kernel's question does as well.
                let _ = shared.list_xattrs(&node).await;
            });
        }
    }

    /// Pushes what is dirty of a node and waits for it.
    pub(super) async fn flush_node(&self, node: &Arc<Node>) -> Result<()> {
        let region = node.region.lock().clone();
        let Some(flushed) = region.and_then(|region| region.flush()) else {
            return Ok(());
        };
        let _waiting = super::link::Waiting::new(&self.link.waiting);
        flushed.await.unwrap_or(Err(Errno::IO))
    }
}

impl Replica {
    /// Attributes. What is dirty is pushed first, so that times and size are the authority's; what is refused has
    /// the times of before, and so has what is not waited for (`--offline serve`).
    pub async fn get_attr(&self, node: NodeNo) -> Result<Entry> {
        let node = self.shared.nodes.get(node)?;
        let cached = || Some(self.shared.entry(&node, &node.cached_attr()?));
        let ask = async {
            let _ = self.shared.flush_node(&node).await;
            if self.shared.link.lease_is_valid()
                && let Some(entry) = cached()
            {
                return Ok(entry);
            }
            let attr = self.ask_attr(&node).await?;
            Ok(self.shared.entry(&node, &attr))
        };
        self.or_adrift(ask, async { cached() }).await
    }

    /// Whether the kernel may keep names.
    pub fn keeps_names(&self) -> bool {
        self.shared.options.keep_names
    }

    /// How long the kernel may keep that a name stands for nothing, as with [`Entry::name_ttl`].
    pub fn absent_ttl(&self) -> Duration {
        self.shared.name_ttl()
    }

    /// Attributes, if they can be told without asking or pushing.
    pub fn cached_entry(&self, node: NodeNo) -> Option<Entry> {
        let node = self.shared.nodes.get(node).ok()?;
        let attr = node.cached_attr()?;
        let usable = self.shared.link.may_use_copies();
        usable.then(|| self.shared.entry(&node, &attr))
    }

    /// Attributes as they were last known.
    pub fn known_entry(&self, node: NodeNo) -> Option<Entry> {
        let node = self.shared.nodes.get(node).ok()?;
        let attr = node.cached_attr()?;
        Some(self.shared.entry(&node, &attr))
    }

    async fn ask_attr(&self, node: &Arc<Node>) -> Result<Attr> {
        let answer = loop {
            let (at_node, handle) = self.named(node).await?;
            let request = ReadRequest::GetAttr {
                node: at_node,
                handle,
            };
            match self.shared.link.read(request).await {
                Err(errno) if self.is_closed(node, handle, errno).await => {}
                answer => break answer?,
            }
        };
        match answer {
            (at, Answer::Attr(attr)) if attr.id == node.id => {
                self.shared.adopt(node, &attr, at);
                Ok(attr)
            }
            _ => Err(Errno::STALE),
        }
    }

    /// Changes attributes; a size also on an open file without permission for its path.
    pub async fn set_attr(
        &self,
        node: NodeNo,
        _handle: Option<HandleNo>,
        set: SetAttr,
        by: Caller,
    ) -> Result<Entry> {
        if self.is_read_only() {
            return Err(Errno::ROFS);
        }
        let node = self.shared.nodes.get(node)?;
        let by = self.shared.owners.to_server(by);
        let set = SetAttr {
            uid: set.uid.map(|uid| self.shared.owners.uid_to_server(uid)),
            gid: set.gid.map(|gid| self.shared.owners.gid_to_server(gid)),
            ..set
        };
        if set.size.is_some() && node.kind != Kind::File {
            return Err(Errno::INVAL);
        }
        self.bounded(async {
            let attr = match set.size {
                Some(size) => self.resize(&node, size, set, by).await?,
                None => {
                    self.settle_content(&node).await;
                    self.send_set_attr(&node, set, by).await?.1
                }
            };
            Ok(self.shared.entry(&node, &attr))
        })
        .await
    }

    /// Times that are set are to be the last word: what a program has stored before is pushed before, unless that is
    /// refused.
    async fn settle_content(&self, node: &Arc<Node>) {
        let region = node.region.lock().clone();
        let Some(region) = region else { return };
        if region.look(|inner| inner.mappers > 0)
            && let Some(kernel) = self.shared.kernel.get()
            && let Ok(path) = node.path()
        {
            kernel.write_back(node.no, path).await;
        }
        let _ = self.shared.flush_node(node).await;
    }

    async fn send_set_attr(
        &self,
        node: &Arc<Node>,
        set: SetAttr,
        by: Caller,
    ) -> Result<(Moment, Attr)> {
        let make = |(node, handle)| ChangeRequest::SetAttr {
            node,
            handle,
            set,
            by,
        };
        loop {
            let (at_node, handle) = self.named(node).await?;
            node.touch();
            let answer = self.shared.link.change(make((at_node, handle))).await;
            match answer {
                Ok((at, Answer::Attr(attr))) => {
                    node.adopt_own(&attr, at);
                    return Ok((at, attr));
                }
                Ok(_) => return Err(Errno::PROTO),
                Err(errno) if self.is_closed(node, handle, errno).await => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// How a request names a node: by an open handle, if there is one.
    async fn named(&self, node: &Arc<Node>) -> Result<(wire::Node, Option<HandleId>)> {
        let handle = self.shared.remote_handle(node).await;
        let node = match handle {
            Some(_) => node.to_wire_open(),
            None => node.to_wire()?,
        };
        Ok((node, handle))
    }

    /// Whether a request failed because the handle that named its node was being closed: then it is to be named anew.
    async fn is_closed(&self, node: &Arc<Node>, handle: Option<HandleId>, errno: Errno) -> bool {
        errno == Errno::BADF && handle.is_some() && self.shared.remote_handle(node).await != handle
    }

    /// Truncates or extends.
    async fn resize(&self, node: &Arc<Node>, size: u64, set: SetAttr, by: Caller) -> Result<Attr> {
        let region = node.region.lock().clone();
        let Some(region) = region else {
            return Ok(self.send_set_attr(node, set, by).await?.1);
        };
        let _hold = region.begin_resize().await;
        let (at, attr) = self.send_set_attr(node, set, by).await?;
        let mut dropped = Vec::new();
        region.update(|inner| inner.resized(at, size, &mut dropped))?;
        for run in dropped {
            self.shared.drop_pages(node, run.bytes());
        }
        Ok(attr)
    }

    /// Content of a symbolic link.
    pub async fn read_link(&self, node: NodeNo) -> Result<Vec<u8>> {
        let node = self.shared.nodes.get(node)?;
        let request = async {
            Ok(ReadRequest::ReadLink {
                node: node.to_wire()?,
            })
        };
        self.bounded(self.ask_bytes(&node, request)).await
    }

    async fn ask_bytes(
        &self,
        node: &Node,
        request: impl Future<Output = Result<ReadRequest>>,
    ) -> Result<Vec<u8>> {
        match self.shared.link.read(request.await?).await? {
            (at, Answer::Bytes(bytes)) => {
                node.saw(at);
                Ok(bytes)
            }
            _ => Err(Errno::PROTO),
        }
    }

    /// Value of an extended attribute.
    pub async fn get_xattr(&self, node: NodeNo, name: &[u8]) -> Result<Vec<u8>> {
        let node = self.shared.nodes.get(node)?;
        self.check_xattrs()?;
        let has = |names: &[u8]| names.split(|&b| b == 0).any(|has| has == name);
        let ask = async {
            let there = match self.cached_xattrs(&node, has) {
                Some(there) => there,
                None => has(&self.ask_xattrs(&node).await?),
            };
            if !there {
                return Err(Errno::NODATA);
            }
            let request = async {
                Ok(ReadRequest::GetXattr {
                    node: node.to_wire()?,
                    name: name.to_vec(),
                })
            };
            self.ask_bytes(&node, request).await.map(Ok)
        };
        let known = async {
            // The kernel wants it away before it stores anything; so does the authority's.
            let there = (self.cached_xattrs(&node, has)).unwrap_or(name != CAPABILITY);
            (!there).then_some(Err(Errno::NODATA))
        };
        self.or_adrift(ask, known).await?
    }

    /// Names of extended attributes, each followed by NUL.
    pub async fn list_xattr(&self, node: NodeNo) -> Result<Vec<u8>> {
        let node = self.shared.nodes.get(node)?;
        self.check_xattrs()?;
        self.bounded(async {
            match self.cached_xattrs(&node, <[u8]>::to_vec) {
                Some(names) => Ok(names),
                None => self.ask_xattrs(&node).await,
            }
        })
        .await
    }

    fn cached_xattrs<R>(&self, node: &Node, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let usable = self.shared.link.may_use_copies();
        usable.then(|| node.cached_xattrs(look)).flatten()
    }

    async fn ask_xattrs(&self, node: &Arc<Node>) -> Result<Vec<u8>> {
        let names = self.shared.list_xattrs(node).await?;
        // One who lists a directory with them ('ls -l') asks for those of the next entry soon.
        let wanted = &self.shared.xattrs_wanted;
        wanted.store(XATTR_LISTINGS, Ordering::Relaxed);
        Ok(names)
    }

    /// Sets an extended attribute.
    pub async fn set_xattr(
        &self,
        node: NodeNo,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        let node = self.shared.nodes.get(node)?;
        self.check_xattrs()?;
        let (name, value) = (name.to_vec(), value.to_vec());
        self.change_xattr(&node, |node| ChangeRequest::SetXattr {
            node,
            name,
            value,
            mode,
        })
        .await
    }

    /// Removes an extended attribute.
    pub async fn remove_xattr(&self, node: NodeNo, name: &[u8]) -> Result<()> {
        let node = self.shared.nodes.get(node)?;
        self.check_xattrs()?;
        let name = name.to_vec();
        self.change_xattr(&node, |node| ChangeRequest::RemoveXattr { node, name })
            .await
    }

    async fn change_xattr(
        &self,
        node: &Arc<Node>,
        request: impl FnOnce(crate::wire::Node) -> ChangeRequest,
    ) -> Result<()> {
        if self.is_read_only() {
            return Err(Errno::ROFS);
        }
        self.bounded(async {
            self.shared.flush_node(node).await?;
            let request = request(node.to_wire()?);
            let outcome = self.shared.link.change(request).await;
            node.touch();
            self.shared
                .queue(super::kernel::Job::DropAttributes(node.no));
            outcome.map(|(at, _)| node.saw(at))
        })
        .await
    }

    fn check_xattrs(&self) -> Result<()> {
        if self.shared.capabilities.xattrs {
            Ok(())
        } else {
            Err(Errno::OPNOTSUPP)
        }
    }

    /// Of the file system below the store.
    pub async fn stat_fs(&self) -> Result<StatFs> {
        self.bounded(async {
            match self.shared.link.read(ReadRequest::StatFs).await? {
                (_, Answer::StatFs(stat)) => Ok(stat),
                _ => Err(Errno::PROTO),
            }
        })
        .await
    }
}
