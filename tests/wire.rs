//! The wire, version 1: its bytes are those of `tests/golden/v1.txt`, whatever is sent lawfully
//! arrives as it was, and whatever else arrives is refused without a panic and within the limits.
//!
//! `MEMFS_BLESS=1 cargo test --test wire` writes the golden file anew: lawful for a message that no
//! release has sent, otherwise a new version is needed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "wire/samples.rs"]
mod samples;
#[path = "wire/strategies.rs"]
mod strategies;

use bincode::{Decode, Encode};
use memfs::wire::codec::{self, LENGTH_BYTES};
use memfs::wire::frame::{self, FRAME_BYTES_MAX, HEADER_BYTES, Header, Packed};
use memfs::wire::*;
use proptest::prelude::*;
use samples::Variants;
use std::collections::BTreeSet;
use std::fmt::{Debug, Write};

// ---------------------------------------------------------------------------------------------
// Golden bytes

/// Collects `name = hex` lines, checking on the way that each sample decodes to itself.
#[derive(Default)]
struct Book(String);

impl Book {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(self.0, "{name} = {hex}").unwrap();
    }

    fn message<M: Encode + Decode<()> + PartialEq + Debug>(&mut self, name: &str, message: &M) {
        let bytes = codec::encode(message).unwrap();
        assert_eq!(&decode_whole::<M>(&bytes).unwrap(), message, "{name}");
        self.add(name, &bytes);
    }

    /// Samples that hold every variant.
    fn variants<M>(&mut self, messages: &[M])
    where
        M: Variants + Encode + Decode<()> + PartialEq + Debug,
    {
        let sampled: BTreeSet<&str> = messages.iter().map(M::variant).collect();
        let all: BTreeSet<&str> = M::ALL.iter().copied().collect();
        assert_eq!(sampled, all, "each variant has a sample");
        for message in messages {
            self.message(message.variant(), message);
        }
    }
}

/// The message behind its length.
fn decode_whole<M: Decode<()>>(bytes: &[u8]) -> Result<M, codec::CodecError> {
    let (length, message) = bytes.split_first_chunk::<LENGTH_BYTES>().unwrap();
    assert_eq!(codec::decode_length(*length)?, message.len());
    codec::decode(message)
}

fn book() -> String {
    let mut book = Book::default();
    book.message("Hello", &samples::hello());
    book.variants(&samples::hello_replies());
    book.variants(&samples::refusals());
    book.variants(&samples::replica_events());
    book.variants(&samples::authority_events());
    book.variants(&samples::stales());
    book.variants(&samples::requests());
    book.variants(&samples::read_requests());
    book.variants(&samples::change_requests());
    for reply in samples::replies() {
        book.message("Reply", &reply);
    }
    book.variants(&samples::answers());
    book.variants(&samples::kinds());
    book.variants(&samples::makes());
    book.variants(&samples::set_times());
    book.variants(&samples::rename_modes());
    book.variants(&samples::accesses());
    book.variants(&samples::learnings());
    book.variants(&samples::lock_modes());
    book.variants(&samples::lock_spaces());
    book.variants(&samples::allocates());
    book.variants(&samples::xattr_modes());
    for header in samples::frame_headers() {
        assert_eq!(Header::decode(header.encode()).unwrap(), header);
        book.add(
            &format!("frame::Header::{:?}", header.kind),
            &header.encode(),
        );
    }
    book.0
}

#[test]
fn golden() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.txt");
    let made = book();
    if std::env::var_os("MEMFS_BLESS").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    for (made, golden) in made.lines().zip(golden.lines()) {
        assert_eq!(
            made, golden,
            "the wire has changed: see the head of this test"
        );
    }
    assert_eq!(made.lines().count(), golden.lines().count());
}

// ---------------------------------------------------------------------------------------------
// Limits

/// The most a decoder may hold for bytes of whatever content: what one message may have, twice for
/// growing, and the text of an error.
const DECODER_BYTES_MAX: u64 = 2 * MESSAGE_BYTES_MAX as u64 + 4096;

/// Runs a decoder; fails if it held more than it may.
#[track_caller]
fn bounded<T>(decoder: impl FnOnce() -> T) -> T {
    let mut value = None;
    let used = allocation_counter::measure(|| value = Some(decoder()));
    assert!(
        used.bytes_max <= DECODER_BYTES_MAX,
        "held {} bytes",
        used.bytes_max
    );
    value.unwrap()
}

/// Feeds bytes to the decoder of each message.
fn decode_as_everything(bytes: &[u8]) {
    fn as_message<M: Decode<()> + Encode + PartialEq + Debug>(bytes: &[u8]) {
        if let Ok(message) = bounded(|| codec::decode::<M>(bytes)) {
            let again = codec::encode(&message).unwrap();
            assert_eq!(decode_whole::<M>(&again).unwrap(), message);
        }
    }
    as_message::<Hello>(bytes);
    as_message::<HelloReply>(bytes);
    as_message::<ReplicaEvent>(bytes);
    as_message::<AuthorityEvent>(bytes);
    as_message::<Request>(bytes);
    as_message::<Reply>(bytes);
}

