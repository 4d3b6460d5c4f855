//! What fuser does not pass on of a request to lock: whether it comes from `flock(2)` or from `fcntl(2)`.

use fuser::Request;

/// `struct fuse_in_header` of `<linux/fuse.h>`, which [`Request`] is.
const HEADER_BYTES: usize = 40;
/// `struct fuse_lk_in`, which follows it.
const LOCK_BYTES: usize = 48;
/// `FUSE_SETLK`, `FUSE_SETLKW`.
const OPERATIONS: [u32; 2] = [32, 33];
/// `FUSE_LK_FLOCK` in `fuse_lk_in.lk_flags`.
const FLOCK: u32 = 1;

const _: () = assert!(size_of::<Request>() == HEADER_BYTES);

/// Whether a request to lock comes from `flock(2)`. `handle` and `owner` are what fuser has made of the same request;
/// `None` where it is not found to be one of that handle and owner.
pub fn is_flock(request: &Request, handle: u64, owner: u64) -> Option<bool> {
    let start = std::ptr::from_ref(request).expose_provenance();
    let number = |at: usize| {
        let mut bytes = [0; 4];
        let from = std::ptr::with_exposed_provenance::<u8>(start + at);
        // SAFETY: up to HEADER_BYTES this is the request itself. What is further on is only read once the length in
        // the header is known to be that of a whole request to lock: fuser 0.18.0 (Cargo.toml asks for just this one)
        // makes a `Request` of the first bytes of the message in the buffer that it was read into, and refuses
        // messages that are shorter than their header says. That buffer was exposed when it was given to read(2), and
        // is not written to while the request is being handled.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), 4) };
        u32::from_ne_bytes(bytes)
    };
    let (length, operation) = (number(0) as usize, number(4));
    if length != HEADER_BYTES + LOCK_BYTES || !OPERATIONS.contains(&operation) {
        return None;
    }
    let halves = [0, 4, 8, 12].map(|at| number(HEADER_BYTES + at).to_ne_bytes());
    let told = [handle, owner].map(u64::to_ne_bytes);
    let same = halves.as_flattened() == told.as_flattened();
    same.then(|| number(HEADER_BYTES + 40) & FLOCK != 0)
}
