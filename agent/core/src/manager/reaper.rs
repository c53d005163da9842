//! Forgets tasks: those that are removed and stopped, and history beyond the limit.

use std::collections::BTreeMap;

use crate::{
    api::{Service, SlotKey, Task, TaskState},
    manager::Ctx,
    store::{Change, ObjectId, Proposal, View},
};

/// Ended tasks that stay per slot unless the cluster's settings say otherwise.
const HISTORY: i64 = 5;

/// Deletes tasks with desired state Remove that run nowhere, the oldest ended tasks of each slot beyond
/// the history limit, and services that are being removed once their last task is gone.
#[must_use]
pub fn reap(view: &View, _: &mut Ctx) -> Vec<Proposal> {
    let limit = history_limit(view);
    let mut proposals = Vec::new();
    for service in view.services() {
        reap_service(view, service, limit, &mut proposals);
    }
    // Tasks whose service is gone have nobody else to look after them.
    for task in view.tasks() {
        if view.service(&task.service_id).is_none() && is_over(task) {
            proposals.push(Proposal::of([delete(task)]));
        }
    }
    proposals
}

fn history_limit(view: &View) -> Option<usize> {
    let wish = view
        .cluster()
        .and_then(|cluster| cluster.spec.orchestration.task_history_retention_limit);
    usize::try_from(wish.unwrap_or(HISTORY)).ok()
}

fn reap_service(
    view: &View,
    service: &Service,
    limit: Option<usize>,
    proposals: &mut Vec<Proposal>,
) {
    let mut left = 0;
    let mut ended: BTreeMap<SlotKey, Vec<&Task>> = BTreeMap::new();
    for task in view.tasks_of_service(&service.id) {
        let removed = task.desired_state >= TaskState::Remove || service.pending_delete;
        if removed && is_over(task) {
            proposals.push(Proposal::of([delete(task)]));
            continue;
        }
        left += 1;
        if !task.is_wanted() && is_over(task) && !service.counts(task) {
            ended.entry(service.slot_of(task)).or_default().push(task);
        }
    }
    if service.pending_delete && left == 0 {
        proposals.push(Proposal::of([Change::Delete {
            object: ObjectId::Service(service.id.clone()),
            version: service.meta.version,
        }]));
    }
    let Some(limit) = limit else {
        return;
    };
    let keep = limit.max(attempts_to_remember(service));
    for mut slot in ended.into_values() {
        slot.sort_by_key(|task| (task.meta.created_at, task.id.clone()));
        let surplus = slot.len().saturating_sub(keep);
        let oldest = slot.into_iter().take(surplus);
        proposals.extend(oldest.map(|task| Proposal::of([delete(task)])));
    }
}

/// A limit on restart attempts is counted over the history, so the history must reach that far.
fn attempts_to_remember(service: &Service) -> usize {
    let policy = service.spec.task_template.restart_policy.as_ref();
    let attempts = policy.and_then(|policy| policy.max_attempts).unwrap_or(0);
    match attempts {
        0 => 0,
        some => usize::try_from(some.saturating_add(1)).unwrap_or(usize::MAX),
    }
}

/// Nothing of it runs and nothing of it will.
fn is_over(task: &Task) -> bool {
    task.status.state.is_terminal() || (!task.is_wanted() && !task.is_assigned())
}

fn delete(task: &Task) -> Change {
    Change::Delete {
        object: ObjectId::Task(task.id.clone()),
        version: task.meta.version,
    }
}
