//! Takes tasks away from nodes that can't or shall not run them any more.

use std::collections::BTreeMap;

use crate::{
    api::{Availability, Node, NodeState, Task, TaskState},
    id::Id,
    manager::{Ctx, constraint},
    store::{Change, Proposal, View},
    time::Timestamp,
};

/// A node that has been down for so long is not waited for any more.
const ORPHANED_AFTER: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// Tasks on nodes that are down, removed or drained, and tasks that their node's labels no longer
/// allow, get desired state Shutdown; the orchestrator fills their slots. Tasks of removed nodes, and of
/// nodes that were down for a day, become Orphaned: nobody waits for them, their addresses are free.
#[must_use]
pub fn retire(view: &View, ctx: &mut Ctx) -> Vec<Proposal> {
    let mut proposals = Vec::new();
    let mut fates: BTreeMap<&Id<Node>, Fate> = BTreeMap::new();
    for task in view.tasks() {
        let Some(node_id) = &task.node_id else {
            continue;
        };
        let node = view.node(node_id).map(|node| &**node);
        let fate = *fates.entry(node_id).or_insert_with(|| fate(node, ctx));
        let misplaced = || node.is_some_and(|node| !allowed(task, node));
        let stop = fate != Fate::Keep || (task.is_wanted() && misplaced());
        let mut next = Task::clone(task);
        if stop && task.is_wanted() && !has_done_its_part(task) {
            next.desired_state = TaskState::Shutdown;
        }
        if fate == Fate::Orphan && !task.status.state.is_terminal() {
            orphan(&mut next, ctx.now);
        }
        if next != **task {
            proposals.push(Proposal::of([Change::put_task(next)]));
        }
    }
    proposals
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    Stop,
    Orphan,
}

fn fate(node: Option<&Node>, ctx: &mut Ctx) -> Fate {
    let Some(node) = node else {
        return Fate::Orphan;
    };
    if node.status.state == NodeState::Down {
        let end = node.status.since + ORPHANED_AFTER;
        if end <= ctx.now {
            return Fate::Orphan;
        }
        ctx.wake(end);
        return Fate::Stop;
    }
    match node.spec.availability {
        Availability::Drain => Fate::Stop,
        Availability::Active | Availability::Pause => Fate::Keep,
    }
}

/// A job's task that has ended well needs its node no more.
fn has_done_its_part(task: &Task) -> bool {
    task.desired_state == TaskState::Complete && task.status.state == TaskState::Complete
}

fn allowed(task: &Task, node: &Node) -> bool {
    let Some(placement) = &task.spec.placement else {
        return true;
    };
    let constraints = constraint::parse_all(&placement.constraints);
    constraints.is_some_and(|all| all.iter().all(|one| one.matches(node)))
}

fn orphan(task: &mut Task, now: Timestamp) {
    task.status.state = TaskState::Orphaned;
    task.status.message = "orphaned".to_owned();
    task.status.err = "the node is gone".to_owned();
    task.status.timestamp = now;
}
