//! Locks between mounts: `flock(2)` and `fcntl(2)` of programs on two mounts of one folder.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::hands::Hands;
use common::relay::Relay;
use common::{Home, Mount, Serve, run, signal, wait_until};
use rustix::process::Signal;
use std::fs;

/// What the programs need: `lock` and the like take first byte and length of a range of `f`.
const TOOLS: &str = r#"
import fcntl, struct
def lock(kind, start=0, length=0, wait=False):
    how = fcntl.F_SETLKW if wait else fcntl.F_SETLK
    kinds = {"shared": fcntl.F_RDLCK, "exclusive": fcntl.F_WRLCK, "none": fcntl.F_UNLCK}
    fcntl.fcntl(f, how, struct.pack("hhqqi4x", kinds[kind], 0, start, length, 0))
def holder(start=0, length=0, kind=fcntl.F_WRLCK):
    asked = struct.pack("hhqqi4x", kind, 0, start, length, 0)
    kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(f, fcntl.F_GETLK, asked))
    return {fcntl.F_RDLCK: "shared", fcntl.F_WRLCK: "exclusive", fcntl.F_UNLCK: "none"}[kind], start, length, pid
def flock(how):
    fcntl.flock(f, how)
EX, SH, NB, UN = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_NB, fcntl.LOCK_UN
def open_file():
    global f
    f = os.open(path, os.O_RDWR)
"#;

/// A program on a mount, with `file` open.
fn hands(test: &str, mount: &Mount) -> Option<Hands> {
    let mut hands = Hands::new(test)?;
    hands.make(TOOLS);
    hands.make(&format!("path = {:?}", mount.path("file")));
    hands.make("open_file()");
    Some(hands)
}

/// A server, two mounts of it, and a program on each.
macro_rules! two {
    ($test:ident: $home:ident, $serve:ident, $a:ident, $b:ident, $hands_a:ident, $hands_b:ident) => {
        let $home = Home::new();
        let served = $home.folder("served");
        fs::write(served.join("file"), vec![0; 8192]).unwrap();
        let $serve = Serve::start(&$home, &served);
        let ($a, $b) = (
            Mount::start(&$home, &$serve, "a"),
            Mount::start(&$home, &$serve, "b"),
        );
        let (Some(mut $hands_a), Some(mut $hands_b)) = (hands($test, &$a), hands($test, &$b))
        else {
            return;
        };
    };
}

#[track_caller]
fn is_busy(hands: &mut Hands, code: &str) {
    assert_eq!(hands.try_do(code), Err("EAGAIN".into()), "{code}");
}

#[test]
fn ranges_exclude_each_other() {
    let test = "ranges_exclude_each_other";
    two!(test: _home, _serve, _a, _b, x, y);
    x.make("lock('exclusive', 10, 10)");
    is_busy(&mut y, "lock('exclusive', 19, 1)");
    is_busy(&mut y, "lock('shared', 0, 0)");
    y.make("lock('exclusive', 20, 5)");
    y.make("lock('shared', 0, 10)");
    x.make("lock('shared', 0, 10)");
    is_busy(&mut x, "lock('exclusive', 5, 1)");
    // Split in two, the middle free; then joined again.
    x.make("lock('none', 14, 2)");
    y.make("lock('exclusive', 14, 2)");
    is_busy(&mut y, "lock('exclusive', 13, 1)");
    is_busy(&mut x, "lock('exclusive', 10, 10)");
    y.make("lock('none', 14, 2)");
    x.make("lock('exclusive', 10, 10)");
    let pid = x.make("os.getpid()");
    let expected = format!("('exclusive', 10, 10, {pid})");
    assert_eq!(y.make("holder(12, 100)"), expected);
    assert_eq!(y.make("holder(25)"), "('none', 25, 0, 0)");
    assert_eq!(
        x.make("holder(0, 5, fcntl.F_RDLCK)"),
        "('none', 0, 5, 0)",
        "shared"
    );
    // The whole file, without an end.
    x.make("lock('none')");
    y.make("lock('none')");
    x.make("lock('exclusive', 4096)");
    assert!(
        y.make("holder(1 << 40)")
            .starts_with("('exclusive', 4096, 0,")
    );
    is_busy(&mut y, "lock('shared', 1 << 62, 1)");
}

