//! A mount that is cut off, and what others do meanwhile: nothing of before is shown once its lease has run out, neither
//! while it is away nor when it is back.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::hands::Hands;
use common::relay::Relay;
use common::{Home, Mount, Serve, wait_until};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;
const FAR: u64 = 10 << 20;

/// A served file of ones, a mount of it through a relay, and one without.
macro_rules! scene {
    ($home:ident, $served:ident, $relay:ident, $away:ident, $other:ident) => {
        let $home = Home::new();
        let served = $home.folder("served");
        let $served = served.join("file");
        fs::write(&$served, vec![1; 16 << 20]).unwrap();
        let serve = Serve::start_at(&$home, &served, "127.0.0.1:0", &["--lease", "1s"]);
        let $relay = Relay::start(&serve.address);
        let options = ["--pull", "demand", "--no-learn"];
        let $away = Mount::with(&$home, &$relay.source(), "away", &options);
        let mount = Mount::start(&$home, &serve, "other");
        let $other = OpenOptions::new().write(true).open(mount.path("file"));
        let $other = $other.unwrap();
    };
}

/// A program that reads single pages. Where it could write, the mount would look at the file again and again.
fn reader(test: &str, mount: &Mount) -> Option<Hands> {
    let mut hands = Hands::new(test)?;
    hands.make(&format!(
        "f = os.open({:?}, os.O_RDONLY)",
        mount.path("file")
    ));
    hands.make("os.posix_fadvise(f, 0, 0, os.POSIX_FADV_RANDOM)");
    hands.make("m = mmap.mmap(f, 0, access=mmap.ACCESS_READ)");
    hands.make("m.madvise(mmap.MADV_RANDOM)");
    Some(hands)
}

fn store(file: &File, byte: u8, at: u64) {
    file.write_all_at(&[byte], at).unwrap();
    file.sync_all().unwrap();
}

/// What was announced has been taken in; what came later was missed.
#[test]
fn what_was_missed_is_seen_on_coming_back() {
    scene!(_home, _served, relay, away, other);
    let Some(mut hands) = reader("what_was_missed_is_seen_on_coming_back", &away) else {
        return;
    };
    let read = format!("os.pread(f, 1, 0)[0], m[{FAR}]");
    assert_eq!(hands.make(&read), "(1, 1)");
    store(&other, 2, 0);
    relay.cut(true);
    store(&other, 3, FAR);
    relay.cut(false);
    assert_eq!(hands.make(&read), "(2, 3)");
}

/// Whoever waits for a page keeps nobody from taking back the others.
#[test]
fn one_who_waits_does_not_keep_what_is_stale() {
    let test = "one_who_waits_does_not_keep_what_is_stale";
    scene!(_home, _served, relay, away, other);
    let (Some(mut waiting), Some(mut hands)) = (reader(test, &away), reader(test, &away)) else {
        return;
    };
    let after = FAR + 60 * PAGE;
    let read = format!("m[{after}]");
    assert_eq!(hands.make(&read), "1");
    relay.cut(true);
    waiting.begin(&format!("m[{FAR}]"));
    wait_until("somebody waits", || away.status()["waiting"] != 0);
    store(&other, 2, after);
    hands.begin(&read);
    relay.cut(false);
    assert_eq!(hands.answer(), Ok("2".into()));
    assert_eq!(waiting.answer(), Ok("1".into()));
}

/// A file whose size is not known again when the lease runs out may reach anywhere.
#[test]
fn a_file_that_others_cut_is_taken_back_as_well() {
    let test = "a_file_that_others_cut_is_taken_back_as_well";
    scene!(_home, _served, relay, away, other);
    let (Some(mut waiting), Some(mut hands)) = (reader(test, &away), reader(test, &away)) else {
        return;
    };
    let read = format!("m[0], m[{FAR}]");
    assert_eq!(hands.make(&read), "(1, 1)");
    other.set_len(12 << 20).unwrap();
    relay.cut(true);
    waiting.begin(&format!("m[{}]", FAR / 2));
    wait_until("somebody waits", || away.status()["waiting"] != 0);
    store(&other, 2, FAR);
    assert_eq!(away.status()["link"], "lost");
    hands.begin(&read);
    relay.cut(false);
    assert_eq!(hands.answer(), Ok("(1, 2)".into()));
    assert_eq!(waiting.answer(), Ok("1".into()));
    assert_eq!(hands.make("os.fstat(f).st_size"), (12 << 20).to_string());
}
