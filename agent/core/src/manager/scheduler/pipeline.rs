//! The filters in their order, and what they are asked about.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use super::filter::{self, Filter};
use crate::{
    api::{Node, Resources, Service, Task, TaskState},
    id::Id,
    store::View,
    time::Timestamp,
};

/// Failures of a service's tasks on a node count against it for so long.
const FAILURE_WINDOW: Duration = Duration::from_secs(300);
/// A node with so many of them is taken only if there is no other.
const MAX_FAILURES: u64 = 5;

/// A node as the filters and the ranking see it, for one service.
pub(super) struct Candidate<'a> {
    pub(super) node: &'a Node,
    /// Active tasks of the service.
    pub(super) of_service: u64,
    /// All active tasks.
    pub(super) total: u64,
    /// What is not reserved.
    pub(super) free: Resources,
    /// Whether tasks of the service version have failed there again and again.
    pub(super) unlucky: bool,
}

/// All nodes and what runs on them, kept true while tasks are placed.
pub(super) struct Nodes<'a> {
    view: &'a View,
    load: BTreeMap<&'a Id<Node>, Load>,
    now: Timestamp,
}

#[derive(Default)]
struct Load {
    total: u64,
    reserved: Resources,
}

impl<'a> Nodes<'a> {
    pub(super) fn of(view: &'a View, now: Timestamp) -> Self {
        let mut load: BTreeMap<&Id<Node>, Load> = BTreeMap::new();
        for node in view.nodes() {
            load.insert(&node.id, Load::default());
        }
        let mut nodes = Self { view, load, now };
        for task in view.tasks().filter(|task| is_active(task)) {
            if let Some(node) = &task.node_id {
                nodes.add(node, task);
            }
        }
        nodes
    }

    /// Counts a task on a node.
    pub(super) fn add(&mut self, node: &Id<Node>, task: &Task) {
        if let Some(load) = self.load.get_mut(node) {
            load.total += 1;
            if let Some(reserved) = filter::reservations(task) {
                load.reserved.nano_cpus += reserved.nano_cpus;
                load.reserved.memory_bytes += reserved.memory_bytes;
            }
        }
    }

    /// Every node as one service sees it.
    pub(super) fn candidates(
        &self,
        service: &Id<Service>,
        spec_version: u64,
    ) -> Vec<Candidate<'a>> {
        let mut active: BTreeMap<&Id<Node>, u64> = BTreeMap::new();
        let mut failed: BTreeMap<&Id<Node>, u64> = BTreeMap::new();
        for task in self.view.tasks_of_service(service) {
            let Some(node) = &task.node_id else {
                continue;
            };
            if is_active(task) {
                *active.entry(node).or_default() += 1;
            } else if task.spec_version == spec_version && self.failed_lately(task) {
                *failed.entry(node).or_default() += 1;
            }
        }
        let nodes = self.view.nodes();
        nodes
            .map(|node| {
                let load = self.load.get(&node.id);
                Candidate {
                    node,
                    of_service: active.get(&node.id).copied().unwrap_or(0),
                    total: load.map_or(0, |load| load.total),
                    free: free(node, load),
                    unlucky: failed.get(&node.id).is_some_and(|it| *it >= MAX_FAILURES),
                }
            })
            .collect()
    }

    fn failed_lately(&self, task: &Task) -> bool {
        let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
        failed && self.now.since(task.status.timestamp) < FAILURE_WINDOW
    }
}

/// Whether a task takes up room on its node: it was sent there, and has not ended yet.
fn is_active(task: &Task) -> bool {
    task.is_assigned() && !task.status.state.is_terminal()
}

fn free(node: &Node, load: Option<&Load>) -> Resources {
    let has = node.description.as_ref().map(|it| it.resources.clone());
    let mut free = has.unwrap_or_default();
    if let Some(load) = load {
        free.nano_cpus -= load.reserved.nano_cpus;
        free.memory_bytes -= load.reserved.memory_bytes;
    }
    free
}

/// The filters that concern a task, in order.
pub(super) struct Pipeline {
    filters: Vec<Box<dyn Filter>>,
}

fn boxed<F: Filter + 'static>(filter: F) -> Box<dyn Filter> {
    Box::new(filter)
}

impl Pipeline {
    pub(super) fn of(task: &Task) -> Self {
        let mut pipeline = Self::of_bound(task);
        let most = filter::MaxReplicas::of(task).map(boxed);
        pipeline.filters.extend(most);
        pipeline
    }

    /// The same for a task that belongs to a node. It is the only one there, and would wait for the one that it
    /// takes the place of if they were counted.
    pub(super) fn of_bound(task: &Task) -> Self {
        let optional = [
            filter::Enough::of(task).map(boxed),
            filter::Constraints::of(task).map(boxed),
            filter::Platforms::of(task).map(boxed),
        ];
        let always = boxed(filter::Ready);
        Self {
            filters: [always]
                .into_iter()
                .chain(optional.into_iter().flatten())
                .collect(),
        }
    }

    /// The position of the first filter that refuses the node.
    pub(super) fn refusal(&self, node: &Candidate<'_>) -> Option<usize> {
        self.filters.iter().position(|filter| !filter.admits(node))
    }

    /// Why no node was found.
    pub(super) fn explain<'c, 'n: 'c>(
        &self,
        nodes: impl Iterator<Item = &'c Candidate<'n>>,
    ) -> String {
        match self.reasons(nodes) {
            reasons if reasons.is_empty() => "no suitable node".to_owned(),
            reasons => format!("no suitable node ({reasons})"),
        }
    }

    /// What each filter refused of these nodes, the most frequent reason first.
    pub(super) fn reasons<'c, 'n: 'c>(
        &self,
        nodes: impl Iterator<Item = &'c Candidate<'n>>,
    ) -> String {
        let mut refused = vec![0_usize; self.filters.len()];
        for filter in nodes.filter_map(|node| self.refusal(node)) {
            refused[filter] += 1;
        }
        let mut reasons: Vec<(usize, String)> = self
            .filters
            .iter()
            .zip(refused)
            .filter(|(_, nodes)| *nodes > 0)
            .map(|(filter, nodes)| (nodes, filter.explain(nodes)))
            .collect();
        reasons.sort_by_key(|(nodes, _)| Reverse(*nodes));
        let reasons: Vec<String> = reasons.into_iter().map(|(_, reason)| reason).collect();
        reasons.join("; ")
    }
}
