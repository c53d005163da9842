//! Spread: the node with the fewest tasks of the service, then with the fewest tasks.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{
    filter,
    pipeline::{Candidate, Nodes, Pipeline},
};
use crate::{
    api::{Node, Task},
    id::Id,
};

/// A node for each of these equal tasks, or why there is none. A heap keeps the best node on top, so
/// that after the filters each placement costs O(log nodes).
pub(super) fn place(nodes: &mut Nodes<'_>, group: &[&Task]) -> Vec<Result<Id<Node>, String>> {
    let Some(first) = group.first() else {
        return Vec::new();
    };
    let pipeline = Pipeline::of(first);
    let mut candidates = nodes.candidates(&first.service_id, first.spec_version);
    let mut heap: BinaryHeap<Reverse<Rank>> = candidates
        .iter()
        .enumerate()
        .filter(|(_, node)| pipeline.refusal(node).is_none())
        .map(|(position, node)| Reverse(rank(node, position)))
        .collect();
    let mut explanation = None;
    let mut places = Vec::with_capacity(group.len());
    for task in group {
        let Some(Reverse(best)) = heap.pop() else {
            let why = explanation.get_or_insert_with(|| pipeline.explain(candidates.iter()));
            places.push(Err(why.clone()));
            continue;
        };
        let node = &mut candidates[best.position];
        take(node, task);
        nodes.add(&node.node.id, task);
        places.push(Ok(node.node.id.clone()));
        if pipeline.refusal(node).is_none() {
            heap.push(Reverse(rank(node, best.position)));
        }
    }
    places
}

/// The smallest is the best. The position, by node id, makes the order complete.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
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
