//! The messages with which a connection begins. The same rules hold as for the others, see `message`.

use super::RelPath;
use super::node::*;
use crate::region::{ClientId, Tick};
use bincode::{Decode, Encode};

/// First on the control stream. The same in every version.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Oldest version the replica speaks.
    pub oldest: u16,
    /// Newest version the replica speaks.
    pub newest: u16,
    /// Names this replica as long as it lives, over any number of connections. A client id is only
    /// accepted from the key that first used it.
    pub client: ClientId,
    /// Which part of the export becomes the root of the mount.
    pub subtree: RelPath,
    /// The replica promises to send no request that changes anything.
    pub read_only: bool,
    /// The welcome is to bring the first entries of the root.
    pub listing: bool,
}

/// Answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum HelloReply {
    /// The connection is up.
    Welcome(Welcome),
    /// It is not; the connection is closed after this.
    Refused(Refusal),
}

/// What a replica learns when it is let in.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// The version both will speak from here on.
    pub version: u16,
    /// Names this run of the authority: another value means that it was restarted.
    pub boot: u64,
    /// The authority still had this client's session: its handles, subscriptions and answers to
    /// repeated requests. If not, every copy has to be checked against the stamps again.
    pub resumed: bool,
    /// How long the replica may answer from its copy after it *sent* the last renewal that was
    /// answered, in milliseconds.
    pub lease_ms: u32,
    /// The export refuses changes.
    pub read_only: bool,
    /// The user the authority runs as, on its machine.
    pub server: Caller,
    /// Attributes of the root.
    pub root: Attr,
    /// What the store can do.
    pub capabilities: Capabilities,
    /// First entries of the root, so that looking them up needs no round trip. `None` where they were not asked
    /// for, or cannot be read.
    pub listing: Option<Listing>,
}

/// First entries of a directory, as in an answer to [`super::ReadRequest::ReadDir`] at cursor 0.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Listing {
    /// As in [`super::Reply`].
    pub at: Tick,
    /// At most [`super::LISTING_ENTRIES_MAX`].
    pub entries: Vec<DirEntry>,
}

/// What a store can do; a thing it cannot gives `EOPNOTSUPP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Default)]
pub struct Capabilities {
    /// Extended attributes.
    pub xattrs: bool,
    /// Hard links.
    pub hard_links: bool,
    /// Symbolic links.
    pub symlinks: bool,
    /// Pipes, sockets and devices.
    pub special_files: bool,
    /// Owners other than the serving user (`chown`), so that the caller's ids are kept.
    pub owners: bool,
    /// What was synced survives the end of the authority.
    pub durable: bool,
}

/// Why a replica was not let in.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Refusal {
    /// No version in common; these are the authority's.
    Version {
        /// Oldest version the authority speaks.
        oldest: u16,
        /// Newest version the authority speaks.
        newest: u16,
    },
    /// The subtree cannot be opened: an errno.
    Subtree(i32),
    /// The client id is in use by another key.
    Client,
    /// Too many clients.
    Full,
}
