//! A tree served by an ordinary user: the whole suite, and what root cannot show. These run in
//! threads that give up root's rights for good.

use super::*;
use rustix::fs::{Gid, Uid};
use std::os::unix::fs::{PermissionsExt, chown};

/// `nobody` and `nogroup`.
const NOBODY: u32 = 65_534;

/// Runs as nobody, with a tree of nobody's and where it is; or prints a skip if that needs root.
fn as_nobody(run: impl FnOnce(&Fixture, PathBuf) + Send) {
    if !is_root() {
        println!("skipped: not root, so that all tests are run by an ordinary user");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    let give_up_and_run = || {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        assert!(!is_root());
        let t = Fixture::new(Directory::open(&path).unwrap());
        run(&t, path);
    };
    std::thread::scope(|scope| scope.spawn(give_up_and_run).join()).unwrap();
}

fn run_case(case: fn(&Fixture)) {
    as_nobody(|t, _| case(t));
}
conformance::suite!(run by run_case);

#[test]
fn owners_are_those_of_the_server() {
    as_nobody(|t, _| {
        assert!(!t.store.capabilities().owners);
        let other = Caller { uid: 1, gid: 1 };
        let makes = [Make::File, Make::Directory, Make::Fifo];
        for make in makes {
            let name = n(&format!("{make:?}"));
            let made = t.store.make(&t.root(), &name, &make, 0o4751, other);
            let attr = made.unwrap();
            assert_eq!((attr.uid, attr.gid), (NOBODY, NOBODY));
            assert_eq!(attr.mode, 0o4751);
        }
    });
}

#[test]
fn permissions_of_the_server_hold() {
    as_nobody(|t, path| {
        let root = t.root();
        let file = t.file(&root, "file", b"content");
        let mode = |mode| SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        t.store.set_attr(&file, &mode(0)).unwrap();
        for access in [Access::Read, Access::Write] {
            assert_eq!(t.store.open(&file, access).err(), Some(Errno::ACCESS));
        }
        t.store.set_attr(&file, &mode(0o200)).unwrap();
        let writable = t.open(&file);
        writable.write_at(b"C", 0).unwrap();
        assert_eq!(writable.read_at(&mut [0], 0), Err(Errno::ACCESS));
        t.store.set_attr(&file, &mode(0o400)).unwrap();
        let refused = t.store.open(&file, Access::Write);
        assert_eq!(refused.err(), Some(Errno::ACCESS));
        assert_eq!(t.content(&file), b"Content");

        let dir = t.dir(&root, "dir");
        t.file(&dir, "below", b"");
        t.store.set_attr(&dir, &mode(0o600)).unwrap();
        let refused = Some(Errno::ACCESS);
        assert_eq!(t.store.lookup(&dir, &n("below")).err(), refused);
        assert_eq!(t.store.read_dir(&dir, 0, 10).err(), refused);
        t.store.set_attr(&dir, &mode(0o500)).unwrap();
        assert_eq!(t.store.remove(&dir, &n("below"), false).err(), refused);
        let made = t.store.make(&dir, &n("x"), &Make::File, 0o600, by());
        assert_eq!(made.err(), refused);
        fs::set_permissions(path.join("dir"), fs::Permissions::from_mode(0o700)).unwrap();
    });
}

#[test]
fn files_of_others_are_not_ours_to_change() {
    as_nobody(|_, _| {
        let store = Directory::open("/etc".as_ref()).unwrap();
        let root = Node {
            id: store.root().unwrap().id,
            path: RelPath::root(),
        };
        let attr = store.lookup(&root, &n("passwd")).unwrap();
        let node = Node {
            id: attr.id,
            path: RelPath::new("passwd").unwrap(),
        };
        let owned = |uid, gid| SetAttr {
            uid: Some(uid),
            gid: Some(gid),
            ..SetAttr::default()
        };
        let same = store.set_attr(&node, &owned(attr.uid, attr.gid));
        assert_eq!(same, Ok(attr), "changed to what it is");
        let changed = store.set_attr(&node, &owned(NOBODY, NOBODY));
        assert_eq!(changed.err(), Some(Errno::PERM));
        let opened = store.open(&node, Access::Write);
        assert_eq!(opened.err(), Some(Errno::ACCESS));
        let removed = store.remove(&root, &n("passwd"), false);
        assert_eq!(removed, Err(Errno::ACCESS));
    });
}
