//! All `unsafe` of the crate: memory mappings and system calls that have no safe wrapper. Knows
//! nothing of regions.

mod daemon;
mod fork;
mod handle;
mod lease;
mod lock_flags;
mod mapped_file;
mod mapped_words;
mod parent;
mod watched;
mod write_back;

pub use daemon::{Starting, detach};
pub use fork::{Forked, close_standard_streams, fork, ignore_end_signals};
pub use handle::file_handle;
pub use lock_flags::is_flock;
pub use mapped_file::{MappedFile, UNFINISHED};
pub use mapped_words::MappedWords;
pub use parent::{ParentDeath, end_with_us};
pub use watched::watched;
pub use write_back::write_back;
