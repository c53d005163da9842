//! Roles of nodes: who may be a manager, and what the raft group and the store must say of each other.
//!
//! `NodeSpec::role` is what the operator wants, the raft group what there is. A node that shall be a manager asks to be
//! taken into the group once it has a manager's certificate ([`may_take_part`]); one that shall be a worker is taken out
//! of the group first ([`surplus`]), and only then told to become one ([`Node::role`]). Level-triggered: the leader
//! asks again after each commit and each change of the group.

use std::collections::BTreeMap;

use crate::{
    api::{ApiError, ManagerStatus, Node, Reachability, Role},
    id::Id,
    store::{Change, Proposal, View},
    time::Timestamp,
};

/// More managers only make each write slower.
pub const MAX_MANAGERS: usize = 7;

/// The raft group as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// The leader's node.
    pub leader: Option<Id<Node>>,
    /// Every member, by node; those that are catching up as well.
    pub members: BTreeMap<Id<Node>, Member>,
}

/// A member of the raft group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// Its id in the group.
    pub raft_id: u64,
    /// `address:port` of its 2377.
    pub addr: String,
    /// Whether the leader reaches it; unknown before it was tried.
    pub reachability: Reachability,
}

/// Makes what nodes show of the group equal to the group. Each proposal is independent of the others.
#[must_use]
pub fn marks(view: &View, group: &Group, now: Timestamp) -> Vec<Proposal> {
    let marked = view.nodes().filter_map(|node| {
        let wanted = group
            .members
            .get(&node.id)
            .map(|member| status(node, member, group.leader.as_ref()));
        if node.manager_status == wanted {
            return None;
        }
        let mut next = Node::clone(node);
        next.manager_status = wanted;
        next.meta.updated_at = now;
        Some(Proposal::of([Change::put_node(next)]))
    });
    marked.collect()
}

fn status(node: &Node, member: &Member, leader: Option<&Id<Node>>) -> ManagerStatus {
    let leads = leader == Some(&node.id);
    let before = node.manager_status.as_ref().map(|it| it.reachability);
    let reachability = match member.reachability {
        // Who leads is reached by a majority.
        _ if leads => Reachability::Reachable,
        // What an earlier leader saw is better than nothing.
        Reachability::Unknown => before.unwrap_or(Reachability::Reachable),
        seen @ (Reachability::Reachable | Reachability::Unreachable) => seen,
    };
    ManagerStatus {
        raft_id: member.raft_id,
        leader: leads,
        reachability,
        addr: member.addr.clone(),
    }
}

/// A member that shall not be one any more: it was demoted, or its node is gone. One at a time, the leader last.
#[must_use]
pub fn surplus(view: &View, group: &Group) -> Option<u64> {
    let is_surplus = |node: &Id<Node>| {
        view.node(node)
            .is_none_or(|node| node.spec.role == Role::Worker)
    };
    let mut surplus: Vec<_> = group
        .members
        .iter()
        .filter(|(node, _)| is_surplus(node))
        .collect();
    surplus.sort_by_key(|(node, _)| group.leader.as_ref() == Some(*node));
    surplus.first().map(|(_, member)| member.raft_id)
}

/// Whether a node may act as a manager: an old certificate alone does not make it one.
///
/// # Errors
/// `Forbidden`, naming the node.
pub fn may_take_part(view: &View, node: &Id<Node>) -> Result<(), ApiError> {
    match view.node(node).map(|node| node.spec.role) {
        Some(Role::Manager) => Ok(()),
        Some(Role::Worker) => Err(ApiError::Forbidden(format!(
            "node {node} is not a manager: promote it first"
        ))),
        None => Err(ApiError::Forbidden(format!(
            "node {node} is not of this swarm"
        ))),
    }
}