#[test]
#[should_panic(expected = "held")]
fn a_decoder_that_allocates_too_much_is_caught() {
    bounded(|| vec![0u8; DECODER_BYTES_MAX as usize + 1]);
}

#[test]
fn a_length_that_claims_more_than_there_is_allocates_little() {
    for length in [
        [251, 0xff, 0xff].to_vec(),
        [252, 0xff, 0xff, 0xff, 0xff].to_vec(),
        { [&[253][..], &[0xff; 8]].concat() },
    ] {
        // Reply: tick 0, Ok, Bytes and Entries; ReplicaEvent: Forget; a push's extents.
        for head in [&[0, 0, 3][..], &[0, 0, 4], &[2], &[1, 0, 0, 9, 0, 0]] {
            decode_as_everything(&[head, &length].concat());
        }
    }
}

#[test]
fn the_largest_messages_fit() {
    let long = Node {
        id: FileId {
            dev: u64::MAX,
            ino: u64::MAX,
            born: u64::MAX,
        },
        path: RelPath::new(vec![vec![b'x'; 255]; 16].join(&b'/')).unwrap(),
    };
    let time = Time {
        secs: i64::MIN,
        nanos: 999_999_999,
    };
    let attr = Attr {
        id: long.id,
        kind: Kind::BlockDevice,
        mode: u16::MAX,
        nlink: u32::MAX,
        uid: u32::MAX,
        gid: u32::MAX,
        rdev: u64::MAX,
        size: u64::MAX,
        blocks: u64::MAX,
        blksize: u32::MAX,
        atime: time,
        mtime: time,
        ctime: time,
    };
    let name = Name::new(vec![b'n'; 255]).unwrap();
    let entry = DirEntry {
        name,
        attr,
        cursor: u64::MAX,
        xattrs: Some(vec![b'x'; ENTRY_XATTRS_BYTES_MAX]),
    };
    let reply = |answer| Reply {
        at: memfs::region::Tick(u64::MAX),
        result: Ok(answer),
    };
    let change = |request| {
        let sequence = Sequence {
            number: u64::MAX,
            answered: u64::MAX,
        };
        Request::Change(sequence, request)
    };
    fits(&reply(Answer::Entries(vec![entry; DIR_ENTRIES_MAX])));
    fits(&reply(Answer::Bytes(vec![255; XATTR_BYTES_MAX])));
    fits(&change(ChangeRequest::Push {
        handle: HandleId {
            number: u64::MAX,
            file: FileId {
                dev: u64::MAX,
                ino: u64::MAX,
                born: u64::MAX,
            },
        },
        epoch: memfs::region::Epoch(u64::MAX),
        extents: vec![
            Extent {
                start: u64::MAX,
                end: u64::MAX
            };
            PUSH_EXTENTS_MAX
        ],
    }));
    fits(&change(ChangeRequest::SetXattr {
        node: long.clone(),
        name: vec![b'n'; 255],
        value: vec![255; XATTR_BYTES_MAX],
        mode: XattrMode::Replace,
    }));
    fits(&change(ChangeRequest::Make {
        dir: long,
        name: Name::new(vec![b'n'; 255]).unwrap(),
        make: Make::Symlink(vec![b's'; 4095]),
        mode: u16::MAX,
        by: Caller {
            uid: u32::MAX,
            gid: u32::MAX,
        },
    }));
}

fn fits<M: Encode + Decode<()> + PartialEq + Debug>(message: &M) {
    let bytes = codec::encode(message).unwrap();
    let decoded = bounded(|| decode_whole::<M>(&bytes)).unwrap();
    assert!(decoded == *message);
}

#[test]
fn versions_are_negotiated() {
    let v1 = Version::V1 as u16;
    assert_eq!(Version::negotiate(v1, v1), Some(Version::V1));
    assert_eq!(Version::negotiate(0, u16::MAX), Some(Version::V1));
    assert_eq!(Version::negotiate(v1 + 1, u16::MAX), None);
    assert_eq!(Version::negotiate(0, 0), None);
    assert_eq!(Version::negotiate(u16::MAX, 0), None);
}

// ---------------------------------------------------------------------------------------------
// Any bytes, any message

/// A lawful message arrives as it was; cut short or made longer it does not arrive at all.
fn arrives<M: Encode + Decode<()> + PartialEq + Debug>(message: &M, cut: prop::sample::Index) {
    let mut bytes = codec::encode(message).unwrap();
    assert_eq!(&bounded(|| decode_whole::<M>(&bytes)).unwrap(), message);
    let body = &bytes[LENGTH_BYTES..];
    assert!(codec::decode::<M>(&body[..cut.index(body.len())]).is_err());
    bytes.push(0);
    assert!(codec::decode::<M>(&bytes[LENGTH_BYTES..]).is_err());
}

