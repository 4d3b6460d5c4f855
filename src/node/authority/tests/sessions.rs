//! Being let in, coming again, and leaving.

use super::client::*;
use crate::node::authority::AuthorityOptions;
use crate::store::Errno;
use crate::store::memory::Memory;
use crate::wire::*;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_comes_again_finds_everything_as_it_was() {
    let server = Server::in_memory();
    let first = server.client(1).await;
    assert!(!first.welcome.resumed && first.welcome.lease_ms == 10_000);
    let (handle, file) = first.create("file").await;
    first.push(handle, 0, b"bytes").await.unwrap();
    let second = server.client(1).await;
    assert!(second.welcome.resumed && second.welcome.boot == first.welcome.boot);
    first.connection.closed().await;
    assert_eq!(second.bytes(handle, 0, 5).await, b"bytes");
    let other = server.client(2).await;
    let (writing, _) = other.open(&file, Access::Write).await;
    let (pushed, taken) = tokio::join!(other.push(writing, 0, b"x"), second.take());
    assert!(
        pushed.is_ok() && taken.0 == file.id,
        "its subscriptions hold"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_to_a_lost_connection_is_told_again() {
    let server = Server::leasing(Duration::from_secs(3600));
    let writer = server.client(1).await;
    let (handle, file) = writer.create("file").await;
    let reader = server.client(2).await;
    reader.look_up(&reader.root(), "file").await.unwrap();
    let (pushed, _again) = tokio::join!(writer.push(handle, 0, b"x"), async {
        let (change, ..) = reader.stale().await;
        let again = server.client(2).await;
        assert!(again.welcome.resumed);
        let (same, id, ..) = again.stale().await;
        assert_eq!((same, id), (change, file.id));
        again.tell(ReplicaEvent::Taken { change }).await;
        again
    });
    pushed.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_applied_once() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let make = |exclusive| ChangeRequest::Create {
        dir: client.root(),
        name: name("file"),
        mode: 0o600,
        exclusive,
        by: BY,
    };
    let sequence = client.sequence();
    let request = Request::Change(sequence, make(true));
    let first = client.exchange(request.clone()).await;
    let (handle, made) = opened(first.result.clone());
    assert_eq!(client.exchange(request.clone()).await, first);
    let again = server.client(1).await;
    assert_eq!(
        again.exchange(request.clone()).await,
        first,
        "over another connection"
    );

    let extent = |end| vec![Extent { start: 0, end }];
    let push = client.sequence();
    let (_, pushed) = again.push_all(push, handle, extent(3), b"old").await;
    again.push(handle, 0, b"new").await.unwrap();
    let (_, repeated) = again.push_all(push, handle, extent(3), b"old").await;
    assert_eq!(repeated, pushed);
    assert_eq!(
        again.bytes(handle, 0, 3).await,
        b"new",
        "the repetition was not applied"
    );

    again.read(ReadRequest::Close { handle }).await.unwrap();
    let (reopened, attr) = opened(again.exchange(request).await.result);
    assert!(
        reopened != handle && attr.id == made.id,
        "its handle is gone: another one"
    );
    assert_eq!(again.bytes(reopened, 0, 3).await, b"new");

    // It has said itself that it has the answer.
    let answered = Sequence {
        answered: sequence.number + 1,
        ..client.sequence()
    };
    let fine = Request::Change(answered, make(false));
    again.exchange(fine).await.result.unwrap();
    let late = again.exchange(Request::Change(sequence, make(true))).await;
    assert_eq!(
        late.result,
        Err(Errno::IO.raw_os_error()),
        "not applied again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_waits_for_the_first_to_be_done() {
    let server = Server::leasing(Duration::from_secs(3600));
    let writer = server.client(1).await;
    let (handle, _) = writer.create("file").await;
    let reader = server.client(2).await;
    reader.look_up(&reader.root(), "file").await.unwrap();
    let sequence = writer.sequence();
    let push = || writer.push_all(sequence, handle, vec![Extent { start: 0, end: 1 }], b"x");
    let (first, second, ()) = tokio::join!(push(), push(), async {
        reader.take().await;
        assert_eq!(reader.settle().await, []);
    });
    assert_eq!(first, second);
    assert!(first.1.result.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_goes_on_when_its_connection_is_gone() {
    let server = Server::leasing(Duration::from_secs(3600));
    let writer = server.client(1).await;
    let (handle, _) = writer.create("file").await;
    let reader = server.client(2).await;
    reader.look_up(&reader.root(), "file").await.unwrap();
    let sequence = writer.sequence();
    let push = |client| {
        let extents = vec![Extent { start: 0, end: 1 }];
        Client::push_all(client, sequence, handle, extents, b"x")
    };
    {
        let mut lost = std::pin::pin!(push(&writer));
        tokio::select! {
            _ = &mut lost => panic!("the reader has not taken it in"),
            event = reader.stale() => assert_eq!(event.3, Stale::Bytes { start: 0, end: 1 }),
        }
    }
    writer.connection.close(0u32.into(), b"");
    let again = server.client(1).await;
    let (repeated, ()) = tokio::join!(push(&again), async {
        assert_eq!(reader.settle().await, [], "applied once, told once");
        reader.tell(ReplicaEvent::Taken { change: 2 }).await;
        reader.tell(ReplicaEvent::Taken { change: 1 }).await;
    });
    assert!(repeated.1.result.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_belongs_to_one_key_and_one_subtree() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let make = ChangeRequest::Make {
        dir: client.root(),
        name: name("dir"),
        make: Make::Directory,
        mode: 0o700,
        by: BY,
    };
    client.change(make).await.unwrap();
    let stolen = server.hello(&server.other, hello(1)).await;
    assert_eq!(stolen.err(), Some(Refusal::Client));
    let at = |path: &str, number| Hello {
        subtree: RelPath::new(path).unwrap(),
        ..hello(number)
    };
    let moved = server.hello(&server.key, at("dir", 1)).await;
    assert_eq!(
        moved.err(),
        Some(Refusal::Subtree(Errno::INVAL.raw_os_error()))
    );
    let missing = server.hello(&server.key, at("dir/x", 2)).await;
    assert_eq!(
        missing.err(),
        Some(Refusal::Subtree(Errno::NOENT.raw_os_error()))
    );
    let inside = server.hello(&server.other, at("dir", 2)).await.unwrap();
    assert!(inside.list(&inside.root(), 0).await.is_empty());
    assert!(
        client.list(&client.root(), 0).await.len() == 1,
        "it was not disturbed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_have_to_meet() {
    let server = Server::in_memory();
    let (oldest, newest) = (Version::OLDEST as u16, Version::NEWEST as u16);
    let speaking = |oldest, newest| Hello {
        oldest,
        newest,
        ..hello(1)
    };
    for (from, to) in [(newest + 1, newest + 9), (0, oldest - 1), (newest + 1, 0)] {
        let refused = server.hello(&server.key, speaking(from, to)).await;
        assert_eq!(refused.err(), Some(Refusal::Version { oldest, newest }));
    }
    let future = server
        .hello(&server.key, speaking(0, u16::MAX))
        .await
        .unwrap();
    assert_eq!(future.welcome.version, newest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_welcome_that_was_not_heard_is_said_again() {
    let server = Server::leasing(Duration::from_millis(100));
    let writer = server.client(1).await;
    let (handle, _) = writer.create("file").await;
    let reader = server.client(2).await;
    reader.look_up(&reader.root(), "file").await.unwrap();
    writer.push(handle, 0, b"x").await.unwrap();
    reader.connection.closed().await;
    for _ in 0..2 {
        // It goes before it has used the connection: maybe it has not even got the welcome.
        assert!(!server.client(2).await.welcome.resumed);
    }
    let heard = server.client(2).await;
    heard.settle().await;
    assert!(server.client(2).await.welcome.resumed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_goodbye_or_some_time_after_its_connection() {
    let options = AuthorityOptions {
        lease: Duration::from_millis(10),
        linger: Duration::from_millis(20),
        ..AuthorityOptions::default()
    };
    let server = Server::new(Memory::new(1 << 20), options);
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    client.tell(ReplicaEvent::Goodbye).await;
    client.connection.closed().await;
    let client = server.client(1).await;
    assert!(!client.welcome.resumed);
    assert!(
        client.push(handle, 0, b"x").await.is_err(),
        "its files were closed"
    );
    client.connection.close(0u32.into(), b"");
    // Each attempt that comes too early is resumed, and puts the end off.
    let mut pause = Duration::from_millis(20);
    loop {
        tokio::time::sleep(pause).await;
        pause *= 2;
        let again = server.client(1).await;
        if !again.welcome.resumed {
            break;
        }
        again.connection.close(0u32.into(), b"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn once_means_one_replica() {
    let once = |patience| AuthorityOptions {
        once: Some(patience),
        ..AuthorityOptions::default()
    };
    let patient = once(Duration::from_secs(3600));
    let server = Server::new(Memory::new(1 << 20), patient);
    let client = server.client(1).await;
    let second = server.hello(&server.key, hello(2)).await;
    assert_eq!(second.err(), Some(Refusal::Full));
    client.connection.close(0u32.into(), b"lost");
    let again = server.client(1).await;
    again.create("file").await;
    again.tell(ReplicaEvent::Goodbye).await;
    again.connection.closed().await;
    server.serving.await.unwrap();
    assert!(server.listener.accept().await.is_none());

    let lonely = Server::new(Memory::new(1 << 20), once(Duration::from_millis(1)));
    lonely.serving.await.unwrap();

    let dropped = AuthorityOptions {
        lease: Duration::from_millis(1),
        linger: Duration::from_millis(1),
        ..once(Duration::from_secs(3600))
    };
    let server = Server::new(Memory::new(1 << 20), dropped);
    server
        .client(1)
        .await
        .connection
        .close(0u32.into(), b"lost");
    server.serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_listener_ends_the_service() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    server.listener.close();
    client.connection.closed().await;
    server.serving.await.unwrap();
}

/// As a request of an earlier run would be, should its number be used again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_means_the_file_that_was_opened_and_no_other() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, file) = client.create("file").await;
    let (other, _) = client.create("other").await;
    client.push(handle, 0, &[7; 8192]).await.unwrap();
    let mixed = HandleId {
        file: other.file,
        ..handle
    };
    let refused = Err(Errno::BADF.raw_os_error());
    let punch = |handle| ChangeRequest::Allocate {
        handle,
        start: 0,
        end: 4096,
        mode: Allocate::PunchHole,
    };
    let sync = |handle| ChangeRequest::Sync {
        handle,
        data_only: true,
    };
    assert_eq!(client.change(punch(mixed)).await, refused);
    assert_eq!(client.change(sync(mixed)).await, refused);
    assert!(client.push(mixed, 0, b"x").await.is_err());
    let close = ReadRequest::Close { handle: mixed };
    assert_eq!(client.read(close).await, refused);
    assert_eq!(client.bytes(handle, 0, 8192).await, [7; 8192]);
    assert_eq!(handle.file, file.id);
    assert!(client.change(punch(handle)).await.is_ok());
}
