//! An ordinary user serves and mounts, and root serves to one. As root the tests become the user
//! `daemon`; otherwise the user who runs them is one.
//!
//! What a machine has to have for this and is no part of memfs: a place that the user gets to, and
//! `fusermount3`, set-uid root. Where only root can open `/dev/fuse`, a test runs in a view of the file
//! system where all can.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where anything fails"
)]

mod common;

use common::{Home, Mount, Serve, bash, complaint, find, has, is_root, output, run, skip};
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// User and group `daemon` of Debian.
const ID: u32 = 1;

/// Set where a test runs in a view of its own.
const VIEW: &str = "MEMFS_TEST_VIEW";
/// How making that view ends where it is not possible.
const NO_VIEW: i32 = 77;

/// A command that the ordinary user runs.
fn as_user(command: &mut Command) -> &mut Command {
    match is_root() {
        true => command.uid(ID).gid(ID),
        false => command,
    }
}

fn shell(folder: &Path, script: &str) -> String {
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", script]);
    run(as_user(&mut bash).current_dir(folder))
}

/// A home that belongs to the ordinary user; if there can be none, says that `test` is left out.
fn home(test: &str) -> Option<Home> {
    let home = Home::within_reach_of(ID).map_err(|why| skip(test, &why));
    let mut home = home.ok()?;
    for folder in ["mnt", "served"] {
        fs::set_permissions(home.folder(folder), Permissions::from_mode(0o755)).unwrap();
    }
    if is_root() {
        home.give_to(ID);
    }
    Some(home)
}

/// Runs a test where the ordinary user can mount, or says why it is left out.
fn where_users_mount(test: &str, body: impl FnOnce(Home)) {
    let Some(helper) = find(test, "fusermount3") else {
        return;
    };
    if let Err(why) = becomes_root(&helper) {
        return skip(test, &why);
    }
    let mut open = Command::new("sh");
    let open = output(as_user(open.args(["-c", ": <>/dev/fuse"])).current_dir("/"));
    let why = String::from_utf8_lossy(&open.stderr);
    match (open.status.success(), std::env::var_os(VIEW)) {
        (true, _) => {
            if let Some(home) = home(test) {
                body(home);
            }
        }
        (false, None) if is_root() => in_a_view_with_a_device_for_all(test),
        (false, _) => skip(test, &format!("/dev/fuse: {why}")),
    }
}

/// Whether a program gets the rights of root from its file.
fn becomes_root(program: &Path) -> Result<(), String> {
    let file = fs::metadata(program).unwrap();
    let (shown, nosuid) = (program.display(), rustix::fs::StatVfsMountFlags::NOSUID);
    if file.mode() & 0o4000 == 0 || file.uid() != 0 {
        return Err(format!("{shown} is not set-uid root"));
    }
    if rustix::fs::statvfs(program)
        .unwrap()
        .f_flag
        .contains(nosuid)
    {
        return Err(format!("{shown} is in a file system without set-uid"));
    }
    let process = fs::read_to_string("/proc/self/status").unwrap();
    match process.contains("NoNewPrivs:\t1") {
        true => Err("no process here can gain rights".to_owned()),
        false => Ok(()),
    }
}

/// Runs a test of this program again, where everybody can open `/dev/fuse`, as udev would have it.
fn in_a_view_with_a_device_for_all(test: &str) {
    if !has(test, "unshare") {
        return;
    }
    let room = Home::new();
    let script = format!(
        r#"{{ mount -t tmpfs -o mode=755 memfs-test "$1" && mknod -m 666 "$1/fuse" c 10 229 &&
              mount --bind "$1/fuse" /dev/fuse && : <>/dev/fuse; }} || exit {NO_VIEW}
           exec "$2" --exact "$3" --nocapture"#
    );
    let mut again = Command::new("unshare");
    again.args(["--mount", "sh", "-c", &script, "sh"]);
    again.arg(room.folder("device"));
    again.arg(std::env::current_exe().unwrap()).arg(test);
    let again = output(again.env(VIEW, "1"));
    let said = String::from_utf8_lossy(&again.stderr);
    match again.status.code() {
        Some(0) => assert!(std::io::stderr().write_all(&again.stderr).is_ok()), // what it left out
        Some(NO_VIEW) => skip(test, &format!("no /dev/fuse for user {ID}: {said}")),
        _ => panic!("{}\n{said}", String::from_utf8_lossy(&again.stdout)),
    }
}

