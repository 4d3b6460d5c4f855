//! All `unsafe` of the benchmark: system calls that have no safe wrapper.

mod map;
mod schedule;
mod tun;

pub use map::Mapping;
pub use schedule::run_before_others;
pub use tun::{HEADER_BYTES, SUPER_PACKET_BYTES_MAX, open_tun};
