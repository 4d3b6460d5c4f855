//! Extended attributes.

use super::*;

fn list(t: &Fixture, node: &Node) -> Vec<Vec<u8>> {
    let list = t.store.list_xattr(node).unwrap();
    let mut names: Vec<Vec<u8>> = list
        .split_inclusive(|&b| b == 0)
        .map(|name| name.strip_suffix(b"\0").expect("NUL after each").to_vec())
        // A security module may add its own.
        .filter(|name| name.starts_with(b"user."))
        .collect();
    names.sort();
    names
}

pub(crate) fn values(t: &Fixture) {
    needs!(t, xattrs);
    let root = t.root();
    for node in [t.file(&root, "file", b""), t.dir(&root, "dir")] {
        assert_eq!(list(t, &node), Vec::<Vec<u8>>::new());
        let nothing = t.store.get_xattr(&node, b"user.a");
        assert_eq!(nothing, Err(Errno::NODATA));
        for value in [b"value".to_vec(), vec![], vec![0, 255, 0], vec![7; 2000]] {
            t.store
                .set_xattr(&node, b"user.a", &value, XattrMode::Set)
                .unwrap();
            assert_eq!(t.store.get_xattr(&node, b"user.a"), Ok(value));
        }
        t.store
            .set_xattr(&node, b"user.b", b"b", XattrMode::Set)
            .unwrap();
        assert_eq!(list(t, &node), [b"user.a", b"user.b"]);
        t.store.remove_xattr(&node, b"user.a").unwrap();
        assert_eq!(list(t, &node), [b"user.b"]);
        let again = t.store.remove_xattr(&node, b"user.a");
        assert_eq!(again, Err(Errno::NODATA));
    }
}

pub(crate) fn modes(t: &Fixture) {
    needs!(t, xattrs);
    let file = t.file(&t.root(), "file", b"");
    let set = |value: &[u8], mode| t.store.set_xattr(&file, b"user.a", value, mode);
    assert_eq!(set(b"1", XattrMode::Replace), Err(Errno::NODATA));
    set(b"2", XattrMode::Create).unwrap();
    assert_eq!(set(b"3", XattrMode::Create), Err(Errno::EXIST));
    assert_eq!(t.store.get_xattr(&file, b"user.a"), Ok(b"2".to_vec()));
    set(b"4", XattrMode::Replace).unwrap();
    assert_eq!(t.store.get_xattr(&file, b"user.a"), Ok(b"4".to_vec()));
}

pub(crate) fn what_is_too_long(t: &Fixture) {
    needs!(t, xattrs);
    let file = t.file(&t.root(), "file", b"");
    let set = |name: &[u8], value: &[u8]| t.store.set_xattr(&file, name, value, XattrMode::Set);
    let longest = [b"user.".to_vec(), vec![b'x'; 250]].concat();
    set(&longest, b"value").unwrap();
    assert_eq!(list(t, &file), std::slice::from_ref(&longest));
    let longer = [&longest[..], b"x"].concat();
    assert_eq!(set(&longer, b"value"), Err(Errno::RANGE));
    assert_eq!(set(b"", b"value"), Err(Errno::RANGE));
    let with_nul = set(b"user.a\0b", b"value");
    assert!(matches!(with_nul, Err(Errno::INVAL | Errno::RANGE)));
    let value = vec![1; crate::wire::XATTR_BYTES_MAX + 1];
    assert_eq!(set(b"user.a", &value), Err(Errno::TOOBIG));
}

pub(crate) fn they_move_along(t: &Fixture) {
    needs!(t, xattrs);
    let root = t.root();
    let file = t.file(&root, "file", b"");
    t.store
        .set_xattr(&file, b"user.a", b"value", XattrMode::Set)
        .unwrap();
    let replace = RenameMode::Replace;
    t.store
        .rename(&root, &n("file"), &root, &n("moved"), replace)
        .unwrap();
    let moved = t.node(&root, "moved");
    let value = t.store.get_xattr(&moved, b"user.a");
    assert_eq!(value, Ok(b"value".to_vec()));
}

pub(crate) fn of_stores_without(t: &Fixture) {
    if t.store.capabilities().xattrs {
        println!("skipped: {} has xattrs", t.store.describe());
        return;
    }
    let file = t.file(&t.root(), "file", b"");
    let unsupported = Some(Errno::OPNOTSUPP);
    assert_eq!(t.store.get_xattr(&file, b"user.a").err(), unsupported);
    let set = t.store.set_xattr(&file, b"user.a", b"", XattrMode::Set);
    assert_eq!(set.err(), unsupported);
}