#[test]
fn flock_and_fcntl_do_not_see_each_other() {
    let test = "flock_and_fcntl_do_not_see_each_other";
    two!(test: _home, _serve, _a, b, x, y);
    x.make("flock(EX)");
    is_busy(&mut y, "flock(SH | NB)");
    y.make("lock('exclusive')");
    x.make("flock(SH)");
    y.make("flock(SH | NB)");
    is_busy(&mut y, "flock(EX | NB)");
    // As on Linux, what was held is given up for what is not had.
    x.make("flock(EX | NB)");
    x.make("flock(UN)");
    // An owner is an open file: two of one program exclude each other.
    y.make("flock(EX | NB)");
    let mut z = hands(test, &b).unwrap();
    is_busy(&mut z, "flock(EX | NB)");
    is_busy(
        &mut y,
        "flock_other = os.open(path, os.O_RDWR); fcntl.flock(flock_other, SH | NB)",
    );
    y.make("os.close(f)");
    z.make("flock(EX)");
}

#[test]
fn what_was_stored_under_a_lock_is_seen_under_the_next() {
    let test = "what_was_stored_under_a_lock_is_seen_under_the_next";
    two!(test: _home, _serve, _a, _b, x, y);
    for hands in [&mut x, &mut y] {
        hands.make("m = mmap.mmap(f, 0)");
        hands.make(
            "def count(times, by_mapping, whole):
    for _ in range(times):
        flock(EX) if whole else lock('exclusive', 0, 8, True)
        if by_mapping:
            n = int.from_bytes(m[:8], 'little')
            m[:8] = (n + 1).to_bytes(8, 'little')
        else:
            n = int.from_bytes(os.pread(f, 8, 0), 'little')
            os.pwrite(f, (n + 1).to_bytes(8, 'little'), 0)
        flock(UN) if whole else lock('none', 0, 8)",
        );
    }
    let mut expected = 0;
    for (by_mapping, whole) in [(false, false), (true, false), (false, true), (true, true)] {
        let code = format!(
            "count(50, {}, {})",
            ["False", "True"][usize::from(by_mapping)],
            ["False", "True"][usize::from(whole)]
        );
        x.begin(&code);
        y.begin(&code);
        assert_eq!(
            (x.answer(), y.answer()),
            (Ok("None".into()), Ok("None".into()))
        );
        expected += 100;
        for hands in [&mut x, &mut y] {
            hands.make("lock('shared', 0, 8, True)");
            let found = hands.make(
                "int.from_bytes(m[:8], 'little'), int.from_bytes(os.pread(f, 8, 0), 'little')",
            );
            assert_eq!(found, format!("({expected}, {expected})"), "{code}");
            hands.make("lock('none', 0, 8)");
        }
    }
}

#[test]
fn who_waits_gets_it_and_a_circle_is_refused() {
    let test = "who_waits_gets_it_and_a_circle_is_refused";
    two!(test: _home, _serve, _a, b, x, y);
    x.make("lock('exclusive', 0, 1)");
    y.make("lock('exclusive', 1, 1)");
    let mut z = hands(test, &b).unwrap();
    // So many wait that there would be no thread left, if each took one.
    let mut more: Vec<Hands> = (0..8).map(|_| hands(test, &b).unwrap()).collect();
    for hands in &mut more {
        hands.begin("lock('shared', 0, 1, True)");
    }
    y.begin("lock('exclusive', 0, 1, True)");
    // Whose request comes second is refused; the other waits, here until an alarm.
    x.begin(
        "import signal
class Alarm(Exception): pass
def on_alarm(*_): raise Alarm
signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 5)
try:
    lock('exclusive', 1, 1, True)
except Alarm:
    raise OSError(4, 'interrupted')
finally:
    signal.setitimer(signal.ITIMER_REAL, 0)",
    );
    let refused = |answer: Result<String, String>| {
        // Two names of one number.
        matches!(answer.unwrap_err().as_str(), "EDEADLK" | "EDEADLOCK")
    };
    let mut y_waits = true;
    match x.answer() {
        Err(why) if why == "EINTR" => {
            assert!(refused(y.answer()));
            y_waits = false;
        }
        answer => assert!(refused(answer)),
    }
    z.make("lock('exclusive', 2, 1)");
    x.make("lock('none', 0, 1)");
    // Those who share it and the one who does not, in whatever order.
    for hands in &mut more {
        assert_eq!(hands.answer(), Ok("None".into()));
        hands.make("lock('none')");
    }
    match y_waits {
        true => assert_eq!(y.answer(), Ok("None".into())),
        false => _ = y.make("lock('exclusive', 0, 1)"),
    }
    is_busy(&mut x, "lock('shared', 0, 1)");
}

