//! `--offline serve`: what is here is shown also when the lease has run out.

use crate::common::hands::Hands;
use crate::common::{Home, Mount, noise, output, run, signal, wait_until};
use crate::lab::Lab;
use crate::{MIB, hex, log, mount, serve, status_of_link, wait_until_lost};
use rustix::process::Signal;
use std::fs;
use std::path::Path;

/// Has the kernel forget what it has of the files `f` and `g`, but for what is dirty.
const FORGET: &str = "for it in (f, g): os.posix_fadvise(it, 0, 0, os.POSIX_FADV_DONTNEED)";

fn fill(served: &Path) {
    fs::create_dir(served.join("folder")).unwrap();
    fs::write(served.join("folder/one"), "one").unwrap();
    fs::write(served.join("file"), noise(MIB, 1)).unwrap();
    fs::write(served.join("absent"), noise(8 * MIB, 2)).unwrap();
    fs::write(served.join("theirs"), "before").unwrap();
    fs::write(served.join("both"), noise(100_000, 3)).unwrap();
    fs::write(served.join("conflict"), noise(100_000, 4)).unwrap();
}

/// Uses everything once, so that it is here: `f` is `file`, `m` a mapping of it, `g` is `both`.
fn use_all(hands: &mut Hands, mount: &Mount) {
    let open = |name, path, how| format!("{name} = os.open({:?}, os.{how})", mount.path(path));
    hands.make(&open("f", "file", "O_RDONLY"));
    hands.make("m = mmap.mmap(f, 0, mmap.MAP_SHARED, mmap.PROT_READ)");
    assert_eq!(hands.make("os.pread(f, 1 << 20, 0) == m[:]"), "True");
    hands.make(&open("g", "both", "O_RDWR"));
    hands.make(&open("absent", "absent", "O_RDONLY"));
    hands.make("len(os.pread(g, 100_000, 0)), len(os.pread(absent, 4096, 0))");
    for name in ["theirs", "folder/one", "conflict"] {
        fs::read(mount.path(name)).unwrap();
    }
    fs::read_dir(mount.path("folder")).unwrap().count();
}

/// What can be done without the server: never waits.
fn look(hands: &mut Hands, mount: &Mount) {
    let file = noise(MIB, 1);
    // From the kernel's pages, then from here.
    for _ in 0..2 {
        let read = hands.make("os.pread(f, 100_000, 300_000).hex()");
        assert!(read == hex(&file, 300_000, 100_000));
        let mapped = hands.make("m[700_000:800_000].hex()");
        assert!(mapped == hex(&file, 700_000, 100_000));
        hands.make("m.madvise(mmap.MADV_DONTNEED)");
        hands.make(FORGET);
    }
    hands.make("os.fstat(f).st_size");
    assert!(fs::read(mount.path("file")).unwrap() == file);
    assert_eq!(fs::read(mount.path("folder/one")).unwrap(), b"one");
    assert_eq!(fs::read(mount.path("theirs")).unwrap(), b"before");
    let folder = fs::read_dir(mount.path("folder")).unwrap();
    let names: Vec<_> = folder.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["one"]);
    let absent = fs::metadata(mount.path("absent")).unwrap();
    assert_eq!(absent.len(), 8 * MIB as u64);
    let none = fs::metadata(mount.path("folder/one/none")).unwrap_err();
    assert_eq!(none.kind(), std::io::ErrorKind::NotADirectory);
}

