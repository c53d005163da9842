//! How far the nodes have come in making the mesh true.

use std::collections::BTreeMap;

/// Names one open `Mesh.Watch` stream of this manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatcherId(pub u64);

/// The watchers of one manager. A task that leaves is stopped once every node has heard that it left,
/// so what counts is the version that all of them have made true.
#[derive(Debug, Clone, Default)]
pub struct Watchers {
    watchers: BTreeMap<WatcherId, Watcher>,
    next: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Watcher {
    /// The last version that this node's map was computed for.
    looked: u64,
    /// The last version that was sent and is not known to be done.
    waiting: Option<u64>,
    /// The last version that the node's kernel equals; none before its first word.
    applied: Option<u64>,
}

impl Watcher {
    /// Up to this version the node's kernel is what its map says.
    fn clean(self) -> u64 {
        match (self.applied, self.waiting) {
            (None, _) => 0,
            (Some(_), None) => self.looked,
            (Some(applied), Some(_)) => applied.min(self.looked),
        }
    }
}

impl Watchers {
    /// A stream was opened. Until its first [`Watchers::applied`] it holds the settled version back.
    pub fn open(&mut self) -> WatcherId {
        let id = WatcherId(self.next);
        self.next += 1;
        self.watchers.insert(id, Watcher::default());
        id
    }

    /// A stream has ended: its node is not waited for.
    pub fn close(&mut self, id: WatcherId) {
        self.watchers.remove(&id);
    }

    /// The map of a watcher's node was computed for this version, and was sent unless it was the same.
    pub fn looked(&mut self, id: WatcherId, version: u64, sent: bool) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        watcher.looked = watcher.looked.max(version);
        // A node that has this version from an earlier stream says nothing of it again.
        if sent && watcher.applied.is_none_or(|applied| applied < version) {
            watcher.waiting = Some(version);
        }
    }

    /// The watcher's node says that its kernel equals this version. It also says so when a stream opens,
    /// of what it has from an earlier one.
    pub fn applied(&mut self, id: WatcherId, version: u64) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        watcher.applied = watcher.applied.max(Some(version));
        watcher.waiting = watcher.waiting.filter(|waiting| *waiting > version);
    }

    /// The highest version that every watcher's node has made true; `None` without watchers.
    #[must_use]
    pub fn settled(&self) -> Option<u64> {
        self.watchers.values().map(|watcher| watcher.clean()).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_is_what_the_slowest_has_done() {
        let mut watchers = Watchers::default();
        assert_eq!(watchers.settled(), None);
        let (a, b) = (watchers.open(), watchers.open());
        watchers.looked(a, 7, true);
        watchers.looked(b, 7, true);
        watchers.applied(a, 7);
        assert_eq!(watchers.settled(), Some(0));
        watchers.applied(b, 7);
        assert_eq!(watchers.settled(), Some(7));
    }

    #[test]
    fn a_version_that_changes_nothing_for_a_node_needs_no_word_of_it() {
        let mut watchers = Watchers::default();
        let a = watchers.open();
        watchers.looked(a, 3, true);
        watchers.looked(a, 4, false);
        assert_eq!(watchers.settled(), Some(0), "version 3 is still under way");
        watchers.applied(a, 3);
        assert_eq!(watchers.settled(), Some(4));
        watchers.looked(a, 5, false);
        assert_eq!(watchers.settled(), Some(5));
    }

    #[test]
    fn a_node_that_has_the_version_already_is_not_waited_for() {
        for applied_first in [true, false] {
            let mut watchers = Watchers::default();
            let a = watchers.open();
            if applied_first {
                watchers.applied(a, 7);
                assert_eq!(watchers.settled(), Some(0));
            }
            watchers.looked(a, 7, true);
            if !applied_first {
                watchers.applied(a, 7);
            }
            assert_eq!(watchers.settled(), Some(7));
            watchers.looked(a, 8, true);
            assert_eq!(watchers.settled(), Some(7));
        }
    }

    #[test]
    fn who_has_gone_is_not_waited_for() {
        let mut watchers = Watchers::default();
        let (a, b) = (watchers.open(), watchers.open());
        watchers.looked(a, 9, true);
        watchers.applied(a, 9);
        watchers.close(b);
        assert_eq!(watchers.settled(), Some(9));
    }
}