#[test]
fn an_ordinary_user_serves_and_mounts() {
    let test = "an_ordinary_user_serves_and_mounts";
    where_users_mount(test, |home| {
        let served = home.path("served");
        let serve = Serve::start(&home, &served);
        let mount = Mount::start(&home, &serve, "mnt");
        shell(
            mount.point(),
            "echo text >file && mkdir dir && mv file dir && chmod 600 dir/file && ln -s dir/file link
             test \"$(cat link)\" = text && test -O link && test -G dir
             cp /bin/echo . && test \"$(./echo runs)\" = runs
             grep \" $PWD fuse.memfs \" /proc/mounts | grep -q \"user_id=$(id -u),\"",
        );
        let file = served.join("dir/file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "text\n");
        if is_root() {
            assert_eq!(fs::metadata(&file).unwrap().uid(), ID);
            // Nobody else gets in, not even root, unless they were let in.
            let other = fs::read_dir(mount.point()).unwrap_err();
            assert_eq!(other.kind(), std::io::ErrorKind::PermissionDenied);
        }
        mount.unmount();
        // The cache that is used where none is named is nobody else's.
        let (source, point) = (serve.source(), home.path("mnt"));
        run(home.memfs(["mount", &source]).arg(&point));
        run(home.memfs(["umount"]).arg(&point));
        if !is_root() {
            return;
        }
        let cache = fs::metadata(home.path("home/.cache/memfs")).unwrap();
        assert_eq!((cache.uid(), cache.mode() & 0o777), (ID, 0o700));
    });
}

#[test]
fn nobody_mounts_over_what_is_not_theirs() {
    let test = "nobody_mounts_over_what_is_not_theirs";
    if !is_root() {
        return skip(test, "only root can make a directory of another user");
    }
    where_users_mount(test, |home| {
        let serve = Serve::start(&home, home.path("served"));
        let point = home.folder("of-root");
        fs::set_permissions(&point, Permissions::from_mode(0o755)).unwrap();
        let mut command = Mount::command(&home, &serve.source(), &point, &[]);
        let said = complaint(&mut command, 1);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("of-root"), "{said}");
    });
}

#[test]
fn who_lets_others_in_has_to_be_allowed_to() {
    let test = "who_lets_others_in_has_to_be_allowed_to";
    let allowed = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let allowed = allowed
        .lines()
        .any(|line| line.trim() == "user_allow_other");
    where_users_mount(test, |home| {
        let serve = Serve::start(&home, home.path("served"));
        if allowed {
            Mount::with(&home, &serve.source(), "mnt", &["--allow-other"]).unmount();
            return;
        }
        let (source, point) = (serve.source(), home.path("mnt"));
        let mut command = Mount::command(&home, &source, &point, &["--allow-other"]);
        let said = complaint(&mut command, 1);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("allow_other"), "{said}");
    });
}

#[test]
fn what_root_serves_is_shown_as_the_users_own() {
    let test = "what_root_serves_is_shown_as_the_users_own";
    if !is_root() {
        return skip(test, "only root can serve as root");
    }
    where_users_mount(test, |of_user| {
        let of_root = Home::within_reach_of(ID).unwrap();
        let served = of_root.folder("served");
        fs::write(served.join("of-root"), "root's").unwrap();
        fs::write(served.join("of-other"), "other's").unwrap();
        for (path, mode) in [("", 0o755), ("of-root", 0o644), ("of-other", 0o644)] {
            fs::set_permissions(served.join(path), Permissions::from_mode(mode)).unwrap();
        }
        chown(served.join("of-other"), Some(33), Some(33)).unwrap();
        let key = run(&mut of_user.memfs(["key"]));
        run(of_root.memfs(["key", "authorize"]).arg(key.trim()));
        let serve = Serve::start(&of_root, &served);
        let options = ["--server-key", &serve.key];
        let mount = Mount::with(&of_user, &serve.source(), "mnt", &options);
        shell(
            mount.point(),
            "test -O of-root && test \"$(stat -c %u of-other)\" = 33
             echo more >>of-root && echo mine >new && chmod 640 new && test -O new",
        );
        let new = fs::metadata(served.join("new")).unwrap();
        assert_eq!((new.uid(), new.gid(), new.mode() & 0o777), (0, 0, 0o640));
        let changed = fs::read_to_string(served.join("of-root")).unwrap();
        assert_eq!(changed, "root'smore\n");
        mount.unmount();
        roots_own_mount(&of_root, &serve, &served);
    });
}

/// Root's own mount shows owners as they are, and lets others in if told so.
fn roots_own_mount(home: &Home, serve: &Serve, served: &Path) {
    let mount = Mount::with(home, &serve.source(), "mnt", &["--allow-other"]);
    let of = |name| fs::metadata(mount.path(name)).unwrap().uid();
    assert_eq!((of("of-root"), of("of-other")), (0, 33));
    let seen = shell(mount.point(), "cat of-other; ! echo x >of-other");
    assert_eq!(seen, "other's");
    bash(mount.point(), "chown 1:1 new");
    assert_eq!(fs::metadata(served.join("new")).unwrap().uid(), 1);
    drop(File::create(mount.path("made")).unwrap());
    assert_eq!(of("made"), 0);
}
