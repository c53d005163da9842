//! Services with a number of replicas: one wanted task in each of the slots 1 to N.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::{Room, ServicePlan, Slot, desire, is_live, new_task, restart, slots, update};
use crate::{
    api::{Node, Service, TaskState},
    id::Id,
    manager::Ctx,
    store::{Change, Proposal, View},
};

/// What a service wants changed; new tasks as far as there is room.
pub(super) fn plan(
    view: &View,
    service: &Service,
    room: &mut Room,
    ctx: &mut Ctx,
) -> Vec<Proposal> {
    let slots = slots(view, service);
    let mut plan = ServicePlan::new(room);
    let surplus = surplus(view, service, &slots);
    for number in &surplus {
        let tasks = slots.get(number).into_iter().flat_map(|slot| &slot.tasks);
        let removed = tasks.filter_map(|task| desire(task, TaskState::Remove));
        plan.proposals.push(Proposal::of(removed));
    }
    let kept = slots.iter().filter(|(number, _)| !surplus.contains(number));
    let kept: BTreeMap<u64, &Slot<'_>> = kept.map(|(number, slot)| (*number, slot)).collect();
    let replaced = update::plan(view, service, &kept, ctx, &mut plan);
    for (number, slot) in &kept {
        if !replaced.contains(number) {
            settle(view, service, *number, slot, ctx, &mut plan);
        }
    }
    fill(service, &kept, ctx, &mut plan);
    plan.proposals
}

/// Brings one slot in order: at most one wanted task, which runs when it may.
fn settle(
    view: &View,
    service: &Service,
    number: u64,
    slot: &Slot<'_>,
    ctx: &mut Ctx,
    plan: &mut ServicePlan<'_>,
) {
    let Some(newest_live) = slot.live().last() else {
        // Without room the slot stays as it is, and the next pass finds it so.
        if plan.has_room(service)
            && let Some(proposal) = restart::after_end(service, number, slot, ctx)
        {
            plan.make(service, proposal);
        }
        return;
    };
    plan.proposals
        .extend(restart::promote(view, newest_live, ctx));
    for task in &slot.tasks {
        let older = task.id != newest_live.id;
        // With start-first the older one stays until the new one runs.
        let superseded = is_live(task) && newest_live.status.state == TaskState::Running;
        if older && (superseded || !is_live(task)) {
            let shut = desire(task, TaskState::Shutdown);
            plan.proposals
                .extend(shut.map(|change| Proposal::of([change])));
        }
    }
}

/// The slots that are too many. Those where nothing runs go first, then those on the nodes with the
/// most tasks of the service, then the highest numbers.
fn surplus(view: &View, service: &Service, slots: &BTreeMap<u64, Slot<'_>>) -> BTreeSet<u64> {
    let wanted = usize::try_from(service.replicas()).unwrap_or(usize::MAX);
    let mut surplus = BTreeSet::new();
    let excess = slots.len().saturating_sub(wanted);
    if excess == 0 {
        return surplus;
    }
    let mut load: BTreeMap<&Id<Node>, u64> = BTreeMap::new();
    let live = view.tasks_of_service(&service.id).filter(|it| is_live(it));
    for node in live.filter_map(|task| task.node_id.as_ref()) {
        *load.entry(node).or_default() += 1;
    }
    let (mut idle, mut running) = (ByNode::new(), ByNode::new());
    for (number, slot) in slots {
        let task = slot.live().last();
        let runs = task.is_some_and(|task| task.status.state == TaskState::Running);
        let group = if runs { &mut running } else { &mut idle };
        let node = task.and_then(|task| task.node_id.as_ref());
        group.entry(node).or_default().push(*number);
    }
    take(idle, &mut load, excess, &mut surplus);
    take(running, &mut load, excess, &mut surplus);
    surplus
}

/// Slot numbers, ascending, by the node of their task.
type ByNode<'a> = BTreeMap<Option<&'a Id<Node>>, Vec<u64>>;

/// Takes slots until there are `excess`, each from the node that is most loaded then: a heap of nodes keeps
/// a choice at O(log nodes).
fn take<'a>(
    mut slots: ByNode<'a>,
    load: &mut BTreeMap<&'a Id<Node>, u64>,
    excess: usize,
    taken: &mut BTreeSet<u64>,
) {
    let loaded = |node: Option<&Id<Node>>, load: &BTreeMap<&Id<Node>, u64>| {
        node.and_then(|node| load.get(node)).copied().unwrap_or(0)
    };
    let mut heap: BinaryHeap<_> = slots
        .iter()
        .map(|(node, numbers)| (loaded(*node, load), numbers.last().copied(), *node))
        .collect();
    while taken.len() < excess {
        let Some((_, _, node)) = heap.pop() else {
            return;
        };
        let Some(numbers) = slots.get_mut(&node) else {
            continue;
        };
        taken.extend(numbers.pop());
        if let Some(load) = node.and_then(|node| load.get_mut(node)) {
            *load = load.saturating_sub(1);
        }
        if let Some(next) = numbers.last() {
            heap.push((loaded(node, load), Some(*next), node));
        }
    }
}

/// Makes a task in each slot that has never had one.
fn fill(
    service: &Service,
    slots: &BTreeMap<u64, &Slot<'_>>,
    ctx: &mut Ctx,
    plan: &mut ServicePlan<'_>,
) {
    let wanted = usize::try_from(service.replicas()).unwrap_or(usize::MAX);
    let missing = wanted.saturating_sub(slots.len());
    let free = (1..).filter(|number| !slots.contains_key(number));
    for number in free.take(missing) {
        if !plan.has_room(service) {
            return;
        }
        let task = new_task(service, number, None, ctx);
        plan.make(service, Proposal::of([Change::put_task(task)]));
    }
}
