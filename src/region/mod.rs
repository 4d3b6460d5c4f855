//! The core, sans-IO: what one node knows of one region, and what it does about it.
//!
//! No bytes, sockets, clocks, async or locks: a caller holds a machine under its own lock, tells it
//! what happened (`handle_*`, with `now` where time matters) and does what it asks for (`poll_*`,
//! until `None`). This is the way of sans-IO protocol cores such as quinn-proto.
//!
//! | machine | one per | knows |
//! |---|---|---|
//! | [`Replica`] | region and replica | which pages are present, dirty, being pulled or pushed; who waits |
//! | [`Authority`] | authority | who subscribes to which node; which changes wait for whom; leases |
//! | [`Lease`] | replica | until when it may answer from its copies |
//! | [`Locks`] | authority | who has locked which bytes of which file, and who waits for whom |
//! | [`Order`] | region | in which order its parts were first touched |
//!
//! **The clock of changes.** The authority counts changes to anything it serves: one [`Tick`] each.
//! An answer carries the tick that was current *before* it was made, an invalidation the tick of
//! its change. So an answer whose tick is not below that of an invalidation has seen the change, in
//! whichever order the two arrive.

mod authority;
mod lease;
mod locks;
mod order;
mod page_set;
mod replica;

pub use authority::{Authority, AuthorityEvent, ChangeId};
pub use lease::Lease;
pub use locks::{
    LOCK_WAITS_MAX, LockHolder, LockKey, LockMode, LockOutcome, LockOwner, LockRequest, LockRun,
    LockRuns, LockSpace, LockWait, Locks,
};
pub use order::{ORDER_RUNS_MAX, Order};
pub use page_set::PageSet;
pub use replica::{
    Compared, Comparison, ComparisonId, Failure, FlushId, Pull, PullId, Push, PushId, Replica,
    ReplicaConfig, Residency, WaiterId,
};

use bincode::{Decode, Encode};

/// Names a replica as long as it lives, over any number of connections: 128 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct ClientId(pub [u8; 16]);

/// Counts the hand-overs of a region; a message with an older one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Default)]
pub struct Epoch(pub u64);

/// A point on the authority's clock of changes (see the module).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Default)]
pub struct Tick(pub u64);

#[cfg(test)]
mod tests;
