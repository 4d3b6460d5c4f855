//! An ordinary user serves and mounts, and root serves to one. As root the tests become the user
//! `daemon`; otherwise the user who runs them is one.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::{Home, Mount, Serve, bash, complaint, is_root, run, skip};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// User and group `daemon` of Debian.
const ID: u32 = 1;

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

/// A home that belongs to the ordinary user.
fn home() -> Home {
    let mut home = Home::new();
    for folder in ["", "mnt", "served"] {
        home.folder(folder);
        fs::set_permissions(home.path(folder), Permissions::from_mode(0o755)).unwrap();
    }
    if is_root() {
        home.belongs_to(ID);
    }
    home
}

#[test]
fn an_ordinary_user_serves_and_mounts() {
    let home = home();
    let served = home.path("served");
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    shell(
        mount.point(),
        "echo text >file && mkdir dir && mv file dir && chmod 600 dir/file && ln -s dir/file link
         test \"$(cat link)\" = text && test -O link && test -G dir
         cp /bin/echo . && test \"$(./echo runs)\" = runs",
    );
    assert_eq!(
        fs::read_to_string(served.join("dir/file")).unwrap(),
        "text\n"
    );
    if is_root() {
        assert_eq!(fs::metadata(served.join("dir/file")).unwrap().uid(), ID);
        // Nobody else gets in, not even root, unless they were let in.
        let other = fs::read_dir(mount.point()).unwrap_err();
        assert_eq!(other.kind(), std::io::ErrorKind::PermissionDenied);
    }
    mount.unmount();
}

#[test]
fn nobody_mounts_over_what_is_not_theirs() {
    let test = "nobody_mounts_over_what_is_not_theirs";
    if !is_root() {
        return skip(test, "only root can make a directory of another user");
    }
    let home = home();
    let serve = Serve::start(&home, home.path("served"));
    let point = home.folder("of-root");
    let mut command = Mount::command(&home, &serve.source(), &point, &[]);
    let said = complaint(&mut command, 1);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("of-root"), "{said}");
}

#[test]
fn what_root_serves_is_shown_as_the_users_own() {
    let test = "what_root_serves_is_shown_as_the_users_own";
    if !is_root() {
        return skip(test, "only root can serve as root");
    }
    let (of_root, of_user) = (Home::new(), home());
    let served = of_root.folder("served");
    fs::write(served.join("of-root"), "root's").unwrap();
    fs::write(served.join("of-other"), "other's").unwrap();
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
    assert_eq!(
        fs::read_to_string(served.join("of-root")).unwrap(),
        "root'smore\n"
    );
    mount.unmount();

    // Root's own mount shows owners as they are, and lets others in if told so.
    let options = ["--allow-other"];
    let mount = Mount::with(&of_root, &serve.source(), "mnt", &options);
    let of = |name| fs::metadata(mount.path(name)).unwrap().uid();
    assert_eq!((of("of-root"), of("of-other")), (0, 33));
    fs::set_permissions(of_root.path(""), Permissions::from_mode(0o755)).unwrap();
    let seen = shell(mount.point(), "cat of-other; ! echo x >of-other");
    assert_eq!(seen, "other's");
    bash(mount.point(), "chown 1:1 new");
    assert_eq!(fs::metadata(served.join("new")).unwrap().uid(), 1);
}
