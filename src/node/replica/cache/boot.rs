//! Whether what is in a folder may be trusted after the machine was started anew.
//!
//! ```text
//!   mount:  boot ID, open  ─▶ durable      before anything else in the folder changes
//!   end:    everything is made durable ─▶ boot ID, closed ─▶ durable
//! ```
//!
//! While the machine runs, its page cache keeps what a process wrote, however that ended. After a crash of the
//! machine some of it is on the disk and some is not, in no order. So what is found with the ID of another boot
//! and not closed is worth nothing.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The file in the folder.
const NAME: &str = "boot";
/// Written beside it, then renamed.
const NAME_NEW: &str = "boot.new";
/// It is far shorter.
const BYTES_MAX: u64 = 4096;

/// The kernel's ID of this boot.
///
/// # Errors
/// Where there is no `/proc`.
pub(super) fn id() -> io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

/// Whether what is in the folder is as its last owner left it.
pub(super) fn is_whole(folder: &Path, id: &str) -> bool {
    let path = folder.join(NAME);
    let text = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() <= BYTES_MAX => {
            std::fs::read_to_string(&path).unwrap_or_default()
        }
        _ => return false,
    };
    text == line(id, false)
        || text
            .strip_prefix("memfs cache 1 closed ")
            .is_some_and(|id| id.ends_with('\n'))
}

fn line(id: &str, closed: bool) -> String {
    let state = if closed { "closed" } else { "open" };
    format!("memfs cache 1 {state} {id}\n")
}

/// Records the state, durably.
///
/// # Errors
/// Where it cannot be written.
pub(super) fn record(folder: &Path, id: &str, closed: bool) -> io::Result<()> {
    let (path, new) = (folder.join(NAME), folder.join(NAME_NEW));
    let line = line(id, closed);
    if !closed && std::fs::read_to_string(&path).is_ok_and(|there| there == line) {
        return Ok(());
    }
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_of_the_machine_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert!(!is_whole(folder, "a"), "nothing is known");
        record(folder, "a", false).unwrap();
        assert!(is_whole(folder, "a") && !is_whole(folder, "b"));
        record(folder, "a", true).unwrap();
        assert!(is_whole(folder, "a") && is_whole(folder, "b"));
        record(folder, "b", false).unwrap();
        assert!(is_whole(folder, "b") && !is_whole(folder, "a"));
        for bad in [
            "",
            "memfs cache 1 closed",
            "memfs cache 2 closed b\n",
            "open b\n",
        ] {
            std::fs::write(folder.join(NAME), bad).unwrap();
            assert!(!is_whole(folder, "b"), "{bad}");
        }
        assert!(!id().unwrap().is_empty());
    }
}
