//! Links that are cut, and machines that come back elsewhere: real mounts between network namespaces.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;
#[path = "links/lab.rs"]
mod lab;
#[path = "links/offline.rs"]
mod offline;
#[path = "links/over_ssh.rs"]
mod over_ssh;
#[path = "links/suspended.rs"]
mod suspended;

use common::hands::Hands;
use common::{Home, Mount, Serve, noise, run, wait_until};
use lab::{Lab, SERVER};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A server on the serving machine that says in its log who comes and goes.
fn serve(lab: &Lab, home: &Home, served: &Path) -> Serve {
    lab.serving(|| Serve::start_at(home, served, &format!("{SERVER}:0"), &["-v"]))
}

/// Where a mount writes what happens.
fn log_file(home: &Home) -> PathBuf {
    home.path("log")
}

/// What has happened so far.
fn log(home: &Home) -> String {
    fs::read_to_string(log_file(home)).unwrap()
}

/// A mount on the mounting machine that brings only what is asked for.
fn mount<'a>(lab: &Lab, home: &'a Home, source: &str, options: &[&str]) -> Mount<'a> {
    let log = log_file(home);
    let mut all = vec!["--pull", "demand", "--log", log.to_str().unwrap()];
    all.extend(options);
    lab.mounting(|| Mount::with(home, source, "mnt", &all))
}

/// Waits until the link is lost, and the lease as well.
fn wait_until_lost(mount: &Mount) {
    wait_until("the link is lost", || mount.status()["link"] == "lost");
}

/// What `memfs status` says to people of the link.
fn status_of_link(home: &Home, mount: &Mount) -> String {
    let text = run(home.memfs(["status"]).arg(mount.point()));
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("link")).unwrap().into()
}

/// A part of a file as [`Hands`] print `os.pread(…).hex()`.
fn hex(file: &[u8], start: usize, len: usize) -> String {
    let digits = file[start..][..len]
        .iter()
        .map(|byte| format!("{byte:02x}"));
    format!("'{}'", digits.collect::<String>())
}

const MIB: usize = 1 << 20;

/// The link is lost, and that is told everywhere; since when, in seconds since 1970.
fn is_told_as_lost(home: &Home, mount: &Mount) -> u64 {
    let status = mount.status();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let since = status["link_since"].as_u64().unwrap();
    assert!(
        (now.as_secs() - 120..=now.as_secs()).contains(&since),
        "{status}"
    );
    let told = status_of_link(home, mount);
    assert!(
        told.contains("lost") && told.contains("ago, waiting for it"),
        "{told}"
    );
    let said = log(home);
    assert!(
        said.contains("link lost") && said.contains("the lease has run out"),
        "{said}"
    );
    assert!(!said.contains("link is up again"), "{said}");
    since
}

