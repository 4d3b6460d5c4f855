//! The conformance suite, and what it cannot ask of every store: the size, subtrees that keep to themselves,
//! nodes found by identity wherever they went.

use super::*;
use crate::store::conformance::{self, Fixture};

fn fixture() -> Fixture {
    Fixture::new(Memory::new(64 << 20))
}
conformance::suite!(fixture);

const BY: Caller = Caller { uid: 7, gid: 8 };

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn node(attr: &Attr, path: &str) -> Node {
    Node {
        id: attr.id,
        path: RelPath::new(path).unwrap(),
    }
}

fn root(store: &dyn Store) -> Node {
    node(&store.root().unwrap(), "")
}

fn make(store: &dyn Store, dir: &Node, text: &str, make: Make) -> Attr {
    store.make(dir, &name(text), &make, 0o755, BY).unwrap()
}

#[test]
fn urls() {
    assert_eq!(
        Memory::from_url("mem://?size=1M").unwrap().describe(),
        "mem://?size=1048576"
    );
    assert!(Memory::from_url("mem:///?size=64K").is_ok());
    for (url, says) in [
        ("mem://", "needs a size"),
        ("mem://?size=", "'' is not a size"),
        ("mem://?size=many", "'many' is not a size"),
        ("mem://?size=1M&x=1", "'1M&x=1' is not a size"),
        ("mem://?fast=1", "nothing else"),
        ("mem://?size=1K", "at least 64K"),
        ("tmp://?size=1M", "not a store in memory"),
    ] {
        let line = Memory::from_url(url).err().unwrap();
        assert!(line.contains(says) && line.contains(url), "{line}");
    }
}

#[test]
fn everything_takes_space_and_gives_it_back() {
    let store = Memory::new(SIZE_MIN);
    let dir = root(&store);
    let free = store.shared.space.free();
    let makes = [Make::File, Make::Directory, Make::Symlink(vec![b'x'; 1000])];
    for (number, what) in makes.into_iter().enumerate() {
        let attr = make(&store, &dir, &number.to_string(), what);
        let made = node(&attr, &number.to_string());
        store
            .set_xattr(&made, b"user.a", &[1; 500], XattrMode::Set)
            .unwrap();
        store
            .set_xattr(&made, b"user.a", &[1; 100], XattrMode::Set)
            .unwrap();
        let taken = free - store.shared.space.free();
        assert!((1124..3000).contains(&taken), "{taken} bytes taken");
        store
            .remove(
                &dir,
                &name(&number.to_string()),
                attr.kind == Kind::Directory,
            )
            .unwrap();
        assert_eq!(store.shared.space.free(), free);
    }
    let mut made = 0;
    let refused = loop {
        let text = name(&made.to_string());
        match store.make(&dir, &text, &Make::File, 0o644, BY) {
            Ok(_) => made += 1,
            Err(errno) => break errno,
        }
    };
    assert_eq!(
        (refused, made),
        (Errno::NOSPC, SIZE_MIN / (NODE_COST + NAME_COST))
    );
    assert_eq!(store.stat_fs().unwrap().files_free, 0);
    for number in 0..made {
        store
            .remove(&dir, &name(&number.to_string()), false)
            .unwrap();
    }
    assert_eq!(store.shared.space.free(), free);
}

#[test]
fn an_open_file_keeps_its_space_until_it_is_closed() {
    let store = Memory::new(1 << 20);
    let dir = root(&store);
    let free = store.shared.space.free();
    let (attr, file) = store.create(&dir, &name("f"), 0o644, true, BY).unwrap();
    file.write_at(&[1; 10_000], 0).unwrap();
    store.remove(&dir, &name("f"), false).unwrap();
    assert_eq!(store.attr(&node(&attr, "f")).err(), Some(Errno::STALE));
    let mut bytes = [0; 10_000];
    assert_eq!(file.read_at(&mut bytes, 0), Ok(10_000));
    assert_eq!(file.attr().unwrap().nlink, 0);
    assert!(bytes.iter().all(|byte| *byte == 1) && store.shared.space.free() < free - 10_000);
    drop(file);
    assert_eq!(store.shared.space.free(), free);
}

