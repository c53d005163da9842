//! Puts the wishes of several loops together: each loop sees what the earlier ones want, and what
//! leaves in the end is one change per object.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    api::{Meta, Service, SlotKey},
    id::Id,
    store::{Change, Object, ObjectId, Proposal, View},
    time::Timestamp,
};

/// A pass in the making.
pub(super) struct Plan<'a> {
    base: &'a View,
    work: View,
    /// Objects that must change together, as a forest: each points to another of its group.
    groups: Vec<usize>,
    objects: Vec<ObjectId>,
    position: BTreeMap<ObjectId, usize>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(base: &'a View) -> Self {
        Self {
            base,
            work: base.clone(),
            groups: Vec::new(),
            objects: Vec::new(),
            position: BTreeMap::new(),
        }
    }

    /// The state as it would be with every wish so far.
    pub(super) fn view(&self) -> &View {
        &self.work
    }

    pub(super) fn add(&mut self, proposals: &[Proposal]) {
        for proposal in proposals {
            self.work.stage(proposal);
            let mut first = None;
            for change in &proposal.changes {
                let position = self.enter(change.object());
                self.join(*first.get_or_insert(position), position);
            }
        }
    }

    /// One proposal per group, each object once, in the order in which the groups came up. Whole
    /// groups are left for the next pass once there are `limit` changes.
    pub(super) fn finish(mut self, now: Timestamp, limit: usize) -> Vec<Proposal> {
        self.join_dependent();
        let mut proposals: BTreeMap<usize, Proposal> = BTreeMap::new();
        for position in 0..self.objects.len() {
            let group = self.root(position);
            let change = self.change(&self.objects[position], now);
            let proposal = proposals.entry(group).or_default();
            proposal.changes.extend(change);
        }
        let mut room = limit;
        let mut some = Vec::new();
        for proposal in proposals.into_values() {
            if proposal.changes.is_empty() {
                continue;
            }
            // A group larger than the limit still goes, alone.
            if !some.is_empty() && proposal.changes.len() > room {
                break;
            }
            room = room.saturating_sub(proposal.changes.len());
            some.push(proposal);
        }
        some
    }

    /// A task carries a copy of its service's endpoint and addresses out of its networks' ranges: if
    /// those are new in this plan, the task may not come without them. The tasks of a slot make way for
    /// each other: they change together.
    fn join_dependent(&mut self) {
        let mut slots: BTreeMap<(Id<Service>, SlotKey), usize> = BTreeMap::new();
        for position in 0..self.objects.len() {
            let needs = match self.work.object(&self.objects[position]) {
                Some(Object::Task(task)) => {
                    let service = self.work.service(&task.service_id);
                    let number = SlotKey::Number(task.slot);
                    let key = service.map_or(number, |service| service.slot_of(&task));
                    let slot = (task.service_id.clone(), key);
                    let first = *slots.entry(slot).or_insert(position);
                    self.join(first, position);
                    let networks = task.networks.iter().map(|it| it.network_id.clone());
                    let mut needs: Vec<_> = networks.map(ObjectId::Network).collect();
                    needs.push(ObjectId::Service(task.service_id.clone()));
                    needs
                }
                Some(Object::Service(service)) => {
                    let networks = service.endpoint.virtual_ips.iter();
                    let networks = networks.map(|it| it.network_id.clone());
                    networks.map(ObjectId::Network).collect()
                }
                Some(
                    Object::Cluster(_)
                    | Object::Network(_)
                    | Object::Node(_)
                    | Object::Secret(_)
                    | Object::Config(_),
                )
                | None => continue,
            };
            for need in needs {
                let new = match &need {
                    ObjectId::Network(id) => {
                        let before = self.base.network(id);
                        before.is_none_or(|network| network.state.is_none())
                    }
                    ObjectId::Cluster
                    | ObjectId::Node(_)
                    | ObjectId::Service(_)
                    | ObjectId::Task(_)
                    | ObjectId::Secret(_)
                    | ObjectId::Config(_) => true,
                };
                if let Some(other) = self.position.get(&need).copied().filter(|_| new) {
                    self.join(other, position);
                }
            }
        }
    }

    fn change(&self, id: &ObjectId, now: Timestamp) -> Option<Change> {
        let (before, after) = (self.base.object(id), self.work.object(id));
        match (before, after) {
            (None, None) => None,
            (Some(before), None) => Some(Change::Delete {
                object: id.clone(),
                version: before.version(),
            }),
            (Some(before), Some(after)) if before == after => None,
            (_, Some(after)) => Some(Change::Put(stamped(after, now))),
        }
    }

    fn enter(&mut self, id: ObjectId) -> usize {
        let next = self.objects.len();
        let position = *self.position.entry(id.clone()).or_insert(next);
        if position == next {
            self.objects.push(id);
            self.groups.push(next);
        }
        position
    }

    fn root(&mut self, mut position: usize) -> usize {
        while self.groups[position] != position {
            self.groups[position] = self.groups[self.groups[position]];
            position = self.groups[position];
        }
        position
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        let (low, high) = (a.min(b), a.max(b));
        self.groups[high] = low;
    }
}

fn stamped(object: Object, now: Timestamp) -> Object {
    fn at<T: Clone>(object: Arc<T>, now: Timestamp, meta: fn(&mut T) -> &mut Meta) -> Arc<T> {
        let mut object = Arc::unwrap_or_clone(object);
        meta(&mut object).updated_at = now;
        Arc::new(object)
    }
    match object {
        Object::Cluster(cluster) => Object::Cluster(at(cluster, now, |it| &mut it.meta)),
        Object::Node(node) => Object::Node(at(node, now, |it| &mut it.meta)),
        Object::Service(service) => Object::Service(at(service, now, |it| &mut it.meta)),
        Object::Network(network) => Object::Network(at(network, now, |it| &mut it.meta)),
        Object::Task(task) => Object::Task(at(task, now, |it| &mut it.meta)),
        Object::Secret(secret) => Object::Secret(at(secret, now, |it| &mut it.meta)),
        Object::Config(config) => Object::Config(at(config, now, |it| &mut it.meta)),
    }
}