/// A lawful message with some of its bytes changed is refused or is another message; no panic.
fn survives<M: Encode>(message: &M, changes: &[(prop::sample::Index, u8)]) {
    let mut bytes = codec::encode(message).unwrap().split_off(LENGTH_BYTES);
    for (at, byte) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    decode_as_everything(&bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in strategies::hostile(300)) {
        decode_as_everything(&bytes);
    }

    #[test]
    fn any_length_is_bounded(bytes: [u8; LENGTH_BYTES]) {
        if let Ok(length) = codec::decode_length(bytes) {
            prop_assert!(length <= MESSAGE_BYTES_MAX);
        }
    }

    #[test]
    fn any_versions_are_negotiated(oldest: u16, newest: u16) {
        let agreed = Version::negotiate(oldest, newest).map(|version| version as u16);
        prop_assert!(agreed.is_none_or(|agreed| (oldest..=newest).contains(&agreed)));
    }

    #[test]
    fn any_frame_header_is_bounded(kind in 0..4u8, zero in 0..2u8, len: u32, short in 0..200_000u32) {
        for (len, wire) in [(len, len), (short, short), (len, 0), (short, len), (len, short)] {
            let mut bytes = [kind, zero, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            bytes[8..].copy_from_slice(&wire.to_le_bytes());
            if let Ok(header) = Header::decode(bytes) {
                prop_assert_eq!(header.encode(), bytes);
                prop_assert!(header.wire <= FRAME_BYTES_MAX && header.len >= 1);
                prop_assert!(u64::from(header.len) <= TRANSFER_BYTES_MAX);
            }
        }
    }

    #[test]
    fn any_block_is_unpacked_or_refused(bytes in strategies::hostile(2000), len: u32, short in 0..10_000u32) {
        for len in [len, short] {
            if let Ok(unpacked) = bounded(|| frame::unpack(&bytes, len)) {
                prop_assert_eq!(unpacked.len(), len as usize);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn lawful_messages_arrive(
        hello in strategies::hello(),
        hello_reply in strategies::hello_reply(),
        replica_event in strategies::replica_event(),
        authority_event in strategies::authority_event(),
        request in strategies::request(),
        reply in strategies::reply(),
        cut: prop::sample::Index,
    ) {
        arrives(&hello, cut);
        arrives(&hello_reply, cut);
        arrives(&replica_event, cut);
        arrives(&authority_event, cut);
        arrives(&request, cut);
        arrives(&reply, cut);
    }

    #[test]
    fn changed_messages_are_decoded_or_refused(
        event in strategies::replica_event(),
        request in strategies::request(),
        reply in strategies::reply(),
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..6),
    ) {
        survives(&event, &changes);
        survives(&request, &changes);
        survives(&reply, &changes);
    }

    #[test]
    fn packed_bytes_arrive(
        len in prop_oneof![1..=FRAME_BYTES_MAX, 1..600u32, Just(FRAME_BYTES_MAX)],
        pattern in prop::collection::vec(any::<u8>(), 1..3000),
        zeroes: bool,
        compress: bool,
        change: (prop::sample::Index, u8),
    ) {
        let mut bytes: Vec<u8> = match zeroes {
            true => vec![0; len as usize],
            false => pattern.into_iter().cycle().take(len as usize).collect(),
        };
        packed_arrives(&bytes, compress);
        let at = change.0.index(bytes.len());
        bytes[at] = change.1;
        packed_arrives(&bytes, compress);
    }
}

/// Packs, sends and unpacks; a packed block that was changed on its way gives no other length.
fn packed_arrives(bytes: &[u8], compress: bool) {
    let len = bytes.len() as u32;
    match frame::pack(bytes, compress) {
        Packed::Zero => assert!(bytes.iter().all(|byte| *byte == 0)),
        Packed::Data => assert!(bytes.iter().any(|byte| *byte != 0)),
        Packed::Lz4(mut block) => {
            assert!(compress && block.len() < bytes.len());
            let header = Header {
                kind: frame::Kind::Lz4,
                len,
                wire: block.len() as u32,
            };
            assert_eq!(Header::decode(header.encode()).unwrap(), header);
            assert!(frame::unpack(&block, len).unwrap() == bytes);
            let middle = block.len() / 2;
            block[middle] ^= 0x55;
            let unpacked = bounded(|| frame::unpack(&block, len));
            assert!(unpacked.is_err() || unpacked.unwrap().len() == bytes.len());
            assert!(frame::unpack(&block[..middle], len).is_err());
        }
    }
}

#[test]
fn bytes_are_packed_as_they_deserve() {
    let largest = FRAME_BYTES_MAX as usize;
    let text = "the quick brown fox jumps over the lazy dog; ".repeat(largest / 40);
    let noise: Vec<u8> = samples::noise(1)
        .map(|n| (n >> 33) as u8)
        .take(largest)
        .collect();
    for len in [1, 63, 64, 65, 511, 512, 513, 4096, 8192, 8193, largest] {
        assert!(matches!(frame::pack(&vec![0; len], false), Packed::Zero));
        assert!(matches!(frame::pack(&noise[..len], true), Packed::Data));
        let packed = frame::pack(&text.as_bytes()[..len], true);
        assert_eq!(
            matches!(packed, Packed::Lz4(_)),
            len >= 512,
            "{len} bytes of text"
        );
        assert!(matches!(
            frame::pack(&text.as_bytes()[..len], false),
            Packed::Data
        ));
    }
    assert_eq!(HEADER_BYTES, 12);
}
