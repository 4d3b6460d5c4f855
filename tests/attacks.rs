//! Nobody gets in, and nobody who is let in keeps others out.
//!
//! The server is a program of its own with an honest mount beside; attackers are clients that hold a key which is
//! let in (unless the attack is about keys) and send what they like. While each attack goes on, the mount is served
//! (what it writes arrives, what is new is found), the server's own memory (RssAnon) has grown by no more than the
//! test says, and afterwards it has as many descriptors as before. Tests in `src/` are of one part, without a mount.
//!
//! | attack | what happens | test |
//! |---|---|---|
//! | a key nobody let in | refused after the handshake, logged; nothing it says is read | `limits::strangers_are_told_nothing_however_many`, `tests/keys.rs` |
//! | a key that is only claimed, none at all | the handshake fails | `src/transport/tls.rs` |
//! | a server with another key, or one that only claims it | the client sends nothing; a changed key is told as one | `src/transport/tests.rs`, `tls.rs` |
//! | handshakes that never end, noise on the port | bounded, addresses are proved; the rest is let in | `src/transport/tests.rs` |
//! | a file of keys that others can change or replace | lets nobody in but the server's own key | `src/transport/trust.rs` |
//! | an option before a key that does not exist | that line lets nobody in | `rights::what_a_key_is_let_in_for_…`, `tests/keys.rs`, `src/transport/grant.rs` |
//! | an identity that others can read | refused, as ssh does | `rights::what_memfs_keeps_is_nobody_elses` |
//! | files of others below 0700, keys not 0600 | made so, and refused where they are not | `rights::what_memfs_keeps_is_nobody_elses`, `tests/cache.rs` |
//! | datagrams sent twice, late, garbled on the way | QUIC drops them; every byte arrives once | `garbage::what_is_garbled_or_sent_again_…` |
//! | requests sent twice over new connections | applied once | `src/node/authority/tests/sessions.rs` |
//! | requests before the hello, half a hello, silence | never answered; closed, at the latest after 10 s | `garbage::without_a_hello_nothing_is_answered` |
//! | a second hello, as an event or a request | closed | `garbage::a_second_hello_ends_the_connection` |
//! | huge lengths, lengths that lie, noise | closed before anything is allocated | `garbage::rubbish_ends_…`, `src/node/authority/tests/abuse.rs`, `tests/wire.rs` |
//! | frames that lie; bombs (LZ4 that unpacks to more) | closed, nothing is applied | `garbage::frames_that_lie_…`, `abuse.rs` |
//! | a push in crumbs | closed | `abuse.rs` |
//! | names with `..`, `/`, NUL | no message: closed | `paths::names_that_are_none_…`, `src/wire/name.rs` |
//! | links out of the tree, links that are made to lead out | never followed | `paths::names_that_are_none_…`, `src/store/directory/tests/beneath.rs` |
//! | a folder swapped for a link while requests go through it | `ESTALE` or the right file | `paths::a_folder_that_becomes_a_link_…`, `beneath.rs` |
//! | ranges beyond the file, backwards, overlapping, too long | nothing, or `EINVAL`, `EFBIG`, `ENXIO` | `paths::ranges_beyond_the_file_get_nothing` |
//! | a read-only export, client or key that changes something | `EROFS`, every kind of change | `rights::who_may_only_read_changes_nothing`, `src/node/authority/tests/metadata.rs` |
//! | ids and handles of what is outside the client's part | `ESTALE`, `EBADF` | `rights::who_sees_a_part_reaches_nothing_else`, `rights::a_friend_mounts_…` |
//! | ids and handles that were guessed | the same | `garbage::what_is_anothers_is_out_of_reach` |
//! | another's client id, handle, lease; goodbye for others | refused; counts for who says it | `garbage::what_is_anothers_…`, `abuse.rs` |
//! | a key that is let in for less than its session was | holds from its next connection on | `rights::what_a_key_is_let_in_for_…` |
//! | too many connections, sessions | 32 and 256 to a key, then closed and refused | `limits::one_key_does_not_take_all_connections` |
//! | a part of the tree for each of many sessions, to use up inotify | 48 to a key, then refused | `limits::one_key_does_not_watch_everything` |
//! | connections made and dropped again and again | nothing stays but the one session | `limits::who_comes_again_and_again_…` |
//! | too many open files | `EMFILE` at half of what there are | `limits::one_key_does_not_take_all_descriptors` |
//! | all streams at once, requests that never end | 16 MiB of them are received, the rest waits | `limits::requests_that_never_end_…` |
//! | pushes announced of which nothing comes, or a byte | only their session waits, 60 s | `limits::pushes_of_which_nothing_comes_…` |
//! | answers (pulls, listings, hashes) that nobody reads | a bounded part is made, the rest waits; the lease ends | `limits::answers_that_nobody_reads_…` |
//! | a mount that never takes in what it is told | loses its lease (10 s), others go on | `limits::who_never_takes_anything_in_…`, `src/node/authority/tests/coherence.rs` |
//! | hashes of huge ranges, many at once | `EINVAL` above 4 MiB; one at a time to a session, half of the processors | `limits::hashes_of_huge_ranges_…` |
//! | learned orders of rubbish | cut to the file, bounded | `limits::orders_of_rubbish_are_bounded` |

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says what it expects by failing"
)]

mod common;

#[path = "attacks/attacker.rs"]
mod attacker;
#[path = "attacks/garbage.rs"]
mod garbage;
#[path = "attacks/limits.rs"]
mod limits;
#[path = "attacks/paths.rs"]
mod paths;
#[path = "attacks/rights.rs"]
mod rights;
