//! A store between the authority and the real one, at which a test meddles with calls.

use crate::store::{Noticed, Result, Store, StoreFile};
use crate::wire::*;
use parking_lot::Mutex;
use std::sync::Arc;

/// Called with the name of a call, before and after it is made; an error from before takes its place.
type Meddle = dyn Fn(&'static str, When) -> Result<()> + Send + Sync;
type Sink = Box<dyn Fn(Noticed) + Send + Sync>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum When {
    Before,
    After,
}

pub struct Filter {
    inner: Arc<dyn Store>,
    meddle: Arc<Meddle>,
    pub sink: Mutex<Option<Sink>>,
    /// Directories observed and given up, in order.
    pub observed: Mutex<Vec<(FileId, bool)>>,
}

struct FilterFile {
    inner: Box<dyn StoreFile>,
    meddle: Arc<Meddle>,
}

impl Filter {
    pub fn new(
        inner: impl Store,
        meddle: impl Fn(&'static str, When) -> Result<()> + Send + Sync + 'static,
    ) -> Arc<Filter> {
        Arc::new(Filter {
            inner: Arc::new(inner),
            meddle: Arc::new(meddle),
            sink: Mutex::default(),
            observed: Mutex::default(),
        })
    }

    pub fn notice(&self, noticed: Noticed) {
        self.sink.lock().as_ref().unwrap()(noticed);
    }

    fn file(&self, inner: Box<dyn StoreFile>) -> Box<dyn StoreFile> {
        let meddle = self.meddle.clone();
        Box::new(FilterFile { inner, meddle })
    }
}

fn call<R>(meddle: &Meddle, name: &'static str, call: impl FnOnce() -> Result<R>) -> Result<R> {
    meddle(name, When::Before)?;
    let result = call();
    meddle(name, When::After)?;
    result
}

/// Methods that are handed on under their names.
macro_rules! hand_on {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> Result<$result> {
            call(&*self.meddle, stringify!($name), || self.inner.$name($($arg),*))
        })*
    };
}

impl Store for Filter {
    hand_on! {
        subtree(path: &RelPath) -> Arc<dyn Store>;
        root() -> Attr;
        lookup(dir: &Node, name: &Name) -> Attr;
        attr(node: &Node) -> Attr;
        set_attr(node: &Node, set: &SetAttr) -> Attr;
        make(dir: &Node, name: &Name, make: &Make, mode: u16, by: Caller) -> Attr;
        link(node: &Node, dir: &Node, name: &Name) -> Attr;
        remove(dir: &Node, name: &Name, directory: bool) -> ();
        rename(from_dir: &Node, from: &Name, to_dir: &Node, to: &Name, mode: RenameMode) -> ();
        read_link(node: &Node) -> Vec<u8>;
        read_dir(dir: &Node, cursor: u64, max: usize) -> Vec<DirEntry>;
        get_xattr(node: &Node, name: &[u8]) -> Vec<u8>;
        list_xattr(node: &Node) -> Vec<u8>;
        set_xattr(node: &Node, name: &[u8], value: &[u8], mode: XattrMode) -> ();
        remove_xattr(node: &Node, name: &[u8]) -> ();
        sync_dir(dir: &Node) -> ();
        stat_fs() -> StatFs;
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn create(
        &self,
        dir: &Node,
        name: &Name,
        mode: u16,
        exclusive: bool,
        by: Caller,
    ) -> Result<(Attr, Box<dyn StoreFile>)> {
        let create = || self.inner.create(dir, name, mode, exclusive, by);
        let (attr, file) = call(&*self.meddle, "create", create)?;
        Ok((attr, self.file(file)))
    }

    fn open(&self, node: &Node, access: Access) -> Result<Box<dyn StoreFile>> {
        let open = || self.inner.open(node, access);
        Ok(self.file(call(&*self.meddle, "open", open)?))
    }

    fn watch(&self, sink: Sink) -> Result<()> {
        *self.sink.lock() = Some(sink);
        Ok(())
    }

    fn observe(&self, dir: &Node) {
        self.observed.lock().push((dir.id, true));
    }

    fn unobserve(&self, dir: FileId) {
        self.observed.lock().push((dir, false));
    }
}

impl StoreFile for FilterFile {
    hand_on! {
        attr() -> Attr;
        set_attr(set: &SetAttr) -> Attr;
        read_at(buf: &mut [u8], offset: u64) -> usize;
        write_at(buf: &[u8], offset: u64) -> ();
        zero_at(start: u64, end: u64) -> ();
        allocate(start: u64, end: u64, mode: Allocate) -> Attr;
        next_data(offset: u64) -> u64;
        next_hole(offset: u64) -> u64;
        list_xattr() -> Vec<u8>;
        sync(data_only: bool) -> ();
    }
}
