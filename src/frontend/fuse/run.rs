//! How a request is run.

use super::convert::{self, errno};
use super::data::Rest;
use super::names::Names;
use super::reply;
use crate::node::replica::{HandleNo, NodeNo, Replica};
use crate::wire::{Caller, Make};
use fuser::{INodeNo, ReplyEmpty, ReplyEntry, Request};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::task::{Context, Waker};
use tokio::runtime::Handle;

/// Answers the kernel's requests.
pub(super) struct Adapter {
    pub(super) replica: Arc<Replica>,
    runtime: Handle,
    /// Process number of [`super::Helper`].
    helper: u32,
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
        helper: u32,
        names: Arc<Names>,
    ) -> Adapter {
        Adapter {
            replica,
            runtime,
            helper,
            lends: false,
            names,
            rests: Arc::default(),
        }
    }

    /// Runs `work` here as far as it goes without waiting, and the rest of it, if any, as a task.
    pub(super) fn run(&self, work: impl Future<Output = ()> + Send + 'static) {
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
        request.pid() == self.helper
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
        self.run(async move {
            let made = replica.make(NodeNo(dir.0), &name, make, mode, by).await;
            reply::entry(reply, &names, made);
        });
    }

    pub(super) fn remove(&self, dir: INodeNo, name: &OsStr, directory: bool, reply: ReplyEmpty) {
        let name = match convert::name(name) {
            Ok(name) => name,
            Err(error) => return reply.error(errno(error)),
        };
        let replica = Arc::clone(&self.replica);
        self.locking(NodeNo(dir.0));
        self.run(async move {
            reply::empty(reply, replica.remove(NodeNo(dir.0), &name, directory).await);
        });
    }
}

pub(super) fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}
