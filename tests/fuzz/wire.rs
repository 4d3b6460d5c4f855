//! Any bytes as each message of the wire: refused, or a message that is encoded and decoded to itself.

#![no_main]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "what is wrong ends the process"
)]

use bincode::{Decode, Encode};
use libfuzzer_sys::fuzz_target;
use memfs::wire::codec::{self, LENGTH_BYTES};
use memfs::wire::frame::{self, HEADER_BYTES, Header};
use memfs::wire::{
    AuthorityEvent, Hello, HelloReply, MESSAGE_BYTES_MAX, ReplicaEvent, Reply, Request,
    TRANSFER_BYTES_MAX,
};
use std::fmt::Debug;

/// Unpacked frames are no longer than this here, to be quick.
const UNPACKED_MAX: u32 = 1 << 20;

fn decode<M: Encode + Decode<()> + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = codec::decode::<M>(bytes) else {
        return;
    };
    let again = codec::encode(&message).unwrap();
    let (length, body) = again.split_first_chunk::<LENGTH_BYTES>().unwrap();
    assert_eq!(codec::decode_length(*length).unwrap(), body.len());
    assert_eq!(codec::decode::<M>(body).unwrap(), message);
}

fn frames(bytes: &[u8]) {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return;
    };
    if let Ok(header) = Header::decode(*header) {
        assert!(u64::from(header.len) <= TRANSFER_BYTES_MAX);
        if header.len <= UNPACKED_MAX
            && let Ok(unpacked) = frame::unpack(rest, header.len)
        {
            assert_eq!(unpacked.len(), header.len as usize);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which % 7 {
        0 => decode::<Hello>(bytes),
        1 => decode::<HelloReply>(bytes),
        2 => decode::<ReplicaEvent>(bytes),
        3 => decode::<AuthorityEvent>(bytes),
        4 => decode::<Request>(bytes),
        5 => decode::<Reply>(bytes),
        _ => frames(bytes),
    }
    if let Some((length, _)) = bytes.split_first_chunk::<LENGTH_BYTES>()
        && let Ok(length) = codec::decode_length(*length)
    {
        assert!(length <= MESSAGE_BYTES_MAX);
    }
});
