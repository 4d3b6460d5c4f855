//! The service over real QUIC on loopback, spoken to in raw messages of the wire.

mod abuse;
mod client;
mod coherence;
mod filter;
mod forgotten;
mod hashes;
mod local;
mod locks;
mod meddling;
mod metadata;
mod orders;
mod sessions;
mod transfer;
