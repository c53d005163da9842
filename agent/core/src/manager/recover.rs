//! A manager goes on alone after the majority of the managers was lost.

use crate::{
    api::{ManagerStatus, Node, Role},
    id::Id,
    store::{Change, Proposal, View},
    time::Timestamp,
};

/// What becomes of the managers when `own` makes a raft group of its own out of its state: the others are workers from
/// now on, so that one which comes back does not ask to be taken in with what it has missed. It takes up the tasks of a
/// worker, or is removed by the operator.
#[must_use]
pub fn alone(view: &View, own: &Id<Node>, status: &ManagerStatus, now: Timestamp) -> Proposal {
    let changed = view.nodes().filter_map(|node| {
        let mut next = Node::clone(node);
        if node.id == *own {
            next.spec.role = Role::Manager;
            next.manager_status = Some(status.clone());
        } else {
            next.spec.role = Role::Worker;
            next.manager_status = None;
        }
        next.meta.updated_at = now;
        let same = (node.spec.role, &node.manager_status) == (next.spec.role, &next.manager_status);
        (!same).then(|| Change::put_node(next))
    });
    Proposal::of(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{Meta, NodeSpec, NodeStatus, Reachability, node::Certificate},
        store::{Entry, Store},
    };

    fn node(entropy: u128, role: Role, addr: &str) -> Node {
        Node {
            id: Id::from_entropy(entropy),
            meta: Meta::default(),
            spec: NodeSpec {
                role,
                ..NodeSpec::default()
            },
            description: None,
            status: NodeStatus::default(),
            manager_status: (role == Role::Manager).then(|| status(addr)),
            certificate: Certificate::default(),
            networks: Vec::new(),
        }
    }

    fn status(addr: &str) -> ManagerStatus {
        ManagerStatus {
            raft_id: 1,
            leader: false,
            reachability: Reachability::Reachable,
            addr: addr.to_owned(),
        }
    }

    #[test]
    fn the_others_are_workers_and_it_has_its_new_address() {
        let mut store = Store::default();
        let nodes = [
            node(1, Role::Manager, "10.0.0.1:2377"),
            node(2, Role::Manager, "10.0.0.2:2377"),
            node(3, Role::Worker, ""),
        ];
        let proposals = vec![Proposal::of(nodes.map(Change::put_node))];
        store.apply(1, &Entry { proposals });
        let own = Id::from_entropy(1);
        let proposal = alone(&store.view(), &own, &status("10.9.0.1:2377"), Timestamp(5));
        assert_eq!(proposal.changes.len(), 2, "the worker stays as it is");
        let proposals = vec![proposal];
        store.apply(2, &Entry { proposals });
        let view = store.view();
        let shown: Vec<_> = view
            .nodes()
            .map(|node| {
                let addr = node.manager_status.as_ref().map(|it| it.addr.as_str());
                (node.role(), addr)
            })
            .collect();
        let expected = [
            (Role::Manager, Some("10.9.0.1:2377")),
            (Role::Worker, None),
            (Role::Worker, None),
        ];
        assert_eq!(shown, expected);
        let again = alone(&view, &own, &status("10.9.0.1:2377"), Timestamp(6));
        assert!(again.changes.is_empty(), "a second time changes nothing");
    }
}
