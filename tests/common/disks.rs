//! Disks that are small, or fail: file systems that a test mounts in its home, as root. And processes that may have few
//! files open.

use super::{Home, is_root, output, run, skip};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system below a home, gone with this. To be made before what uses it.
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// A file system in memory; `options` as `size=8M`. Where there is no way to have one, says that `test` is left out.
    pub fn small(test: &str, home: &Home, name: &str, options: &str) -> Option<Disk> {
        if !is_root() {
            skip(test, "only root can make a small file system");
            return None;
        }
        let path = home.folder(name);
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "memfs-test"]);
        run(mount.arg(&path));
        Some(Disk { path })
    }

    /// A file system in a file, made by `mkfs` and the like.
    pub fn in_file(test: &str, image: &Path, path: PathBuf, mkfs: &[&str]) -> Option<Disk> {
        if !is_root() {
            skip(test, "only root can mount a file");
            return None;
        }
        if !super::has(test, mkfs[0]) {
            return None;
        }
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(image));
        fs::create_dir_all(&path).unwrap();
        let mounted = output(
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(image)
                .arg(&path),
        );
        if !mounted.status.success() {
            skip(test, String::from_utf8_lossy(&mounted.stderr).trim());
            return None;
        }
        Some(Disk { path })
    }

    /// One in a file of a home, with a journal: for [`Disk::cut_power`].
    pub fn with_journal(test: &str, home: &Home) -> Option<Disk> {
        let image = home.path("disk.ext4");
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        // Not asked to come soon, what is not synced stays in memory for half a minute.
        let mkfs = ["mkfs.ext4", "-q", "-F", "-O", "has_journal"];
        Disk::in_file(test, &image, home.path("disk"), &mkfs)
    }

    /// What programs see after the machine has lost its power: what had not got to the device is gone. Nobody may
    /// use it.
    pub fn cut_power(&self) {
        let mut find = Command::new("findmnt");
        let device = run(find.args(["-n", "-o", "SOURCE"]).arg(&self.path));
        let device = device.trim();
        // It would be taken away with its last user.
        let held = File::open(device).unwrap();
        // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: nothing is written any more, not even the journal.
        let shut_down = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        run(Command::new("python3")
            .args(["-c", shut_down])
            .arg(&self.path));
        run(Command::new("umount").arg(&self.path));
        run(Command::new("mount").arg(device).arg(&self.path));
        drop(held);
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes its options.
    pub fn remount(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{options}")]);
        run(mount.arg(&self.path));
    }

    /// Leaves so many bytes free and no more, by a file that is returned: to be removed for room.
    pub fn fill(&self, free: u64) -> PathBuf {
        let path = self.path.join("filler");
        let mut filler = File::create(&path).unwrap();
        let disk = rustix::fs::statvfs(&self.path).unwrap();
        let bytes = (disk.f_bavail * disk.f_frsize).saturating_sub(free);
        // All that is left where it is to be full: some of it may have been taken meanwhile.
        let zeroes = vec![1; 64 << 10];
        let mut left = bytes;
        while left > 0 {
            let part = zeroes.len().min(left as usize);
            match filler.write(&zeroes[..part]) {
                Ok(written) => left -= written as u64,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what has just been killed may still be on its way out.
        let _ = output(Command::new("umount").arg("-l").arg(&self.path));
    }
}

/// The same command, with a process that may have only so many files open.
pub fn limited(command: &Command, files_max: u64) -> Command {
    let mut bash = Command::new("bash");
    bash.args(["-c", &format!("ulimit -n {files_max}; exec \"$@\""), "bash"]);
    bash.arg(command.get_program()).args(command.get_args());
    let set = command.get_envs();
    bash.envs(set.filter_map(|(name, value)| Some((name, value?))));
    bash
}
