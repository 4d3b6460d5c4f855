//! Reading `/proc/self/mountinfo` (`proc(5)`): what is mounted where, without touching it.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A device number, as `st_dev` of the files of a file system. Written as `0:57`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its device number.
    pub device: Device,
    /// Where it is.
    pub mountpoint: PathBuf,
    /// Type: `fuse.memfs`.
    pub fstype: String,
    /// What is mounted, as it was told to the kernel.
    pub source: OsString,
    /// The user who mounted it (FUSE only).
    pub owner: Option<u32>,
}

impl Mount {
    /// Whether it is one of ours.
    pub fn is_memfs(&self) -> bool {
        self.fstype.strip_prefix("fuse.") == Some(super::SUBTYPE)
    }
}

/// All mounts, in the order in which they were made: of several at one place the last is seen.
///
/// # Errors
/// Where `/proc` cannot be read.
pub fn read() -> io::Result<Vec<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse).collect())
}

/// The mount that `path`, absolute and without symbolic links, is in.
///
/// # Errors
/// Where `/proc` cannot be read.
pub fn holding(path: &Path) -> io::Result<Option<Mount>> {
    let longest = |mount: &Mount| mount.mountpoint.as_os_str().len();
    let holding = read()?
        .into_iter()
        .filter(|mount| path.starts_with(&mount.mountpoint));
    // Of several of the same length `max_by_key` takes the last, which is the one on top.
    Ok(holding.max_by_key(longest))
}

/// A line: `36 35 98:0 /root /mount/point rw,noatime shared:1 - fuse.memfs source rw,user_id=0`.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let device = Device {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    };
    let mountpoint = PathBuf::from(unescape(fields.nth(1)?));
    fields.find(|field| *field == b"-")?;
    let fstype = String::from_utf8(unescape(fields.next()?).into_vec()).ok()?;
    let source = unescape(fields.next()?);
    let options = unescape(fields.next()?);
    let owner = options
        .as_bytes()
        .split(|&b| b == b',')
        .filter_map(|option| std::str::from_utf8(option).ok())
        .find_map(|option| option.strip_prefix("user_id=")?.parse().ok());
    Some(Mount {
        device,
        mountpoint,
        fstype,
        source,
        owner,
    })
}

/// Space, tab, newline, backslash and the like are written as `\040`.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let code = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let line = b"61 29 0:57 / /mnt/a\\040b\\134c rw,nosuid,nodev shared:9 - fuse.memfs host:/d\\040e rw,user_id=1000,group_id=5,default_permissions";
        let mount = parse(line).unwrap();
        assert_eq!(mount.device.to_string(), "0:57");
        assert_eq!(mount.mountpoint, Path::new("/mnt/a b\\c"));
        assert_eq!(mount.source, "host:/d e");
        assert_eq!(mount.owner, Some(1000));
        assert!(mount.is_memfs());
    }

    #[test]
    fn other_lines_are_left_out_or_not_ours() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 x:y / / rw - ext4 /dev/sda1 rw"), None);
        assert_eq!(parse(b"1 2 0:5 / / rw shared:1"), None);
        let root = parse(b"1 2 8:1 / / rw - ext4 /dev/sda1 rw,user_id=x").unwrap();
        assert!(!root.is_memfs() && root.owner.is_none());
        assert_eq!(unescape(b"\\999\\04"), "\\999\\04");
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(holding(Path::new("/")).unwrap().is_some());
    }
}
