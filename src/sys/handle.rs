//! File handles (`name_to_handle_at(2)`), only to tell nodes apart: they hold the generation of an
//! inode, which differs between the nodes that had one inode number one after the other.

use rustix::fd::{AsRawFd, BorrowedFd};

/// Room for any handle (Linux: `MAX_HANDLE_SZ`).
const HANDLE_BYTES_MAX: usize = 128;

#[repr(C)]
struct Handle {
    head: libc::file_handle,
    bytes: [u8; HANDLE_BYTES_MAX],
}

/// The handle of what `fd` holds (`O_PATH` will do), as the bytes and the type the file system
/// gives it; `None` where it gives none.
pub fn file_handle(fd: BorrowedFd<'_>) -> Option<(i32, Vec<u8>)> {
    let mut handle = Handle {
        head: libc::file_handle {
            handle_bytes: HANDLE_BYTES_MAX as u32,
            handle_type: 0,
            f_handle: [],
        },
        bytes: [0; HANDLE_BYTES_MAX],
    };
    let mut mount = 0;
    // SAFETY: the path is a string that ends; the kernel writes at most `handle_bytes` bytes after
    // the head, where `bytes` begins, as `repr(C)` has it and the head needs no padding at its end.
    // The pointer is derived from the whole of `handle`, so it may be used for all of it.
    let result = unsafe {
        libc::name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    let bytes = handle.bytes.get(..handle.head.handle_bytes as usize)?;
    (result == 0).then(|| (handle.head.handle_type, bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_handle_stays_and_is_of_one_node_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = std::fs::File::create(&path).unwrap();
        let Some(first) = file_handle(file.as_fd()) else {
            println!("skipped: {} has no file handles", dir.path().display());
            return;
        };
        assert!(!first.1.is_empty());
        let again = std::fs::File::open(&path).unwrap();
        assert_eq!(file_handle(again.as_fd()), Some(first.clone()));
        drop((file, again));
        std::fs::remove_file(&path).unwrap();
        let other = std::fs::File::create(&path).unwrap();
        assert_ne!(file_handle(other.as_fd()), Some(first));
    }
}
