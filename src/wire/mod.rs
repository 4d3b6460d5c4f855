//! The wire: the messages two nodes exchange, their encoding, and its versions.
//!
//! Three kinds of QUIC stream, each opened by the replica:
//!
//! ```text
//! control (bidirectional, first, lives as long as the connection)
//!   replica   → Hello · then any number of ReplicaEvent
//!   authority → Welcome or Refusal · then any number of AuthorityEvent
//!
//! request (bidirectional, one each)
//!   replica   → Request  [frames: only after Push]          FIN
//!   authority → Reply    [frames: only after Reply::Pulled] FIN
//!               after the Reply to OpenAndPull comes that of a Pull
//!               a Lock that may wait has its FIN only when it is not to wait any longer
//! ```
//!
//! Every message is a little-endian `u32` length, at most [`MESSAGE_BYTES_MAX`], and that many
//! bytes of bincode 2 (standard configuration). Page bytes never pass through the serializer: they
//! follow as [`frame`]s, each a fixed header and its payload.
//!
//! `Hello` and `Refusal` are the same in every version; what else there is belongs to the
//! [`Version`] the two sides agreed on.

pub mod codec;
pub mod frame;
mod greeting;
mod message;
mod name;
mod node;

pub use greeting::*;
pub use message::*;
pub use name::{Name, RelPath};
pub use node::*;

/// The most bytes one encoded message may have. A push names at most [`PUSH_EXTENTS_MAX`] extents
/// and a directory reply at most [`DIR_ENTRIES_MAX`] entries so that it holds.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The most bytes one pull may ask for, and one push may carry.
pub const TRANSFER_BYTES_MAX: u64 = 4 << 20;
/// The most extents one push may name.
pub const PUSH_EXTENTS_MAX: usize = 256;
/// The most extents of which hashes may be asked for at once.
pub const HASH_EXTENTS_MAX: usize = 256;
/// The most bytes of which hashes may be asked for at once.
pub const HASHED_BYTES_MAX: u64 = 4 << 20;
/// The most bytes that one hash may be of.
pub const HASH_UNIT_BYTES_MAX: u32 = 64 << 10;
/// The most entries one `ReadDir` reply may hold.
pub const DIR_ENTRIES_MAX: usize = 1024;
/// The most entries a [`Welcome`] may bring.
pub const LISTING_ENTRIES_MAX: usize = 256;
/// The most bytes of names of extended attributes that come with an entry.
pub const ENTRY_XATTRS_BYTES_MAX: usize = 256;
/// The most components a path may have: each takes two bytes at the least.
pub const PATH_COMPONENTS_MAX: usize = 2048;
/// The most bytes of an extended attribute's value (Linux: `XATTR_SIZE_MAX`).
pub const XATTR_BYTES_MAX: usize = 65536;

/// A version of the protocol. Each says what changed in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Version {
    /// The first: control stream, metadata requests, pull and push with zero and LZ4 frames.
    V1 = 1,
}

impl Version {
    /// The oldest this program speaks.
    pub const OLDEST: Version = Version::V1;
    /// The newest this program speaks.
    pub const NEWEST: Version = Version::V1;

    /// The newest version that both this program and a peer speaking `oldest..=newest` know.
    pub fn negotiate(oldest: u16, newest: u16) -> Option<Version> {
        (oldest <= Version::V1 as u16 && Version::V1 as u16 <= newest).then_some(Version::V1)
    }
}
