//! Chooses a node for each task that waits for one.

mod filter;
mod pipeline;
mod strategy;

use std::collections::BTreeMap;

use super::Ctx;
use crate::{
    api::{Service, Task, TaskState},
    id::Id,
    store::{Change, Proposal, View},
};
use pipeline::Nodes;

/// Gives every pending task the best node that passes all filters, or says in its status why there is
/// none. Equal tasks are placed as one group, so that a placement costs O(log nodes).
#[must_use]
pub fn schedule(view: &View, ctx: &mut Ctx) -> Vec<Proposal> {
    let mut groups: BTreeMap<(&Id<Service>, u64), Vec<&Task>> = BTreeMap::new();
    for task in view.tasks().filter(|task| waits(task)) {
        let group = groups.entry((&task.service_id, task.spec_version));
        group.or_default().push(task);
    }
    if groups.is_empty() {
        return Vec::new();
    }
    let mut nodes = Nodes::of(view, ctx.now);
    let mut proposals = Vec::new();
    for mut group in groups.into_values() {
        group.sort_by_key(|task| task.slot);
        let placed = strategy::place(&mut nodes, &group);
        for (task, place) in group.into_iter().zip(placed) {
            let mut next = task.clone();
            match place {
                Ok(node) => {
                    next.node_id = Some(node);
                    next.status.state = TaskState::Assigned;
                    next.status.message = "scheduler assigned task to node".to_owned();
                    next.status.err = String::new();
                    next.status.timestamp = ctx.now;
                }
                Err(why) => next.status.err = why,
            }
            if next != *task {
                proposals.push(Proposal::of([Change::put_task(next)]));
            }
        }
    }
    proposals
}

fn waits(task: &Task) -> bool {
    task.status.state == TaskState::Pending
        && task.node_id.is_none()
        && task.desired_state <= TaskState::Running
}