#[test]
fn a_cut_link_costs_no_error() {
    let test = "a_cut_link_costs_no_error";
    let Some(lab) = Lab::new(test) else { return };
    let home = Home::new();
    let served = home.folder("served");
    let (large, mut stored) = (noise(16 * MIB, 1), noise(MIB, 2));
    fs::write(served.join("large"), &large).unwrap();
    fs::write(served.join("stored"), &stored).unwrap();
    fs::write(served.join("theirs"), "before").unwrap();
    let serve = serve(&lab, &home, &served);
    let mount = mount(&lab, &home, &serve.source(), &[]);
    let beside = lab.serving(|| Mount::start(&home, &serve, "beside"));
    assert_eq!(fs::read(mount.path("theirs")).unwrap(), b"before");
    let hands = || Hands::new(test);
    let (Some(mut reader), Some(mut mapper), Some(mut writer), Some(mut late)) =
        (hands(), hands(), hands(), hands())
    else {
        return;
    };
    for hands in [&mut reader, &mut mapper, &mut late] {
        hands.make(&format!(
            "f = os.open({:?}, os.O_RDONLY)",
            mount.path("large")
        ));
        assert_eq!(
            hands.make("os.pread(f, 4096, 0).hex()"),
            hex(&large, 0, 4096)
        );
    }
    mapper.make("m = mmap.mmap(f, 0, mmap.MAP_SHARED, mmap.PROT_READ)");
    writer.make(&format!(
        "f = os.open({:?}, os.O_RDWR)",
        mount.path("stored")
    ));
    writer.make("m = mmap.mmap(f, 0)");
    assert_eq!(writer.make("len(os.pread(f, 1 << 20, 0))"), "1048576");
    // Before the first store the kernel asks for something.
    writer.make("os.pwrite(f, os.pread(f, 1, 0), 0)");

    let cut = lab.cut();
    reader.begin("os.pread(f, 100_000, 10 << 20).hex()");
    mapper.begin("m[12 << 20:(12 << 20) + 100_000].hex()");
    writer.make("os.pwrite(f, b'by write', 5000)");
    writer.make("m[500_000:500_010] = b'by mapping'");
    stored[5000..5008].copy_from_slice(b"by write");
    stored[500_000..500_010].copy_from_slice(b"by mapping");
    writer.begin("os.fsync(f)");
    wait_until_lost(&mount);
    // The lease is gone: what is present is not shown either.
    late.begin("os.pread(f, 4096, 0).hex()");
    wait_until("all of them wait", || {
        mount.status()["waiting"].as_u64() >= Some(4)
    });
    let since = is_told_as_lost(&home, &mount);
    // QUIC's idle timeout passes at the server, then a change of somebody else's: the session is not there any more.
    wait_until("the server has given the connection up", || {
        home.logs().contains("a replica is away")
    });
    fs::write(beside.path("theirs"), "after").unwrap();

    cut.mend();
    let mended = Instant::now();
    assert!(reader.answer().unwrap() == hex(&large, 10 * MIB, 100_000));
    println!("found again after {:.1?}", mended.elapsed());
    assert!(mapper.answer().unwrap() == hex(&large, 12 * MIB, 100_000));
    assert!(late.answer().unwrap() == hex(&large, 0, 4096));
    assert_eq!(writer.answer(), Ok("None".into()));
    assert!(fs::read(served.join("stored")).unwrap() == stored);
    assert!(fs::read(mount.path("stored")).unwrap() == stored);
    assert!(fs::read(mount.path("large")).unwrap() == large);
    assert_eq!(fs::read(mount.path("theirs")).unwrap(), b"after");
    let status = mount.status();
    assert_eq!(status["link"], "up");
    assert!(status["link_since"].as_u64().unwrap() > since, "{status}");
    assert!(status_of_link(&home, &mount).contains("up"));
    assert!(
        log(&home).contains("link is up again after"),
        "{}",
        log(&home)
    );
    drop((reader, mapper, writer, late));
    beside.unmount();
    mount.unmount();
    serve.stop();
}

#[test]
fn a_short_cut_keeps_the_session() {
    let test = "a_short_cut_keeps_the_session";
    let Some(lab) = Lab::new(test) else { return };
    let home = Home::new();
    let served = home.folder("served");
    let large = noise(16 * MIB, 1);
    fs::write(served.join("large"), &large).unwrap();
    let serve = serve(&lab, &home, &served);
    let mount = mount(&lab, &home, &serve.source(), &["--soft", "1"]);
    let Some(mut hands) = Hands::new(test) else {
        return;
    };
    hands.make(&format!(
        "f = os.open({:?}, os.O_RDWR)",
        mount.path("large")
    ));
    hands.make("len(os.pread(f, 4096, 0))");
    hands.make("os.pwrite(f, os.pread(f, 1, 0), 0)");
    let cut = lab.cut();
    // What is here is here: the lease is still in force.
    hands.make("os.pwrite(f, b'meanwhile', 1000)");
    for code in ["os.pread(f, 4096, 8 << 20)", "os.fsync(f)"] {
        assert_eq!(hands.try_do(code), Err("EIO".into()), "{code}");
    }
    assert_eq!(hands.make("os.pread(f, 9, 1000)"), "b'meanwhile'");
    assert_ne!(mount.status()["link"], "lost");
    cut.mend();
    let mended = Instant::now();
    wait_until("it is read", || {
        hands.try_do("os.pread(f, 4096, 8 << 20)").is_ok()
    });
    println!("works again after {:.1?}", mended.elapsed());
    assert_eq!(
        hands.make("os.pread(f, 4096, 8 << 20).hex()"),
        hex(&large, 8 * MIB, 4096)
    );
    wait_until("it is synced", || hands.try_do("os.fsync(f)").is_ok());
    let there = fs::read(served.join("large")).unwrap();
    assert_eq!(&there[1000..1009], b"meanwhile");
    assert!(there[1009..] == large[1009..]);
    drop(hands);
    mount.unmount();
    serve.stop();
}

