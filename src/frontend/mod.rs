//! How a program reaches a replica: an adapter that decodes, calls, and replies. No logic of its own.

pub mod fuse;
