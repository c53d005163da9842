//! Services that run one task on each eligible node: the node is the slot.

use std::collections::BTreeMap;

use super::{
    Room, ServicePlan, new_task, restart,
    slots::{self, Slot, slots},
    update,
};
use crate::{
    api::{Availability, Node, NodeState, Service, SlotKey, Task, TaskState},
    id::Id,
    manager::{
        Ctx,
        constraint::{self, Constraint},
    },
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
    let nodes = Eligibility::of(view, service);
    let mut plan = ServicePlan::new(room);
    let mut kept: BTreeMap<SlotKey, &Slot<'_>> = BTreeMap::new();
    for (key, slot) in &slots {
        match nodes.standing(key) {
            Standing::Runs => match was_taken_away(slot) {
                Some(lost) => follow(service, key, lost, ctx, &mut plan),
                None => drop(kept.insert(key.clone(), slot)),
            },
            standing @ (Standing::Rests | Standing::Unfit | Standing::Gone) => {
                leave(view, standing, slot, ctx, &mut plan);
            }
        }
    }
    let replaced = update::plan(view, service, &kept, ctx, &mut plan);
    for (key, slot) in &kept {
        if !replaced.contains(key) {
            slots::settle(view, service, key, slot, ctx, &mut plan);
        }
    }
    fill(service, &nodes, &slots, ctx, &mut plan);
    plan.proposals
}

/// Where a node stands towards a service that runs once on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It shall run a task.
    Runs,
    /// What runs there may go on, and nothing new comes (paused).
    Rests,
    /// It shall run none: it is down, drained, or the constraints do not hold there.
    Unfit,
    /// It was removed from the cluster.
    Gone,
}

/// Which nodes a service that runs once on each is for.
pub(super) struct Eligibility<'a> {
    view: &'a View,
    /// `None` if a constraint is none: then no node is eligible.
    constraints: Option<Vec<Constraint>>,
}

impl<'a> Eligibility<'a> {
    pub(super) fn of(view: &'a View, service: &Service) -> Self {
        let placement = service.spec.task_template.placement.as_ref();
        let texts = placement.map_or(&[][..], |placement| &placement.constraints);
        Self {
            view,
            constraints: constraint::parse_all(texts),
        }
    }

    /// Where the node of a slot stands.
    pub(super) fn standing(&self, key: &SlotKey) -> Standing {
        let node = match key {
            SlotKey::Node(id) => self.view.node(id),
            SlotKey::Number(_) => None,
        };
        node.map_or(Standing::Gone, |node| self.of_node(node))
    }

    fn of_node(&self, node: &Node) -> Standing {
        let holds = |all: &Vec<Constraint>| all.iter().all(|one| one.matches(node));
        let there = node.status.state != NodeState::Down;
        if !there || !self.constraints.as_ref().is_some_and(holds) {
            return Standing::Unfit;
        }
        match node.spec.availability {
            Availability::Active => Standing::Runs,
            Availability::Pause => Standing::Rests,
            Availability::Drain => Standing::Unfit,
        }
    }

    /// The nodes that shall run a task.
    pub(super) fn running(&self) -> impl Iterator<Item = &'a Id<Node>> {
        let nodes = self.view.nodes();
        let nodes = nodes.filter(|node| self.of_node(node) == Standing::Runs);
        nodes.map(|node| &node.id)
    }
}

/// What becomes of a slot whose node shall run nothing new.
pub(super) fn leave(
    view: &View,
    standing: Standing,
    slot: &Slot<'_>,
    ctx: &mut Ctx,
    plan: &mut ServicePlan<'_>,
) {
    match standing {
        Standing::Runs => {}
        Standing::Rests => {
            if !slots::tend(view, slot, ctx, plan) {
                slots::end(slot, TaskState::Shutdown, plan);
            }
        }
        Standing::Unfit => slots::end(slot, TaskState::Shutdown, plan),
        Standing::Gone => slots::end(slot, TaskState::Remove, plan),
    }
}

/// The last task of a slot in which nothing lives, if the managers ended it because its node was drained, lost
/// or did not fit. That was no end for the restart policy to judge: another follows when the node is eligible.
pub(super) fn was_taken_away<'a>(slot: &Slot<'a>) -> Option<&'a Task> {
    let lives = slot.live().next().is_some();
    let newest = slot.newest().filter(|_| !lives);
    newest.filter(|task| !restart::ended_by_itself(task))
}

/// Lets another task follow one that was taken away.
pub(super) fn follow(
    service: &Service,
    key: &SlotKey,
    lost: &Task,
    ctx: &mut Ctx,
    plan: &mut ServicePlan<'_>,
) {
    if plan.has_room(service) {
        let next = restart::replacement(service, key, lost, ctx);
        plan.make(service, Proposal::of([Change::put_task(next)]));
    }
}

/// Makes a task for each eligible node that has never had one.
pub(super) fn fill(
    service: &Service,
    nodes: &Eligibility<'_>,
    slots: &BTreeMap<SlotKey, Slot<'_>>,
    ctx: &mut Ctx,
    plan: &mut ServicePlan<'_>,
) {
    for node in nodes.running() {
        let key = SlotKey::Node(node.clone());
        if slots.contains_key(&key) {
            continue;
        }
        if !plan.has_room(service) {
            return;
        }
        let task = new_task(service, &key, None, ctx);
        plan.make(service, Proposal::of([Change::put_task(task)]));
    }
}