/// Whether a manager's certificate that was signed at `issued` is one that its node had before it was demoted. One that
/// is newer than what this view knows of the node is believed: the view may be that of a manager that was away.
#[must_use]
pub fn is_former(view: &View, node: &Id<Node>, issued: Timestamp) -> bool {
    view.node(node)
        .is_some_and(|node| node.role() == Role::Worker && issued <= node.meta.updated_at)
}

/// Whether one more manager may be made.
///
/// # Errors
/// `Precondition` when there are [`MAX_MANAGERS`].
pub fn check_promotion(view: &View) -> Result<(), ApiError> {
    let managers = view.nodes().filter(|node| node.spec.role == Role::Manager);
    match managers.count() < MAX_MANAGERS {
        true => Ok(()),
        false => Err(ApiError::Precondition(format!(
            "the swarm has {MAX_MANAGERS} managers, which is the most it can have: demote one first"
        ))),
    }
}

/// Whether the group can do without a manager: it is not the last one, and of those that stay a majority is reached.
///
/// # Errors
/// `Precondition`, in swarmkit's words.
pub fn check_demotion(view: &View, leaving: &Id<Node>) -> Result<(), ApiError> {
    let others = view
        .nodes()
        .filter(|node| node.id != *leaving && node.spec.role == Role::Manager);
    let others: Vec<_> = others.collect();
    if others.is_empty() {
        return Err(ApiError::Precondition(
            "attempting to demote the last manager of the swarm".to_owned(),
        ));
    }
    let members = others
        .iter()
        .filter_map(|node| node.manager_status.as_ref());
    let (mut count, mut reached) = (0, 0);
    for member in members {
        count += 1;
        reached += usize::from(member.reachability == Reachability::Reachable);
    }
    if reached < count / 2 + 1 {
        return Err(ApiError::Precondition(format!(
            "can't remove member from the raft: this would result in a loss of quorum ({reached} of the {count} other managers are reachable)"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{Meta, NodeSpec, NodeStatus, node::Certificate},
        store::{Entry, Store},
    };

    fn node(entropy: u128, role: Role) -> Node {
        Node {
            id: Id::from_entropy(entropy),
            meta: Meta::default(),
            spec: NodeSpec {
                role,
                ..NodeSpec::default()
            },
            description: None,
            status: NodeStatus::default(),
            manager_status: None,
            certificate: Certificate::default(),
            networks: Vec::new(),
        }
    }

    fn group(leader: u128, members: &[(u128, Reachability)]) -> Group {
        let member = |(entropy, reachability): &(u128, Reachability)| {
            let member = Member {
                raft_id: u64::try_from(*entropy).unwrap(),
                addr: String::new(),
                reachability: *reachability,
            };
            (Id::from_entropy(*entropy), member)
        };
        Group {
            leader: Some(Id::from_entropy(leader)),
            members: members.iter().map(member).collect(),
        }
    }

    /// A store of these nodes that shows this group.
    fn store(nodes: Vec<Node>, group: &Group) -> Store {
        let mut store = Store::default();
        let put = nodes.into_iter().map(Change::put_node);
        let proposals = vec![Proposal::of(put)];
        store.apply(1, &Entry { proposals });
        let proposals = marks(&store.view(), group, Timestamp(1));
        store.apply(2, &Entry { proposals });
        store
    }

    use Reachability::{Reachable, Unknown, Unreachable};
    use Role::{Manager, Worker};

    fn managers(roles: &[Role]) -> Vec<Node> {
        (1..).zip(roles).map(|(id, role)| node(id, *role)).collect()
    }

    #[test]
    fn nodes_show_the_group_and_nothing_else() {
        let group_of_three = group(1, &[(1, Unknown), (2, Reachable), (3, Unreachable)]);
        let mut store = store(
            managers(&[Manager, Manager, Manager, Worker]),
            &group_of_three,
        );
        let view = store.view();
        let shown: Vec<_> = view
            .nodes()
            .map(|it| {
                it.manager_status
                    .as_ref()
                    .map(|it| (it.leader, it.reachability))
            })
            .collect();
        let expected = [
            Some((true, Reachable)),
            Some((false, Reachable)),
            Some((false, Unreachable)),
            None,
        ];
        assert_eq!(shown, expected);
        assert!(marks(&view, &group_of_three, Timestamp(2)).is_empty());
        // The next leader has not tried the third one, and does not know the first one any more.
        let next = group(2, &[(2, Unknown), (3, Unknown)]);
        let proposals = marks(&view, &next, Timestamp(3));
        assert_eq!(proposals.len(), 2, "what is true of the third one stays");
        store.apply(3, &Entry { proposals });
        let view = store.view();
        let leads: Vec<_> = view
            .nodes()
            .filter(|it| it.manager_status.as_ref().is_some_and(|it| it.leader))
            .map(|it| it.id.clone())
            .collect();
        assert_eq!(leads, [Id::from_entropy(2)]);
        assert!(
            view.node(&Id::from_entropy(1))
                .unwrap()
                .manager_status
                .is_none()
        );
    }

    #[test]
    fn who_shall_be_a_worker_leaves_the_group_the_leader_last() {
        let group = group(1, &[(1, Reachable), (2, Reachable), (3, Reachable)]);
        let step = |roles: &[Role]| surplus(&store(managers(roles), &group).view(), &group);
        assert_eq!(step(&[Manager, Manager, Manager]), None);
        assert_eq!(step(&[Worker, Manager, Manager]), Some(1));
        assert_eq!(step(&[Worker, Manager, Worker]), Some(3));
        assert_eq!(step(&[Manager, Worker]), Some(2), "3 is gone: later");
        assert_eq!(step(&[Manager, Manager]), Some(3), "a node that is gone");
    }

    #[test]
    fn a_demoted_manager_stays_one_until_it_is_out_of_the_group() {
        let group = group(1, &[(1, Reachable), (2, Reachable)]);
        let mut store = store(managers(&[Manager, Worker]), &group);
        let second = Id::from_entropy(2);
        assert_eq!(store.view().node(&second).unwrap().role(), Manager);
        assert!(may_take_part(&store.view(), &second).is_err());
        let mut smaller = group;
        smaller.members.remove(&second);
        assert!(!is_former(&store.view(), &second, Timestamp(1)));
        let proposals = marks(&store.view(), &smaller, Timestamp(2));
        store.apply(3, &Entry { proposals });
        assert_eq!(store.view().node(&second).unwrap().role(), Worker);
        // From now on its old certificate makes it no manager. A later one does: this view may be old.
        assert!(is_former(&store.view(), &second, Timestamp(1)));
        assert!(!is_former(&store.view(), &second, Timestamp(3)));
    }

    #[test]
    fn no_demotion_takes_the_last_manager_or_the_quorum() {
        let check = |roles: &[Role], members: &[(u128, Reachability)]| {
            let view = store(managers(roles), &group(1, members)).view();
            check_demotion(&view, &Id::from_entropy(1)).map_err(|error| error.to_string())
        };
        let last = check(&[Manager, Worker], &[(1, Reachable)]).unwrap_err();
        assert!(last.contains("the last manager"), "{last}");
        let all = [(1, Reachable), (2, Reachable), (3, Reachable)];
        check(&[Manager, Manager, Manager], &all).unwrap();
        let lame = [(1, Reachable), (2, Reachable), (3, Unreachable)];
        let lost = check(&[Manager, Manager, Manager], &lame).unwrap_err();
        assert!(lost.contains("loss of quorum (1 of the 2"), "{lost}");
    }

    #[test]
    fn seven_managers_are_enough() {
        let nobody = Group::default();
        assert!(check_promotion(&store(managers(&[Manager; 6]), &nobody).view()).is_ok());
        assert!(check_promotion(&store(managers(&[Manager; 7]), &nobody).view()).is_err());
    }
}
