//! Spread: the node with the fewest tasks of the service, then with the fewest tasks; before that, over the
//! labels that the service prefers.

use std::{collections::BTreeMap, iter};

use super::{
    branches::{Branch, Label},
    filter,
    pipeline::{Candidate, Nodes, Pipeline},
};
use crate::{
    api::{Node, Task},
    id::Id,
};

/// A node for each of these equal tasks, or why there is none.
pub(super) fn place(nodes: &mut Nodes<'_>, group: &[&Task]) -> Vec<Result<Id<Node>, String>> {
    let Some(first) = group.first() else {
        return Vec::new();
    };
    let pipeline = Pipeline::of(first);
    let placement = first.spec.placement.as_ref();
    let labels = placement.map_or_else(Vec::new, |it| Label::of(&it.preferences));
    let mut candidates = nodes.candidates(&first.service_id, first.spec_version);
    let mut root = Branch::default();
    for (position, node) in candidates.iter().enumerate() {
        let open = pipeline.refusal(node).is_none();
        root.add(&labels, node, open.then(|| rank(node, position)));
    }
    let mut explanation = None;
    let mut places = Vec::with_capacity(group.len());
    for task in group {
        let mut chosen = None;
        root.place(&mut |best| {
            let node = &mut candidates[best.position];
            take(node, task);
            nodes.add(&node.node.id, task);
            chosen = Some(node.node.id.clone());
            let open = pipeline.refusal(node).is_none();
            open.then(|| rank(node, best.position))
        });
        places.push(chosen.ok_or_else(|| {
            let why = explanation.get_or_insert_with(|| pipeline.explain(candidates.iter()));
            why.clone()
        }));
    }
    places
}

/// Whether each of these tasks of one service can run on the node that it belongs to, or why it can't.
pub(super) fn confirm(nodes: &mut Nodes<'_>, group: &[&Task]) -> Vec<Result<Id<Node>, String>> {
    let Some(first) = group.first() else {
        return Vec::new();
    };
    let pipeline = Pipeline::of_bound(first);
    let candidates = nodes.candidates(&first.service_id, first.spec_version);
    let candidates = candidates.into_iter().map(|it| (&it.node.id, it));
    let mut candidates: BTreeMap<_, _> = candidates.collect();
    let mut places = Vec::with_capacity(group.len());
    for task in group {
        let node = task.node_id.as_ref().and_then(|id| candidates.get_mut(id));
        places.push(match node {
            None => Err("the node is gone".to_owned()),
            Some(node) if pipeline.refusal(node).is_some() => {
                Err(pipeline.reasons(iter::once(&*node)))
            }
            Some(node) => {
                take(node, task);
                nodes.add(&node.node.id, task);
                Ok(node.node.id.clone())
            }
        });
    }
    places
}

/// The smallest is the best. The position, by node id, makes the order complete.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    unlucky: bool,
    of_service: u64,
    total: u64,
    position: usize,
}

fn rank(node: &Candidate<'_>, position: usize) -> Rank {
    Rank {
        unlucky: node.unlucky,
        of_service: node.of_service,
        total: node.total,
        position,
    }
}

fn take(node: &mut Candidate<'_>, task: &Task) {
    node.of_service += 1;
    node.total += 1;
    if let Some(reserved) = filter::reservations(task) {
        node.free.nano_cpus -= reserved.nano_cpus;
        node.free.memory_bytes -= reserved.memory_bytes;
    }
}
