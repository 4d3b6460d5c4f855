//! Runs the core: the replica's local copy, its pulls and pushes; the authority's service.

pub mod authority;
pub mod replica;
