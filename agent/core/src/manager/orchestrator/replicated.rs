//! Services with a number of replicas: one wanted task in each of the slots 1 to N.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::{
    Room, ServicePlan, new_task,
    slots::{self, Slot, slots},
    update,
};
use crate::{
    api::{Node, Service, SlotKey, TaskState},
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
    for slot in surplus.iter().filter_map(|key| slots.get(key)) {
        slots::end(slot, TaskState::Remove, &mut plan);
    }
    let kept = slots.iter().filter(|(key, _)| !surplus.contains(key));
    let kept: BTreeMap<SlotKey, &Slot<'_>> = kept.map(|(key, slot)| (key.clone(), slot)).collect();
    let replaced = update::plan(view, service, &kept, ctx, &mut plan);
    for (key, slot) in &kept {
        if !replaced.contains(key) {
            slots::settle(view, service, key, slot, ctx, &mut plan);
        }
    }
    fill(service, &kept, ctx, &mut plan);
    plan.proposals
}

/// The slots that are too many. Those where nothing runs go first, then those on the nodes with the
/// most tasks of the service, then the highest numbers.
fn surplus(
    view: &View,
    service: &Service,
    slots: &BTreeMap<SlotKey, Slot<'_>>,
) -> BTreeSet<SlotKey> {
    let wanted = usize::try_from(service.replicas()).unwrap_or(usize::MAX);
    let mut surplus = BTreeSet::new();
    let excess = slots.len().saturating_sub(wanted);
    if excess == 0 {
        return surplus;
    }
    let mut load: BTreeMap<&Id<Node>, u64> = BTreeMap::new();
    let live = view.tasks_of_service(&service.id).filter(|it| it.is_live());
    for node in live.filter_map(|task| task.node_id.as_ref()) {
        *load.entry(node).or_default() += 1;
    }
    let (mut idle, mut running) = (ByNode::new(), ByNode::new());
    for (key, slot) in slots {
        let task = slot.live().next_back();
        let runs = task.is_some_and(|task| task.status.state == TaskState::Running);
        let group = if runs { &mut running } else { &mut idle };
        let node = task.and_then(|task| task.node_id.as_ref());
        group.entry(node).or_default().push(key.clone());
    }
    take(idle, &mut load, excess, &mut surplus);
    take(running, &mut load, excess, &mut surplus);
    surplus
}

/// Slots, ascending, by the node of their task.
type ByNode<'a> = BTreeMap<Option<&'a Id<Node>>, Vec<SlotKey>>;

/// Takes slots until there are `excess`, each from the node that is most loaded then: a heap of nodes keeps
/// a choice at O(log nodes).
fn take<'a>(
    mut slots: ByNode<'a>,
    load: &mut BTreeMap<&'a Id<Node>, u64>,
    excess: usize,
    taken: &mut BTreeSet<SlotKey>,
) {
    let loaded = |node: Option<&Id<Node>>, load: &BTreeMap<&Id<Node>, u64>| {
        node.and_then(|node| load.get(node)).copied().unwrap_or(0)
    };
    let mut heap: BinaryHeap<_> = slots
        .iter()
        .map(|(node, keys)| (loaded(*node, load), keys.last().cloned(), *node))
        .collect();
    while taken.len() < excess {
        let Some((_, _, node)) = heap.pop() else {
            return;
        };
        let Some(keys) = slots.get_mut(&node) else {
            continue;
        };
        taken.extend(keys.pop());
        if let Some(load) = node.and_then(|node| load.get_mut(node)) {
            *load = load.saturating_sub(1);
        }
        if let Some(next) = keys.last() {
            heap.push((loaded(node, load), Some(next.clone()), node));
        }
    }
}

/// Makes a task in each slot that has never had one.
fn fill(
    service: &Service,
    slots: &BTreeMap<SlotKey, &Slot<'_>>,
    ctx: &mut Ctx,
    plan: &mut ServicePlan<'_>,
) {
    let wanted = usize::try_from(service.replicas()).unwrap_or(usize::MAX);
    let missing = wanted.saturating_sub(slots.len());
    let free = (1..).map(SlotKey::Number);
    let free = free.filter(|key| !slots.contains_key(key));
    for key in free.take(missing) {
        if !plan.has_room(service) {
            return;
        }
        let task = new_task(service, &key, None, ctx);
        plan.make(service, Proposal::of([Change::put_task(task)]));
    }
}
