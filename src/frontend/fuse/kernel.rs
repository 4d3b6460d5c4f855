//! What is said to the kernel unasked: what of its cache is stale, and what it may keep.

use super::helper::Helper;
use super::names::Names;
use crate::node::replica::{KernelCache, NodeNo};
use crate::units::ByteRange;
use crate::wire::RelPath;
use fuser::{INodeNo, Notifier};
use std::io;
use std::sync::Arc;

/// The kernel's cache above a mount.
pub(super) struct FuseKernel {
    notifier: Notifier,
    helper: Arc<Helper>,
    names: Arc<Names>,
}

impl FuseKernel {
    pub(super) fn new(notifier: Notifier, helper: Arc<Helper>, names: Arc<Names>) -> FuseKernel {
        FuseKernel {
            notifier,
            helper,
            names,
        }
    }
}

/// That the kernel does not know the node is not an error here, nor that the mount is gone.
fn note(what: &str, node: NodeNo, result: io::Result<()>) {
    if let Err(why) = result {
        tracing::debug!("{what} of node {}: {why}", node.0);
    }
}

impl KernelCache for FuseKernel {
    fn drop_attributes(&self, node: NodeNo) {
        self.names.settle();
        // A negative offset: attributes alone.
        let result = self.notifier.inval_inode(INodeNo(node.0), -1, 0);
        note("dropping attributes", node, result);
    }

    fn drop_names(&self) {
        self.names.settle();
        if let Err(why) = self.names.take_back() {
            tracing::debug!("dropping names: {why}");
        }
    }

    fn drop_pages(&self, node: NodeNo, range: ByteRange) {
        if range.is_empty() {
            return self.drop_attributes(node);
        }
        // A length of 0: to the end.
        let (offset, len) = match (i64::try_from(range.start), i64::try_from(range.len())) {
            (Ok(offset), Ok(len)) => (offset, if range.end == u64::MAX { 0 } else { len }),
            (Ok(offset), Err(_)) => (offset, 0),
            // There are no pages that far out.
            (Err(_), _) => return self.drop_attributes(node),
        };
        self.names.settle();
        let result = self.notifier.inval_inode(INodeNo(node.0), offset, len);
        note("dropping pages", node, result);
    }

    fn put_pages(&self, node: NodeNo, offset: u64, bytes: &[u8]) {
        let result = self.notifier.store(INodeNo(node.0), offset, bytes);
        note("putting pages", node, result);
    }

    fn write_back(&self, node: NodeNo, path: &RelPath) {
        note("writing back", node, self.helper.write_back(node, path));
    }
}
