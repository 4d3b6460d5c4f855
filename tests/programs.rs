//! Programs that people use, on a mount: each does its work there, and what it leaves is checked on the
//! served side, where memfs has no hand in it.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::{Home, Mount, Serve, bash, has, noise, python, run};
use std::fs;
use std::process::Command;

/// A served folder, and a mount of it.
macro_rules! mounted {
    ($home:ident, $served:ident, $mount:ident) => {
        let $home = Home::new();
        let $served = $home.folder("served");
        let serve = Serve::start(&$home, &$served);
        let $mount = Mount::start(&$home, &serve, "mnt");
    };
}

#[test]
fn git() {
    if !has("git", "git") {
        return;
    }
    mounted!(home, served, mount);
    let identity = "export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org
        export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org\n";
    bash(
        &home.folder("origin"),
        &format!(
            "{identity}
             git init -q -b main
             for n in $(seq 200); do mkdir -p d$((n % 7)); seq $n 1000 >d$((n % 7))/f$n; done
             git add . && git commit -qm first
             for n in $(seq 20); do echo $n >>d1/f1; git commit -qam change-$n; done"
        ),
    );
    bash(
        mount.point(),
        &format!(
            "{identity}
             git clone -q ../origin clone
             cd clone
             test -z \"$(git status --porcelain)\"
             echo edited >>d2/f2 && git rm -q d3/f3 && git mv d4/f4 moved
             git commit -qam edited
             git checkout -qb branch HEAD~5 && git checkout -q main
             git gc -q --prune=now && git fsck --strict
             test -z \"$(git status --porcelain)\""
        ),
    );
    mount.unmount();
    bash(
        &served.join("clone"),
        &format!(
            "{identity}
             git fsck --strict
             test \"$(git rev-list --count main)\" = 22
             test -z \"$(git status --porcelain)\""
        ),
    );
}

/// Fills a database given as the first argument, with the pragmas in the second.
const SQLITE: &str = r#"
import sqlite3, sys
path, pragmas = sys.argv[1:]
def connect():
    connection = sqlite3.connect(path)
    for pragma in pragmas.split(";"):
        print(connection.execute("PRAGMA " + pragma).fetchone())
    return connection
writer, reader = connect(), connect()
writer.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
for batch in range(50):
    rows = [(n, bytes([n % 251]) * (n % 700)) for n in range(batch * 200, batch * 200 + 200)]
    with writer:
        writer.executemany("INSERT INTO t VALUES (?, ?)", rows)
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (len(rows) * (batch + 1),)
with writer:
    writer.execute("DELETE FROM t WHERE k % 3 = 0")
    writer.execute("UPDATE t SET v = zeroblob(1000) WHERE k % 5 = 0")
assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
for k, v in reader.execute("SELECT k, v FROM t"):
    assert v == (bytes(1000) if k % 5 == 0 else bytes([k % 251]) * (k % 700)), k
"#;

/// Prints what a database holds, if it is sound.
const SQLITE_CHECK: &str = r#"
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
print(*connection.execute("SELECT count(*), sum(k), sum(length(v)) FROM t").fetchone())
"#;

fn sqlite(test: &str, pragmas: &str) {
    let Some(mut python) = python(test, "sqlite3") else {
        return;
    };
    mounted!(_home, served, mount);
    run(python
        .args(["-c", SQLITE])
        .arg(mount.path("db"))
        .arg(pragmas));
    mount.unmount();
    let mut check = Command::new(python.get_program());
    let held = run(check.args(["-c", SQLITE_CHECK]).arg(served.join("db")));
    let keys = || (0..10_000u64).filter(|k| k % 3 != 0);
    let lengths = keys().map(|k| if k % 5 == 0 { 1000 } else { k % 700 });
    let sums = (keys().count(), keys().sum::<u64>(), lengths.sum::<u64>());
    assert_eq!(held, format!("{} {} {}\n", sums.0, sums.1, sums.2));
}

#[test]
fn sqlite_with_a_write_ahead_log() {
    sqlite("sqlite_with_a_write_ahead_log", "journal_mode=WAL");
}

#[test]
fn sqlite_mapped() {
    sqlite("sqlite_mapped", "mmap_size=268435456;journal_mode=DELETE");
}

