//! What is kept of what sessions have told.

use super::*;
use crate::region::Tick;
use crate::store::Store as _;
use crate::store::memory::Memory;

fn moment(generation: u64, tick: u64) -> Moment {
    let tick = Tick(tick);
    Moment { generation, tick }
}

fn attr(ino: u64, size: u64) -> Attr {
    let root = Memory::new(0).root().unwrap();
    let id = FileId { ino, ..root.id };
    Attr { id, size, ..root }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn size(node: &Node) -> Option<u64> {
    node.cached_attr().map(|attr| attr.size)
}

#[test]
fn what_an_older_session_told_is_not_kept() {
    let nodes = Nodes::new(&attr(2, 0), 1);
    let root = nodes.get(ROOT).unwrap();
    let known = nodes.know(&attr(7, 0), &root, &name("known"));
    nodes.changed(attr(9, 0).id, moment(1, 1000));
    nodes.reset(2);
    let late = nodes.know(&attr(8, 0), &root, &name("late"));
    for node in [&known, &late] {
        let old = moment(1, 2000);
        assert!(node.adopt(&attr(node.id.ino, 1), old));
        node.adopt_own(&attr(node.id.ino, 1), old);
        node.learn_xattrs(b"user.a\0", old);
        assert!(root.learn_name(&name("gone"), Some(node.no), old));
        assert_eq!(size(node), None);
        assert!(node.content().is_none());
        assert!(node.cached_xattrs(|_| ()).is_none());
        assert!(matches!(
            nodes.cached(&root, &name("gone")),
            Cached::Unknown
        ));
        assert_eq!(node.seen(), Moment::start(2), "no grant of this session");

        // However low the ticks of the new one.
        node.adopt(&attr(node.id.ino, 2), moment(2, 3));
        assert_eq!((size(node), node.seen()), (Some(2), moment(2, 3)));
        node.invalidate(moment(2, 4), true);
        assert_eq!(size(node), None);
        node.adopt(&attr(node.id.ino, 3), moment(2, 3));
        assert_eq!(size(node), None, "from before the change");
    }
}
