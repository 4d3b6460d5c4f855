//! Locks, asked for in raw messages.

use super::client::*;
use crate::region::{LOCK_WAITS_MAX, LockKey, LockMode, LockRun, LockSpace};
use crate::store::Errno;
use crate::transport::stream;
use crate::wire::*;
use std::time::Duration;

const KEY: LockKey = LockKey {
    space: LockSpace::Fcntl,
    owner: 1,
};

fn run(start: u64, end: u64, mode: LockMode) -> LockRun {
    LockRun { start, end, mode }
}

fn lock(handle: HandleId, run: LockRun, wait: bool) -> ReadRequest {
    ReadRequest::Lock {
        handle,
        key: KEY,
        pid: 7,
        run,
        wait,
    }
}

/// Two clients with a file open, the first holds all of it.
async fn held(server: &Server) -> (Client, HandleId, Client, HandleId, FileId) {
    let (a, b) = (server.client(1).await, server.client(2).await);
    let (own, file) = a.create("file").await;
    let (other, _) = b.open(&file, Access::Read).await;
    let whole = run(0, u64::MAX, LockMode::Exclusive);
    assert_eq!(a.read(lock(own, whole, false)).await, Ok(Answer::Done));
    (a, own, b, other, file.id)
}

const AGAIN: Result<Answer, i32> = Err(Errno::AGAIN.raw_os_error());

#[tokio::test(flavor = "multi_thread")]
async fn one_who_waits_is_answered_in_the_end() {
    let server = Server::in_memory();
    let (a, _, b, other, id) = held(&server).await;
    let want = lock(other, run(5, 6, LockMode::Shared), true);
    let (mut send, mut receive) = b.ask(&Request::Read(want.clone())).await;
    let (_kept, mut late) = b.ask(&Request::Read(want)).await;
    // No longer wanted: answered at once.
    send.finish().unwrap();
    let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
    assert_eq!(reply.result, Err(Errno::INTR.raw_os_error()));
    let unlock = ReadRequest::Unlock {
        id,
        key: KEY,
        start: 0,
        end: 10,
    };
    assert_eq!(a.read(unlock).await, Ok(Answer::Done));
    let reply: Reply = stream::receive(&mut late).await.unwrap().unwrap();
    assert_eq!(reply.result, Ok(Answer::Done));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused() {
    let server = Server::in_memory();
    let (a, own, b, other, id) = held(&server).await;
    for run in [
        run(5, 5, LockMode::Shared),
        run(u64::MAX, 0, LockMode::Shared),
    ] {
        let answer = a.read(lock(own, run, true)).await;
        assert_eq!(answer, Err(Errno::INVAL.raw_os_error()));
    }
    let one = run(0, 1, LockMode::Shared);
    let answer = b.read(lock(own, one, false)).await;
    assert_eq!(answer, Err(Errno::BADF.raw_os_error()), "another's handle");
    // Another's lock is not given up, and nobody claims what it never held.
    let unlock = ReadRequest::Unlock {
        id,
        key: KEY,
        start: 0,
        end: u64::MAX,
    };
    assert_eq!(b.read(unlock).await, Ok(Answer::Done));
    assert_eq!(b.read(lock(other, one, false)).await, AGAIN);
    a.tell(ReplicaEvent::Goodbye).await;
    a.connection.closed().await;
    let claim = ReadRequest::ReclaimLocks {
        handle: other,
        key: KEY,
        pid: 7,
        runs: vec![one],
    };
    assert_eq!(
        b.read(claim).await,
        Err(Errno::IO.raw_os_error()),
        "free, but it may have been somebody's"
    );
    assert_eq!(
        b.read(lock(other, one, false)).await,
        Ok(Answer::Done),
        "freed by the goodbye"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_are_bounded_and_keep_nobody_from_being_served() {
    let server = Server::in_memory();
    let (_a, _, b, other, _) = held(&server).await;
    let want = lock(other, run(5, 6, LockMode::Shared), true);
    // Of so many and one more, one is refused, whichever comes last.
    let (told, mut refused) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..=LOCK_WAITS_MAX {
        let (send, mut receive) = b.ask(&Request::Read(want.clone())).await;
        let told = told.clone();
        tokio::spawn(async move {
            let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
            let _ = told.send(reply.result); // the test may be over
            drop(send);
        });
    }
    let refused = refused.recv().await.unwrap();
    assert_eq!(refused, Err(Errno::NOLCK.raw_os_error()));
    assert!(b.look_up(&b.root(), "file").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_free_when_the_lease_has_run_out() {
    let server = Server::leasing(Duration::from_millis(300));
    let (a, own, b, other, _) = held(&server).await;
    let whole = run(0, u64::MAX, LockMode::Exclusive);
    // Never renewed: waited for no longer than its lease.
    let (_kept, mut receive) = b.ask(&Request::Read(lock(other, whole, true))).await;
    let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
    assert_eq!(reply.result, Ok(Answer::Done));
    a.connection.closed().await;
    let again = server.client(1).await;
    assert!(!again.welcome.resumed, "it is told that something is lost");
    let _ = own;
}