#[test]
fn the_end_of_a_program_or_descriptor_frees() {
    let test = "the_end_of_a_program_or_descriptor_frees";
    two!(test: _home, _serve, a, _b, x, y);
    // Closing any descriptor of the file ends the process's fcntl locks, also one that cannot write.
    x.make("lock('exclusive')");
    x.make("g = os.open(path, os.O_RDONLY)");
    x.make("os.close(g)");
    y.make("lock('exclusive')");
    y.make("lock('none')");
    x.make("os.lseek(f, 0, 0)");
    x.make("lock('shared')");
    x.make("os.close(f)");
    y.make("lock('exclusive', 0, 0, True)");
    y.make("lock('none')");
    // A child has the descriptors, but not the fcntl locks; an flock is freed with the last descriptor.
    x.make("open_file()");
    x.make("lock('exclusive'); flock(EX)");
    x.make("child = os.fork() or os._exit(0)");
    x.make("os.waitpid(child, 0)");
    is_busy(&mut y, "lock('shared')");
    is_busy(&mut y, "flock(SH | NB)");
    for waits_for in ["lock('exclusive', 0, 0, True)", "flock(EX)"] {
        let mut z = hands(test, &a).unwrap();
        if waits_for == "flock(EX)" {
            z.make(waits_for);
        } else {
            x.make("os.close(f)");
            z.make(waits_for);
        }
        y.begin(waits_for);
        let pid: u32 = z.make("os.getpid()").parse().unwrap();
        signal(pid, Signal::KILL);
        assert_eq!(y.answer(), Ok("None".into()));
        y.make("lock('none'); flock(UN)");
    }
}

#[test]
fn one_who_is_killed_while_it_waits_gets_nothing() {
    let test = "one_who_is_killed_while_it_waits_gets_nothing";
    two!(test: _home, _serve, _a, b, x, y);
    for (code, busy) in [
        ("lock('exclusive', 0, 0, True)", "lock('shared')"),
        ("flock(EX)", "flock(SH | NB)"),
    ] {
        x.make(code);
        let mut z = hands(test, &b).unwrap();
        let pid: u32 = z.make("os.getpid()").parse().unwrap();
        z.begin(code);
        wait_until("it waits", || {
            let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
            // fcntl or flock, which otherwise take no time
            !call.starts_with("running") && !call.starts_with("0 ")
        });
        signal(pid, Signal::KILL);
        // It ends although it was not given anything.
        drop(z);
        is_busy(&mut y, busy);
        x.make("lock('none'); flock(UN)");
        y.make("lock('exclusive'); flock(EX | NB)");
        y.make("lock('none'); flock(UN)");
    }
}

/// A mount through a relay, one without, and a program on each.
macro_rules! one_to_be_cut {
    ($test:ident: $home:ident, $relay:ident, $a:ident, $b:ident, $hands_a:ident, $hands_b:ident) => {
        let $home = Home::new();
        let served = $home.folder("served");
        fs::write(served.join("file"), vec![0; 8192]).unwrap();
        let serve = Serve::start(&$home, &served);
        let $relay = Relay::start(&serve.address);
        let ($a, $b) = (
            Mount::with(&$home, &$relay.source(), "a", &[]),
            Mount::start(&$home, &serve, "b"),
        );
        let (Some(mut $hands_a), Some(mut $hands_b)) = (hands($test, &$a), hands($test, &$b))
        else {
            return;
        };
    };
}

#[test]
fn locks_of_a_mount_that_is_killed_are_freed() {
    let test = "locks_of_a_mount_that_is_killed_are_freed";
    two!(test: home, _serve, a, b, x, y);
    x.make("lock('exclusive'); flock(EX)");
    signal(a.pid(), Signal::KILL);
    is_busy(&mut y, "lock('shared')");
    let mut z = hands(test, &b).unwrap();
    z.begin("flock(EX)");
    y.make("lock('exclusive', 0, 0, True)");
    assert_eq!(z.answer(), Ok("None".into()));
    let point = a.leave();
    run(home.memfs(["umount", "--force"]).arg(point));
}

#[test]
fn one_who_was_cut_off_learns_that_its_lock_is_lost() {
    let test = "one_who_was_cut_off_learns_that_its_lock_is_lost";
    one_to_be_cut!(test: _home, relay, a, _b, x, y);
    x.make("lock('exclusive', 0, 4096)");
    let mut z = hands(test, &a).unwrap();
    z.make("flock(EX)"); // nobody wants this one, but it was taken away together with the other
    let mut without = hands(test, &a).unwrap();
    relay.cut(true);
    y.make("lock('exclusive', 0, 1, True)");
    y.make("os.pwrite(f, b'theirs', 0)");
    y.make("lock('none')");
    relay.cut(false);
    for hands in [&mut x, &mut z] {
        wait_until("the loss is known", || {
            hands.try_do("os.pread(f, 6, 0)") == Err("EIO".into())
        });
        for code in [
            "os.pwrite(f, b'mine', 0)",
            "os.fsync(f)",
            "lock('exclusive')",
            "flock(EX | NB)",
            "holder()",
        ] {
            assert_eq!(hands.try_do(code), Err("EIO".into()), "{code}");
        }
    }
    for hands in [&mut x, &mut z] {
        hands.make("os.close(f)");
        hands.make("open_file()");
        hands.make("lock('exclusive'); flock(EX | NB)");
        assert_eq!(hands.make("os.pread(f, 6, 0)"), "b'theirs'");
        hands.make("lock('none'); flock(UN)");
    }
    assert_eq!(without.make("os.pread(f, 6, 0)"), "b'theirs'");
}