#[test]
fn a_subtree_reaches_nothing_outside() {
    let store = Memory::new(1 << 20);
    let dir = root(&store);
    let inner = make(&store, &dir, "inner", Make::Directory);
    let secret = make(&store, &dir, "secret", Make::File);
    let below = make(&store, &node(&inner, "inner"), "below", Make::File);
    let subtree = store.subtree(&RelPath::new("inner").unwrap()).unwrap();
    assert_eq!(subtree.root().unwrap().id, inner.id);
    assert_eq!(subtree.attr(&node(&below, "below")).unwrap().id, below.id);
    for path in ["", "secret", "below", "inner/secret"] {
        let refused = subtree.attr(&node(&secret, path)).err();
        assert_eq!(refused, Some(Errno::STALE), "{path}");
    }
    let no_directory = store.subtree(&RelPath::new("secret").unwrap());
    assert_eq!(no_directory.err(), Some(Errno::NOTDIR));
    let none = store.subtree(&RelPath::new("inner/none").unwrap());
    assert_eq!(none.err(), Some(Errno::NOENT));
}

#[test]
fn nodes_are_found_wherever_they_went() {
    let store = Memory::new(1 << 20);
    let dir = root(&store);
    let file = make(&store, &dir, "a", Make::File);
    let mode = RenameMode::Replace;
    store
        .rename(&dir, &name("a"), &dir, &name("b"), mode)
        .unwrap();
    assert_eq!(store.attr(&node(&file, "a")).unwrap().id, file.id);
    store.remove(&dir, &name("b"), false).unwrap();
    make(&store, &dir, "a", Make::File);
    assert_eq!(store.attr(&node(&file, "a")).err(), Some(Errno::STALE));
}

#[test]
fn renaming_keeps_counts_and_cycles_out() {
    let store = Memory::new(1 << 20);
    let dir = root(&store);
    let a = node(&make(&store, &dir, "a", Make::Directory), "a");
    let b = node(&make(&store, &a, "b", Make::Directory), "a/b");
    let rename = |from: (&Node, &str), to: (&Node, &str), mode| {
        store.rename(from.0, &name(from.1), to.0, &name(to.1), mode)
    };
    let links = |node: &Node| store.attr(node).unwrap().nlink;
    assert_eq!((links(&dir), links(&a), links(&b)), (3, 3, 2));
    assert_eq!(
        rename((&dir, "a"), (&b, "x"), RenameMode::Replace),
        Err(Errno::INVAL)
    );
    assert_eq!(
        rename((&a, "b"), (&dir, "a"), RenameMode::Exchange),
        Err(Errno::INVAL)
    );
    assert_eq!(
        rename((&a, "b"), (&dir, "a"), RenameMode::Replace),
        Err(Errno::NOTEMPTY)
    );
    make(&store, &dir, "c", Make::File);
    let free = store.shared.space.free();
    rename((&dir, "c"), (&a, "b"), RenameMode::Exchange).unwrap();
    assert_eq!((links(&dir), links(&a), links(&b)), (4, 2, 2));
    assert_eq!(store.shared.space.free(), free);
    assert_eq!(
        rename((&dir, "c"), (&a, "b"), RenameMode::Replace),
        Err(Errno::NOTDIR)
    );
    assert_eq!(
        rename((&a, "b"), (&dir, "c"), RenameMode::Replace),
        Err(Errno::ISDIR)
    );
    rename((&dir, "c"), (&dir, "a"), RenameMode::Replace).unwrap_err();
    store.remove(&a, &name("b"), false).unwrap();
    rename((&dir, "c"), (&dir, "a"), RenameMode::Replace).unwrap();
    assert_eq!(links(&dir), 3);
    assert_eq!(store.attr(&a).err(), Some(Errno::STALE));
}
