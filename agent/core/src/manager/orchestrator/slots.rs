//! The slots of a service: the tasks that take each other's place.

use std::collections::BTreeMap;

use super::{ServicePlan, desire, restart};
use crate::{
    api::{Service, SlotKey, Task, TaskState},
    manager::Ctx,
    store::{Proposal, View},
};

/// The tasks of one slot, oldest first; those that are being removed, and those of a job's earlier runs, are
/// left out.
#[derive(Default)]
pub(super) struct Slot<'a> {
    pub(super) tasks: Vec<&'a Task>,
}

impl<'a> Slot<'a> {
    /// Tasks that run or shall run.
    pub(super) fn live(&self) -> impl DoubleEndedIterator<Item = &'a Task> {
        self.tasks.iter().copied().filter(|task| task.is_live())
    }

    pub(super) fn newest(&self) -> Option<&'a Task> {
        self.tasks.last().copied()
    }
}

pub(super) fn slots<'a>(view: &'a View, service: &Service) -> BTreeMap<SlotKey, Slot<'a>> {
    let mut slots: BTreeMap<SlotKey, Slot<'a>> = BTreeMap::new();
    for task in view.tasks_of_service(&service.id) {
        if task.desired_state < TaskState::Remove && service.is_current(task) {
            let slot = slots.entry(service.slot_of(task)).or_default();
            slot.tasks.push(task);
        }
    }
    for slot in slots.values_mut() {
        slot.tasks
            .sort_by(|a, b| (a.meta.created_at, &a.id).cmp(&(b.meta.created_at, &b.id)));
    }
    slots
}

/// Brings one slot in order: at most one wanted task, which runs when it may.
pub(super) fn settle(
    view: &View,
    service: &Service,
    key: &SlotKey,
    slot: &Slot<'_>,
    ctx: &mut Ctx,
    plan: &mut ServicePlan<'_>,
) {
    if tend(view, slot, ctx, plan) {
        return;
    }
    // Without room the slot stays as it is, and the next pass finds it so.
    if plan.has_room(service)
        && let Some(proposal) = restart::after_end(service, key, slot, ctx)
    {
        plan.make(service, proposal);
    }
}

/// Lets the newest live task of a slot run when it may, and ends those before it. `false`: nothing lives
/// there.
pub(super) fn tend(
    view: &View,
    slot: &Slot<'_>,
    ctx: &mut Ctx,
    plan: &mut ServicePlan<'_>,
) -> bool {
    let Some(newest_live) = slot.live().next_back() else {
        return false;
    };
    plan.proposals
        .extend(restart::promote(view, slot, newest_live, ctx));
    for task in &slot.tasks {
        let older = task.id != newest_live.id;
        // With start-first the older one stays until the new one runs.
        let superseded = task.is_live() && newest_live.status.state == TaskState::Running;
        if older && (superseded || !task.is_live()) {
            plan.change(desire(task, TaskState::Shutdown));
        }
    }
    true
}

/// Ends every task of a slot that is still wanted.
pub(super) fn end(slot: &Slot<'_>, state: TaskState, plan: &mut ServicePlan<'_>) {
    let ended = slot.tasks.iter().filter_map(|task| desire(task, state));
    let ended: Vec<_> = ended.collect();
    if !ended.is_empty() {
        plan.proposals.push(Proposal::of(ended));
    }
}
