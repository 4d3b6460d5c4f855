//! Suites that others wrote for file systems, run on a mount: fsx (every read is checked against what
//! was written, by calls and through mappings) and pjdfstest (what POSIX asks of names and attributes).
//!
//! `scripts/test` installs both. `MEMFS_FSX_OPS` sets the operations of each run of fsx.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::{Home, Mount, Serve, has, is_root, output, run, skip};
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// Operations of a run, unless `MEMFS_FSX_OPS` says otherwise.
const FSX_OPS: &str = "20000";
/// Operations that one process of fsx makes.
const FSX_SLICE_OPS: usize = 25_000;

/// User and group `daemon` of Debian.
const DAEMON: u32 = 1;

/// Runs fsx on a mount; then the served file has to be what the mount showed.
fn fsx(seed: u64, config: &str) {
    if !has(&format!("fsx with seed {seed}"), "fsx") {
        return;
    }
    let home = Home::in_memory();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let options = ["--push-interval", "50ms"]; // many pushes beside what fsx itself waits for
    let mount = Mount::with(&home, &serve.source(), "mnt", &options);
    let ops = std::env::var("MEMFS_FSX_OPS").unwrap_or_else(|_| FSX_OPS.to_owned());
    fs::write(home.path("fsx.toml"), config).unwrap();
    let ops: u64 = ops.parse().unwrap();
    // The fsx crate never unmaps what it reads through a mapping: one process runs into
    // vm.max_map_count, and is slow long before. Each slice goes on where the one before ended.
    for first in (1..=ops).step_by(FSX_SLICE_OPS) {
        let last = ops.min(first + FSX_SLICE_OPS as u64 - 1);
        let mut fsx = Command::new("fsx");
        fsx.args(["-S", &seed.to_string(), "-b", &first.to_string()]);
        fsx.args(["-N", &last.to_string()]);
        fsx.arg("-P").arg(home.path("logs"));
        fsx.arg("-f").arg(home.path("fsx.toml"));
        run(fsx.arg(mount.path("file")));
    }
    let shown = fs::read(mount.path("file")).unwrap();
    mount.unmount();
    assert!(fs::read(served.join("file")).unwrap() == shown);
}

#[test]
fn fsx_default_mix_seed_1() {
    fsx(1, "");
}

#[test]
fn fsx_default_mix_seed_2() {
    fsx(2, "");
}

#[test]
fn fsx_default_mix_seed_3() {
    fsx(3, "");
}

/// Everything fsx knows, stores through mappings left to themselves.
#[test]
fn fsx_every_operation() {
    let config = "nomsyncafterwrite = true
        [weights]
        close_open = 1
        read = 10
        write = 10
        mapread = 10
        mapwrite = 10
        invalidate = 1
        truncate = 2
        fsync = 1
        fdatasync = 1
        posix_fallocate = 2
        punch_hole = 2
        sendfile = 2
        posix_fadvise = 1
        copy_file_range = 2";
    fsx(4, config);
}

/// Names in the first column of the table in `tests/pjdfstest.md`.
fn expected_failures() -> BTreeSet<String> {
    let table = include_str!("pjdfstest.md").lines();
    let names = table.filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    names.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn pjdfstest() {
    if !is_root() {
        return skip("pjdfstest", "it needs root");
    }
    if !has("pjdfstest", "pjdfstest") || !has("pjdfstest", "unshare") {
        return;
    }
    // The suite becomes other users as well.
    let home = match Home::within_reach_of(DAEMON) {
        Ok(home) => home,
        Err(why) => return skip("pjdfstest", &why),
    };
    fs::set_permissions(home.folder("mnt"), Permissions::from_mode(0o755)).unwrap();
    let helpers = home.mount_helpers();
    let serve = Serve::start(&home, home.folder("served"));
    let options = ["--allow-other", "-o", "suid,dev"];
    let mount = Mount::with(&home, &serve.source(), "mnt", &options);
    let suite = |remounts: bool, pattern: &str| -> String {
        let config = format!(
            "features = {{ posix_fallocate = {{}}, rename_ctime = {{}}, utime_now = {{}}, utimensat = {{}} }}
            settings = {{ naptime = 0.02, allow_remount = {remounts} }}
            dummy_auth = {{ entries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]] }}"
        );
        let file = home.path("pjdfstest.toml");
        fs::write(&file, config).unwrap();
        // Where the mount(8) that the suite calls for remounts finds us.
        let sbin = "mount --bind \"$0\" \"$(readlink -f /sbin)\" && exec pjdfstest \"$@\"";
        let mut suite = Command::new("unshare");
        suite.args(["--mount", "sh", "-c", sbin]).arg(&helpers);
        suite.arg("-c").arg(file).arg("-p").arg(mount.point());
        let output = output(suite.args(["-s", "/dev/shm", pattern]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // What remounts runs by itself: other tests of the suite leave files open in its process, and then
    // nothing can become read-only.
    let said = suite(true, "erofs") + &suite(false, "");

    let with = |result: &str| -> BTreeSet<String> {
        let lines = said.lines().filter_map(|line| line.strip_suffix(result));
        lines.map(|name| name.trim().to_owned()).collect()
    };
    let (passed, failed, skipped) = (with(" ok"), with(" FAILED"), with(" skipped"));
    let skipped = &skipped - &passed;
    assert!(passed.len() > 300, "only {} passed: {said}", passed.len());
    let failed = &failed | &skipped;
    let expected = expected_failures();
    let news: Vec<_> = failed.difference(&expected).collect();
    assert!(news.is_empty(), "fails: {news:#?}\n{said}");
    let holds: Vec<_> = expected.difference(&failed).collect();
    assert!(
        holds.is_empty(),
        "holds now, take it out of the table: {holds:#?}"
    );
}
