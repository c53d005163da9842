//! Jobs: tasks that run to their end, a number of times or once on each eligible node. Each update of the
//! service runs the job again; what is said here of tasks is said of those of the present run.

use std::collections::BTreeMap;

use super::{
    Room, ServicePlan, desire,
    global::{self, Eligibility, Standing},
    new_task, restart,
    slots::{self, Slot, slots},
};
use crate::{
    api::{ModeKind, Service, SlotKey, TaskState},
    manager::Ctx,
    store::{Change, Proposal, View},
};

/// What a job wants changed; new tasks as far as there is room.
pub(super) fn plan(
    view: &View,
    service: &Service,
    room: &mut Room,
    ctx: &mut Ctx,
) -> Vec<Proposal> {
    let slots = slots(view, service);
    let mut plan = ServicePlan::new(room);
    end_earlier_runs(view, service, &mut plan);
    match service.spec.mode.kind() {
        ModeKind::GlobalJob => once_per_node(view, service, &slots, ctx, &mut plan),
        ModeKind::ReplicatedJob | ModeKind::Replicated | ModeKind::Global => {
            a_number_of_times(view, service, &slots, ctx, &mut plan);
        }
    }
    plan.proposals
}

/// What runs of an earlier run is removed; what has ended is history.
fn end_earlier_runs(view: &View, service: &Service, plan: &mut ServicePlan<'_>) {
    let tasks = view.tasks_of_service(&service.id);
    for task in tasks.filter(|task| !service.is_current(task)) {
        let state = match task.status.state.is_terminal() {
            true => TaskState::Shutdown,
            false => TaskState::Remove,
        };
        plan.change(desire(task, state));
    }
}

fn a_number_of_times(
    view: &View,
    service: &Service,
    slots: &BTreeMap<SlotKey, Slot<'_>>,
    ctx: &mut Ctx,
    plan: &mut ServicePlan<'_>,
) {
    let job = service.spec.mode.replicated_job.clone().unwrap_or_default();
    let mut busy = 0;
    for (key, slot) in slots {
        if !finish(service, slot, plan) && advance(view, service, key, slot, ctx, plan) {
            busy += 1;
        }
    }
    let places = usize::try_from(job.concurrent().saturating_sub(busy)).unwrap_or(usize::MAX);
    let parts = usize::try_from(job.total()).unwrap_or(usize::MAX);
    let free = (0..).map(SlotKey::Number);
    let free = free.filter(|key| !slots.contains_key(key));
    for key in free.take(places.min(parts.saturating_sub(slots.len()))) {
        if !plan.has_room(service) {
            return;
        }
        let task = new_task(service, &key, None, ctx);
        plan.make(service, Proposal::of([Change::put_task(task)]));
    }
}

fn once_per_node(
    view: &View,
    service: &Service,
    slots: &BTreeMap<SlotKey, Slot<'_>>,
    ctx: &mut Ctx,
    plan: &mut ServicePlan<'_>,
) {
    let nodes = Eligibility::of(view, service);
    for (key, slot) in slots {
        let standing = nodes.standing(key);
        if standing != Standing::Gone && finish(service, slot, plan) {
            continue;
        }
        match standing {
            Standing::Runs => drop(advance(view, service, key, slot, ctx, plan)),
            Standing::Rests | Standing::Unfit | Standing::Gone => {
                global::leave(view, standing, slot, ctx, plan);
            }
        }
    }
    global::fill(service, &nodes, slots, ctx, plan);
}

/// Whether a slot has done its part. A task that was believed lost may have ended well after another had
/// taken its place: then that one need not.
fn finish(service: &Service, slot: &Slot<'_>, plan: &mut ServicePlan<'_>) -> bool {
    let done = slot.tasks.iter().any(|task| service.counts(task));
    if done {
        for task in slot.live() {
            plan.change(desire(task, TaskState::Shutdown));
        }
    }
    done
}

/// Brings a slot further that has not done its part. `false`: it never will, since its restart policy allows
/// no other attempt; it takes no place of those that run at a time.
fn advance(
    view: &View,
    service: &Service,
    key: &SlotKey,
    slot: &Slot<'_>,
    ctx: &mut Ctx,
    plan: &mut ServicePlan<'_>,
) -> bool {
    if slots::tend(view, slot, ctx, plan) {
        return true;
    }
    if let Some(lost) = global::was_taken_away(slot) {
        global::follow(service, key, lost, ctx, plan);
        return true;
    }
    let policy = service.spec.task_template.restart_policy.as_ref();
    let newest = slot.newest();
    let goes_on = newest.is_some_and(|ended| restart::allowed(policy, slot, ended, ctx.now));
    if plan.has_room(service)
        && let Some(proposal) = restart::after_end(service, key, slot, ctx)
    {
        plan.make(service, proposal);
    }
    goes_on
}