#[test]
fn what_is_here_is_served_while_the_link_is_lost() {
    let test = "what_is_here_is_served_while_the_link_is_lost";
    let Some(lab) = Lab::new(test) else { return };
    let home = Home::new();
    let served = home.folder("served");
    fill(&served);
    let serve = serve(&lab, &home, &served);
    let options = ["--offline", "serve", "--push-interval", "200ms"];
    let mount = mount(&lab, &home, &serve.source(), &options);
    let beside = lab.serving(|| Mount::start(&home, &serve, "beside"));
    let (Some(mut hands), Some(mut waits)) = (Hands::new(test), Hands::new(test)) else {
        return;
    };
    use_all(&mut hands, &mount);
    waits.make(&format!(
        "f = os.open({:?}, os.O_RDONLY)",
        mount.path("absent")
    ));

    let cut = lab.cut();
    wait_until_lost(&mount);
    let told = status_of_link(&home, &mount);
    assert!(told.contains("copies are used all the same"), "{told}");
    assert!(
        log(&home).contains("copies are used all the same"),
        "{}",
        log(&home)
    );
    look(&mut hands, &mount);
    hands.make("os.pwrite(g, b'mine', 0)");
    assert_eq!(hands.make("os.pread(g, 4, 0)"), "b'mine'");
    assert_eq!(hands.make("os.fstat(g).st_size"), "100000");
    hands.make("os.pwrite(g, b'longer', 100_000)");
    assert_eq!(hands.make("os.fstat(g).st_size"), "100006");
    waits.begin("os.pread(f, 4096, 4 << 20).hex()");
    // Others go on as well.
    fs::write(beside.path("theirs"), "after").unwrap();
    fs::write(beside.path("folder/two"), "two").unwrap();
    let mut theirs = fs::read(beside.path("both")).unwrap();
    theirs[50_000..50_006].copy_from_slice(b"theirs");
    fs::write(beside.path("both"), &theirs).unwrap();
    look(&mut hands, &mount);
    wait_until("what is not here is waited for", || {
        mount.status()["waiting"].as_u64() > Some(0)
    });

    cut.mend();
    assert!(waits.answer().unwrap() == hex(&noise(8 * MIB, 2), 4 * MIB, 4096));
    wait_until("what others have changed is seen", || {
        fs::read(mount.path("theirs")).unwrap() == b"after"
    });
    wait_until("what others have made is seen", || {
        fs::read_dir(mount.path("folder")).unwrap().count() == 2
    });
    hands.make("os.fsync(g)");
    // Theirs, but for the pages that were stored to: the last push of a page wins.
    theirs[..4].copy_from_slice(b"mine");
    theirs.extend_from_slice(b"longer");
    assert!(fs::read(served.join("both")).unwrap() == theirs);
    wait_until("both sides see the same", || {
        fs::read(mount.path("both")).unwrap() == theirs
    });
    drop((hands, waits));
    beside.unmount();
    mount.unmount();
    serve.stop();
}

#[test]
fn what_is_not_here_fails_with_soft_and_what_was_stored_is_kept() {
    let test = "what_is_not_here_fails_with_soft_and_what_was_stored_is_kept";
    let Some(lab) = Lab::new(test) else { return };
    let home = Home::new();
    let served = home.folder("served");
    fill(&served);
    let serve = serve(&lab, &home, &served);
    let options = ["--offline=serve", "--soft=1s"];
    let first = mount(&lab, &home, &serve.source(), &options);
    let Some(mut hands) = Hands::new(test) else {
        return;
    };
    use_all(&mut hands, &first);
    let cut = lab.cut();
    wait_until_lost(&first);
    look(&mut hands, &first);
    hands.make(&format!(
        "h = os.open({:?}, os.O_RDWR)",
        first.path("conflict")
    ));
    hands.make("os.pwrite(h, b'ours', 50_000)");
    for code in ["os.pread(absent, 4096, 4 << 20)", "os.fsync(h)"] {
        assert_eq!(hands.try_do(code), Err("EIO".into()), "{code}");
    }
    look(&mut hands, &first);

    // The mount's process dies, and the file is another one when the link is back.
    fs::write(served.join("conflict"), noise(100_000, 5)).unwrap();
    signal(first.pid(), Signal::KILL);
    let _ = output(home.memfs(["umount", "--force"]).arg(first.leave()));
    drop(hands);
    cut.mend();
    let second = mount(&lab, &home, &serve.source(), &options);
    assert!(fs::read(second.path("conflict")).unwrap() == noise(100_000, 5));
    let conflicts = run(home.memfs(["conflicts"]).arg(second.point()));
    assert!(conflicts.contains("conflict"), "{conflicts:?}");
    second.unmount();
    serve.stop();
}
