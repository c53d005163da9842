//! What managers are in the raft group, as nodes show it.

use crate::{
    api::{Node, Reachability},
    id::Id,
    store::{Change, Proposal, View},
    time::Timestamp,
};

/// Marks the leader, and nobody else, as leading. Each proposal is independent of the others.
#[must_use]
pub fn mark_leader(view: &View, leader: &Id<Node>, now: Timestamp) -> Vec<Proposal> {
    let marked = view.nodes().filter_map(|node| {
        let status = node.manager_status.as_ref()?;
        let leads = node.id == *leader;
        // Who leads is reached by a majority.
        let reached = !leads || status.reachability == Reachability::Reachable;
        if status.leader == leads && reached {
            return None;
        }
        let mut next = Node::clone(node);
        let status = next.manager_status.get_or_insert_default();
        status.leader = leads;
        if leads {
            status.reachability = Reachability::Reachable;
        }
        next.meta.updated_at = now;
        Some(Proposal::of([Change::put_node(next)]))
    });
    marked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{ManagerStatus, Meta, NodeSpec, NodeStatus, node::Certificate},
        store::{Entry, Store},
    };

    fn manager(entropy: u128, leader: bool) -> Node {
        Node {
            id: Id::from_entropy(entropy),
            meta: Meta::default(),
            spec: NodeSpec::default(),
            description: None,
            status: NodeStatus::default(),
            manager_status: Some(ManagerStatus {
                leader,
                ..ManagerStatus::default()
            }),
            certificate: Certificate::default(),
            networks: Vec::new(),
        }
    }

    #[test]
    fn a_new_leader_takes_the_mark_from_the_old_one() {
        let mut store = Store::default();
        let put = [manager(1, true), manager(2, false), manager(3, false)].map(Change::put_node);
        store.apply(
            1,
            &Entry {
                proposals: vec![Proposal::of(put)],
            },
        );
        let leader = Id::from_entropy(2);
        let proposals = mark_leader(&store.view(), &leader, Timestamp(1));
        assert_eq!(proposals.len(), 2, "the third one is right already");
        let results = store.apply(2, &Entry { proposals });
        assert!(results.iter().all(Result::is_ok));
        let view = store.view();
        let leads = |node: &Node| node.manager_status.as_ref().is_some_and(|it| it.leader);
        let leaders: Vec<_> = view.nodes().filter(|node| leads(node)).collect();
        assert_eq!(leaders.len(), 1);
        assert_eq!(leaders[0].id, leader);
        assert!(mark_leader(&view, &leader, Timestamp(2)).is_empty());
    }
}