#[test]
fn sqlite_mapped_with_a_write_ahead_log() {
    let pragmas = "mmap_size=268435456;journal_mode=WAL";
    sqlite("sqlite_mapped_with_a_write_ahead_log", pragmas);
}

#[test]
fn numpy_memmap() {
    let Some(mut python) = python("numpy_memmap", "numpy") else {
        return;
    };
    mounted!(home, served, mount);
    fs::write(served.join("in"), noise(32 << 20, 1)).unwrap();
    let script = r#"
import numpy, sys
there, here = sys.argv[1:]
a = numpy.memmap(here + "/in", dtype="u4", mode="r")
truth = numpy.fromfile(there + "/in", dtype="u4")
assert (a[::-1009] == truth[::-1009]).all() and int(a.sum(dtype="u8")) == int(truth.sum(dtype="u8"))
b = numpy.memmap(here + "/out", dtype="f8", mode="w+", shape=(1000, 1000))
b[:] = numpy.arange(1000)[:, None] * numpy.arange(1000)
b[500] *= -1
b.flush()
c = numpy.fromfile(there + "/out", dtype="f8").reshape(1000, 1000)
assert (c == b).all() and c[500, 3] == -1500 and c[999, 999] == 998001
r = numpy.memmap(here + "/in", dtype="u4", mode="r+")
r[12345:2345678:7] += 1
r.flush()
truth[12345:2345678:7] += 1
assert (numpy.fromfile(there + "/in", dtype="u4") == truth).all()
"#;
    run(python.args(["-c", script]).arg(&served).arg(mount.point()));
}

#[test]
fn cargo_build() {
    let cargo = env!("CARGO");
    mounted!(_home, served, mount);
    bash(
        mount.point(),
        &format!(
            "{cargo} new -q --vcs none --name small small 2>/dev/null
             cd small
             export CARGO_TARGET_DIR=$PWD/target
             echo 'fn main() {{ println!(\"{{}}\", (1..=20u64).product::<u64>()); }}' >src/main.rs
             {cargo} build -q --offline
             test \"$(target/debug/small)\" = 2432902008176640000
             echo 'pub fn twice(x: u64) -> u64 {{ 2 * x }}' >src/lib.rs
             echo 'fn main() {{ println!(\"{{}}\", small::twice(21)); }}' >src/main.rs
             {cargo} build -q --offline
             test \"$(target/debug/small)\" = 42"
        ),
    );
    mount.unmount();
    assert_eq!(
        run(&mut Command::new(served.join("small/target/debug/small"))),
        "42\n"
    );
}

#[test]
fn rsync_and_diff() {
    if !has("rsync_and_diff", "rsync") {
        return;
    }
    mounted!(home, served, mount);
    let tree = home.folder("tree");
    bash(
        &tree,
        "for n in $(seq 300); do
             mkdir -p d$((n % 11))/e$((n % 3))
             head -c $((n * 997)) /dev/urandom >d$((n % 11))/e$((n % 3))/f$n
         done
         ln -s d1/e1 link; ln d0/e2/f11 hard; chmod 600 hard; touch -d @1000000000.5 hard",
    );
    bash(
        mount.point(),
        "rsync -aHc ../tree/ copy/
         diff -r ../tree copy
         test -z \"$(rsync -aHcni ../tree/ copy/)\"
         rm -r copy/d3; for n in 1 2 3; do echo more >>copy/d1/e1/f$((n * 33 + 1)); done
         rsync -aHc --delete ../tree/ copy/",
    );
    bash(
        &served,
        "diff -r ../tree copy
         test -z \"$(rsync -aHcni ../tree/ copy/)\"",
    );
}

#[test]
fn tar_and_many_small_files() {
    mounted!(home, served, mount);
    bash(
        &home.folder("tree"),
        "for n in $(seq 2000); do echo $n >file-$n; done; tar cf ../tree.tar .",
    );
    bash(
        mount.point(),
        "tar xf ../tree.tar; test $(ls | wc -l) = 2000; tar cf ../again.tar .; diff -r ../tree .",
    );
    bash(&served, "diff -r ../tree .");
    bash(
        &home.folder("again"),
        "tar xf ../again.tar; diff -r ../tree .",
    );
}
