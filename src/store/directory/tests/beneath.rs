//! Nothing outside the tree is reached, whatever is made of names, links and races.

use super::*;
use crate::wire::FileId;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

/// A tree, and beside it a directory with a file `secret`, which the tree has as well.
struct Scene {
    t: Fixture,
    tree: PathBuf,
    outside: PathBuf,
    /// The secret outside, as a client might know it.
    secret: FileId,
    _all: tempfile::TempDir,
}

fn scene() -> Scene {
    let all = tempfile::tempdir().unwrap();
    let (tree, outside) = (all.path().join("tree"), all.path().join("outside"));
    for dir in [&tree, &outside] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(outside.join("secret"), "outside").unwrap();
    let secret = Directory::open(&outside).unwrap();
    let root = Node {
        id: secret.root().unwrap().id,
        path: RelPath::root(),
    };
    Scene {
        secret: secret.lookup(&root, &n("secret")).unwrap().id,
        t: Fixture::new(Directory::open(&tree).unwrap()),
        tree,
        outside,
        _all: all,
    }
}

fn node(id: FileId, path: &str) -> Node {
    Node {
        id,
        path: RelPath::new(path).unwrap(),
    }
}

#[test]
fn symbolic_links_lead_nowhere() {
    let scene = scene();
    let (t, root) = (&scene.t, scene.t.root());
    fs::create_dir(scene.tree.join("dir")).unwrap();
    symlink("/", scene.tree.join("slash")).unwrap();
    symlink(&scene.outside, scene.tree.join("absolute")).unwrap();
    symlink("../outside", scene.tree.join("relative")).unwrap();
    symlink("../../outside", scene.tree.join("dir/deeper")).unwrap();
    symlink("relative", scene.tree.join("chain")).unwrap();
    symlink("../outside/secret", scene.tree.join("file")).unwrap();
    symlink("/proc/self/root", scene.tree.join("magic")).unwrap();
    let absolute = scene.outside.join("secret");
    let inside_magic = format!("magic{}", absolute.display());
    let paths = [
        "absolute/secret",
        "relative/secret",
        "dir/deeper/secret",
        "chain/secret",
        "file",
        &inside_magic,
    ];
    for path in paths {
        t.assert_stale(&node(scene.secret, path));
    }
    let outside = fs::metadata(&scene.outside).unwrap();
    for path in ["absolute", "relative", "dir/deeper", "chain"] {
        let found = t.store.subtree(&RelPath::new(path).unwrap()).err();
        assert_eq!(found, Some(Errno::NOTDIR), "{path}");
        let mut id = scene.secret;
        id.ino = outside.ino();
        t.assert_stale(&node(id, path));
    }
    for name in ["absolute", "relative", "chain", "file", "slash", "magic"] {
        let link = t.node(&root, name);
        assert_eq!(t.store.attr(&link).unwrap().kind, Kind::Symlink);
        let looked_up = t.store.lookup(&link, &n("secret")).err();
        assert_eq!(looked_up, Some(Errno::NOTDIR));
        let created = t.store.create(&root, &n(name), 0o600, false, by());
        assert_eq!(created.err(), Some(Errno::EXIST));
        t.store.remove(&root, &n(name), false).unwrap();
    }
    assert_eq!(fs::read(absolute).unwrap(), b"outside");
}

/// `swap` in the tree is now a directory of the tree, now a link to the one outside.
#[test]
fn races_lead_nowhere() {
    let scene = scene();
    let swap = scene.tree.join("swap");
    let aside = scene.tree.join("aside");
    fs::create_dir(&swap).unwrap();
    fs::write(swap.join("secret"), "inside").unwrap();
    symlink(&scene.outside, &aside).unwrap();
    let (t, root) = (&scene.t, scene.t.root());
    let dir = t.node(&root, "swap");
    let inside = t.node(&dir, "secret");

    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                renameat_with(CWD, &swap, CWD, &aside, RenameFlags::EXCHANGE).unwrap();
            }
        });
        // Until both states were met often. The thread above is ended by a panic here, too.
        let _end = End(&ended);
        let (mut found, mut stale) = (0, 0);
        while found < 500 || stale < 500 {
            t.assert_stale(&node(scene.secret, "swap/secret"));
            match t.store.open(&inside, Access::Write) {
                Ok(file) => {
                    found += 1;
                    assert_eq!(content(&*file), b"inside");
                    file.write_at(b"inside", 0).unwrap();
                }
                Err(error) => {
                    stale += 1;
                    assert_eq!(error, Errno::STALE);
                }
            }
            change(t, &dir, &inside);
        }
    });
    let outside: Vec<_> = fs::read_dir(&scene.outside).unwrap().collect();
    assert_eq!(outside.len(), 1);
    let secret = scene.outside.join("secret");
    assert_eq!(fs::read(&secret).unwrap(), b"outside");
    assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tries to change the directory that may have been swapped. What is made is removed again, at the
/// latest by the next call.
fn change(t: &Fixture, dir: &Node, inside: &Node) {
    let stale_or = |error: Option<Errno>, others: &[Errno]| {
        let expected = |error| error == Errno::STALE || others.contains(&error);
        assert!(error.is_none_or(expected), "{error:?}");
    };
    let made = t.store.create(dir, &n("new"), 0o600, false, by());
    stale_or(made.err(), &[]);
    let linked = t.store.link(inside, dir, &n("linked"));
    stale_or(linked.err(), &[Errno::EXIST]);
    for name in ["new", "linked"] {
        let removed = t.store.remove(dir, &n(name), false);
        stale_or(removed.err(), &[Errno::NOENT]);
    }
    match t.store.lookup(dir, &n("secret")) {
        Ok(attr) => assert_eq!(attr.id, inside.id),
        Err(error) => stale_or(Some(error), &[]),
    }
    match t.store.read_dir(dir, 0, 10) {
        Ok(entries) => {
            for entry in entries.iter().filter(|entry| entry.name == n("secret")) {
                assert_eq!(entry.attr.id, inside.id);
            }
        }
        Err(error) => stale_or(Some(error), &[]),
    }
    let mode = SetAttr {
        mode: Some(0o640),
        ..SetAttr::default()
    };
    match t.store.set_attr(inside, &mode) {
        Ok(attr) => assert_eq!(attr.id, inside.id),
        Err(error) => stale_or(Some(error), &[]),
    }
}
