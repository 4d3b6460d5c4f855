//! memfs: memory regions and files of another machine as files, kept in sync over QUIC.
//!
//! ```text
//!   program ── kernel ── frontend ── node::replica ──QUIC── node::authority ── store
//!                                        │                        │
//!                                  region::Replica         region::Authority     (sans-IO)
//! ```
//!
//! A module imports only from rows above it; `tests/house.rs` enforces this table.
//!
//! | folder | owns |
//! |---|---|
//! | [`units`] | byte ranges, page arithmetic, printing and parsing of sizes and times |
//! | [`region`] | the core, sans-IO: what one node knows of one region |
//! | [`wire`] | the messages, their encoding and versions |
//! | [`sys`] | all `unsafe`: mappings, system calls without a safe wrapper |
//! | [`transport`] | QUIC endpoints, keys and trust, start over SSH |
//! | [`store`] | where bytes live |
//! | [`node`] | runs the core: the replica's local copy, the authority's service |
//! | [`frontend`] | how a program reaches a replica |
//! | [`cli`] | one file per subcommand, wiring only |

pub mod cli;
pub mod frontend;
pub mod node;
pub mod region;
pub mod store;
pub mod sys;
pub mod transport;
pub mod units;
pub mod wire;
