//! The service over real QUIC on loopback, spoken to in raw messages of the wire.

mod abuse;
mod client;
mod coherence;
mod local;
mod metadata;
mod sessions;
mod transfer;
