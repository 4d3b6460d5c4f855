//! The service over real QUIC on loopback, spoken to in raw messages of the wire.

mod client;
mod metadata;
mod transfer;
