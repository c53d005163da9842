//! Chooses a node for each task that waits for one.

mod branches;
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
pub(super) use branches::Label;
use pipeline::Nodes;

/// What is said of a task that got a node.
const PLACED: &str = "scheduler assigned task to node";
/// What is said of a task that had one from the beginning.
const CONFIRMED: &str = "scheduler confirmed task can run on preassigned node";

/// Gives every pending task the best node that passes all filters, or says in its status why there is
/// none. Equal tasks are placed as one group, so that a placement costs O(log nodes). Tasks that belong to a
/// node go first: they have no other.
#[must_use]
pub fn schedule(view: &View, ctx: &mut Ctx) -> Vec<Proposal> {
    let mut groups: BTreeMap<(bool, &Id<Service>, u64), Vec<&Task>> = BTreeMap::new();
    for task in view.tasks().filter(|task| waits(task)) {
        let group = groups.entry((task.node_id.is_none(), &task.service_id, task.spec_version));
        group.or_default().push(task);
    }
    if groups.is_empty() {
        return Vec::new();
    }
    let mut nodes = Nodes::of(view, ctx.now);
    let mut proposals = Vec::new();
    for ((free, ..), mut group) in groups {
        group.sort_by_key(|task| task.slot);
        let (placed, message) = match free {
            true => (strategy::place(&mut nodes, &group), PLACED),
            false => (strategy::confirm(&mut nodes, &group), CONFIRMED),
        };
        for (task, place) in group.into_iter().zip(placed) {
            let mut next = task.clone();
            match place {
                Ok(node) => {
                    next.node_id = Some(node);
                    next.status.state = TaskState::Assigned;
                    message.clone_into(&mut next.status.message);
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
    task.status.state == TaskState::Pending && task.is_wanted()
}
