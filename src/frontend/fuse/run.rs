//! How a request is run.
//!
//! A program that is killed while it waits is let go ([`super::askers`]): its request is answered with `EINTR`. What only
//! looks, and a store that is not made yet, is dropped then. What changes or opens something goes on until it is known
//! what has become of it, and is undone where it was for that program alone ([`Call`]).

use super::askers::Askers;
use super::convert::{self, errno};
use super::data::Rest;
use super::names::Names;
use super::reply;
use crate::node::replica::{Call, HandleNo, NodeNo, Replica};
use crate::wire::{Caller, Make};
use fuser::{INodeNo, ReplyEmpty, ReplyEntry, Request};
use parking_lot::Mutex;
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::task::{Context, Waker};
use tokio::runtime::Handle;

/// Answers the kernel's requests.
pub(super) struct Adapter {
    pub(super) replica: Arc<Replica>,
    runtime: Handle,
    pub(super) askers: Arc<Askers>,
    /// Copies may be lent to the kernel.
    pub(super) lends: bool,
    pub(super) names: Arc<Names>,
    /// What did not fit into the answer before, of each directory being read.
    pub(super) rests: Arc<Mutex<HashMap<HandleNo, Rest>>>,
}

impl Adapter {
    pub(super) fn new(
        replica: Arc<Replica>,
        runtime: Handle,
        askers: Askers,
        names: Arc<Names>,
    ) -> Adapter {
        Adapter {
            replica,
            runtime,
            askers: Arc::new(askers),
            lends: false,
            names,
            rests: Arc::default(),
        }
    }

    /// Runs `work`, and answers; who is killed meanwhile is answered that it was interrupted, and `work` is dropped.
    pub(super) fn run<T: Send>(
        &self,
        request: &Request,
        work: impl Future<Output = Result<T>> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) {
        let (askers, thread) = (Arc::clone(&self.askers), request.pid());
        self.start(async move {
            let outcome = tokio::select! {
                biased;
                outcome = work => outcome,
                () = askers.killed(thread) => Err(Errno::INTR),
            };
            answer(outcome);
        });
    }

    /// The same, but `work` goes on when who asked is killed; then what it gave is undone.
    pub(super) fn run_to_end<T: Send>(
        &self,
        request: &Request,
        work: impl Future<Output = Result<T>> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
        undo: impl FnOnce(&Replica, T) + Send + 'static,
    ) {
        let (askers, thread) = (Arc::clone(&self.askers), request.pid());
        let replica = Arc::clone(&self.replica);
        self.start(async move {
            let call = Call::default();
            let mut work = std::pin::pin!(call.run(work));
            tokio::select! {
                biased;
                outcome = &mut work => return answer(outcome),
                () = askers.killed(thread) => {}
            }
            call.give_up();
            answer(Err(Errno::INTR));
            if let Ok(done) = work.await {
                undo(&replica, done);
            }
        });
    }

    /// Runs `work` here as far as it goes without waiting, and the rest of it, if any, as a task.
    pub(super) fn start(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(work);
        let inside = self.runtime.enter();
        let polled = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(inside);
        if polled.is_pending() {
            self.runtime.spawn(work);
        }
    }

    /// Whether it is the helper that asks, which opens files only to have them written back.
    pub(super) fn is_helper(&self, request: &Request) -> bool {
        self.askers.is_helper(request.pid())
    }

    /// The request is one for which the kernel holds the lock on a node, which may be a directory.
    pub(super) fn locking(&self, dir: NodeNo) -> Arc<Names> {
        self.names.locked(dir);
        Arc::clone(&self.names)
    }

    pub(super) fn make(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        make: Make,
        mode: u32,
        reply: ReplyEntry,
    ) {
        let name = match convert::name(name) {
            Ok(name) => name,
            Err(error) => return reply.error(errno(error)),
        };
        let (replica, by) = (Arc::clone(&self.replica), caller(request));
        let mode = convert::permissions(mode);
        let names = self.locking(NodeNo(dir.0));
        self.run_to_end(
            request,
            async move { replica.make(NodeNo(dir.0), &name, make, mode, by).await },
            move |made| reply::entry(reply, &names, made),
            |replica, entry| replica.forget(entry.node, 1),
        );
    }

    pub(super) fn remove(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        directory: bool,
        reply: ReplyEmpty,
    ) {
        let name = match convert::name(name) {
            Ok(name) => name,
            Err(error) => return reply.error(errno(error)),
        };
        let replica = Arc::clone(&self.replica);
        self.locking(NodeNo(dir.0));
        self.run_to_end(
            request,
            async move { replica.remove(NodeNo(dir.0), &name, directory).await },
            move |removed| reply::empty(reply, removed),
            |_, ()| (),
        );
    }
}

pub(super) fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}
