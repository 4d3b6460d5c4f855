//! What files are opened for.

use crate::wire::Access;

/// What a file is opened for.
#[derive(Clone, Copy)]
pub(super) struct Mode {
    pub read: bool,
    pub write: bool,
}

impl Mode {
    /// What for at the authority.
    pub fn access(self) -> Access {
        match self.write {
            true => Access::Write,
            false => Access::Read,
        }
    }

    /// Whether it may be stored through a mapping: mmap(2) wants a descriptor that can be read for that as well.
    pub fn may_map(self) -> bool {
        self.read && self.write
    }
}