/// Reads what is absent and stores with fsync, again and again, while `change` is made; how soon it goes on then.
fn works_through(mount: &Mount, test: &str, round: usize, what: &str, change: impl FnOnce()) {
    let (Some(mut reader), Some(mut writer)) = (Hands::new(test), Hands::new(test)) else {
        return;
    };
    reader.make("import time");
    reader.make(&format!(
        "f = os.open({:?}, os.O_RDONLY)",
        mount.path("large")
    ));
    writer.make(&format!(
        "f = os.open({:?}, os.O_RDWR)",
        mount.path("stored")
    ));
    let out = mount.path("").with_file_name("read");
    let start = round * 8 * MIB;
    reader.begin(&format!(
        "with open({out:?}, 'wb') as out:
    for n in range(40):
        out.write(os.pread(f, 200_000, {start} + n * 200_000))
        time.sleep(0.02)"
    ));
    writer.begin(&format!(
        "for n in range(40):
    os.pwrite(f, b'%d %d' % ({round}, n), n * 20_000)
    os.fsync(f)"
    ));
    wait_until("they are at it", || {
        fs::metadata(&out).is_ok_and(|out| out.len() > 400_000)
    });
    change();
    let changed = Instant::now();
    assert_eq!(reader.answer(), Ok(String::new()));
    assert_eq!(writer.answer(), Ok(String::new()));
    // The rest of both took about a second by itself.
    println!("{what}: both were done after {:.1?}", changed.elapsed());
    reader.make(&format!("os.pread(f, 4096, {start} + (8 << 20) - 4096)"));
}

#[test]
fn a_mount_outlives_another_address_and_another_interface() {
    let test = "a_mount_outlives_another_address_and_another_interface";
    let Some(lab) = Lab::new(test) else { return };
    let home = Home::new();
    let served = home.folder("served");
    let (large, mut stored) = (noise(16 * MIB, 1), noise(MIB, 2));
    fs::write(served.join("large"), &large).unwrap();
    fs::write(served.join("stored"), &stored).unwrap();
    let serve = serve(&lab, &home, &served);
    let mount = mount(&lab, &home, &serve.source(), &[]);
    let read = home.path("read");
    let check = |round: usize, stored: &mut Vec<u8>| {
        let start = round * 8 * MIB;
        assert!(fs::read(&read).unwrap() == large[start..start + 8_000_000]);
        for n in 0..40 {
            let bytes = format!("{round} {n}");
            stored[n * 20_000..][..bytes.len()].copy_from_slice(bytes.as_bytes());
        }
        assert!(fs::read(served.join("stored")).unwrap() == *stored);
        fs::remove_file(&read).unwrap();
    };
    works_through(&mount, test, 0, "another address", || lab.change_address());
    if !read.exists() {
        return; // said already why
    }
    check(0, &mut stored);
    // It never was gone.
    assert!(!log(&home).contains("link lost"), "{}", log(&home));
    works_through(&mount, test, 1, "another interface", || {
        lab.remove_interface();
        lab.add_interface();
    });
    check(1, &mut stored);
    assert!(fs::read(mount.path("large")).unwrap() == large);
    assert_eq!(mount.status()["link"], "up");
    mount.unmount();
    serve.stop();
}