#[test]
fn one_who_was_cut_off_keeps_what_nobody_wanted() {
    let test = "one_who_was_cut_off_keeps_what_nobody_wanted";
    one_to_be_cut!(test: _home, relay, a, _b, x, y);
    x.make("lock('exclusive'); flock(EX)");
    relay.cut(true);
    wait_until("its lease has run out", || a.status()["link"] == "lost");
    relay.cut(false);
    x.make("os.pwrite(f, b'mine', 0)");
    x.make("os.fsync(f)");
    is_busy(&mut y, "lock('shared')");
    is_busy(&mut y, "flock(SH | NB)");
    x.make("lock('none'); flock(UN)");
    y.make("lock('exclusive'); flock(EX | NB)");
    assert_eq!(y.make("os.pread(f, 4, 0)"), "b'mine'");
}

#[test]
fn locks_outlive_the_authority() {
    let test = "locks_outlive_the_authority";
    two!(test: home, serve, a, b, x, y);
    x.make("lock('exclusive', 0, 10); lock('shared', 100, 10)");
    y.make("flock(SH)");
    y.begin("lock('exclusive', 5, 1, True)");
    let address = serve.address.clone();
    serve.kill();
    let serve = Serve::start_at(&home, home.path("served"), &address, &[]);
    is_busy(&mut x, "flock(EX | NB)");
    x.make("lock('none', 0, 10)");
    assert_eq!(y.answer(), Ok("None".into()));
    is_busy(&mut y, "lock('exclusive', 105, 1)");
    y.make("lock('shared', 105, 1)");
    x.make("os.pwrite(f, b'x', 200); os.fsync(f)");
    y.make("flock(UN)");
    x.make("flock(EX | NB)");
    drop((x, y));
    a.unmount();
    b.unmount();
    serve.stop();
}

/// Adds one to a counter so many times, each in a transaction, as any program would.
const COUNT: &str = r#"
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA busy_timeout = 600000")
for _ in range(int(sys.argv[2])):
    connection.execute("BEGIN IMMEDIATE")
    (n,) = connection.execute("SELECT n FROM counter").fetchone()
    connection.execute("UPDATE counter SET n = ?", (n + 1,))
    connection.execute("COMMIT")
"#;

/// So many transactions on each mount, which take half a minute where nothing is optimized; `MEMFS_SQLITE_TRANSACTIONS`
/// asks for another number.
const TRANSACTIONS: u64 = 200;

#[test]
fn two_mounts_count_in_one_database() {
    let test = "two_mounts_count_in_one_database";
    let Some(python) = common::python(test, "sqlite3") else {
        return;
    };
    let home = Home::in_memory();
    let served = home.folder("served");
    let python = || std::process::Command::new(python.get_program());
    let make = "import sqlite3, sys
c = sqlite3.connect(sys.argv[1])
c.executescript('CREATE TABLE counter (n); INSERT INTO counter VALUES (0)')";
    run(python().args(["-c", make]).arg(served.join("db")));
    let serve = Serve::start(&home, &served);
    let (a, b) = (
        Mount::start(&home, &serve, "a"),
        Mount::start(&home, &serve, "b"),
    );
    let asked = std::env::var("MEMFS_SQLITE_TRANSACTIONS").ok();
    let times = asked.map_or(TRANSACTIONS, |times| times.parse().unwrap());
    let count = |mount: &Mount| {
        let mut command = python();
        command.args(["-c", COUNT]).arg(mount.path("db"));
        command.arg(times.to_string()).spawn().unwrap()
    };
    for mut counting in [count(&a), count(&b)] {
        assert!(counting.wait().unwrap().success());
    }
    let read = "import sqlite3, sys
c = sqlite3.connect(sys.argv[1])
print(*c.execute('PRAGMA integrity_check').fetchone(), *c.execute('SELECT n FROM counter').fetchone())";
    for db in [a.path("db"), b.path("db")] {
        let found = run(python().args(["-c", read]).arg(db));
        assert_eq!(found, format!("ok {}\n", 2 * times));
    }
    a.unmount();
    b.unmount();
    let found = run(python().args(["-c", read]).arg(served.join("db")));
    assert_eq!(found, format!("ok {}\n", 2 * times));
}
