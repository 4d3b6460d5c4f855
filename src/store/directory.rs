//! A directory tree of this machine.
