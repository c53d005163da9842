//! Placement preferences: the nodes as a tree, in which each preference splits the branches of the one before
//! by the values of a label.

use std::{cmp::Reverse, collections::BTreeMap, collections::BinaryHeap};

use super::{pipeline::Candidate, strategy::Rank};
use crate::api::{Node, PlacementPreference};

/// The label that a preference spreads over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::manager) enum Label {
    Node(String),
    Engine(String),
}

impl Label {
    /// `None` for a text that is neither `node.labels.<key>` nor `engine.labels.<key>`. As in constraints, the
    /// case of the prefix does not matter, that of the key does.
    pub(in crate::manager) fn parse(text: &str) -> Option<Self> {
        let key = |prefix: &str| {
            let head = text.get(..prefix.len())?;
            let key = &text[prefix.len()..];
            (head.eq_ignore_ascii_case(prefix) && !key.is_empty()).then(|| key.to_owned())
        };
        let node = key("node.labels.").map(Label::Node);
        node.or_else(|| key("engine.labels.").map(Label::Engine))
    }

    /// The labels of a task's preferences, the widest first. What validation would have refused does not spread.
    pub(super) fn of(preferences: &[PlacementPreference]) -> Vec<Self> {
        let spreads = preferences.iter().filter_map(|it| it.spread.as_ref());
        spreads
            .filter_map(|spread| Label::parse(&spread.spread_descriptor))
            .collect()
    }

    /// The node's value; nodes without the label are a branch of their own.
    fn value<'n>(&self, node: &'n Node) -> &'n str {
        let value = match self {
            Label::Node(key) => node.spec.labels.get(key),
            Label::Engine(key) => {
                let engine = node.description.as_ref().map(|it| &it.engine);
                engine.and_then(|engine| engine.labels.get(key))
            }
        };
        value.map_or("", String::as_str)
    }
}

/// The nodes with the same values of the labels so far.
#[derive(Default)]
pub(super) struct Branch {
    /// Tasks of the service on all of its nodes, also on those that take no more.
    tasks: u64,
    /// By the values of the next label; empty at the end of a branch.
    branches: BTreeMap<String, Branch>,
    /// At the end of a branch, the nodes that take a task, the best on top, so that a placement costs
    /// O(log nodes).
    open: BinaryHeap<Reverse<Rank>>,
}

impl Branch {
    /// Adds a node where its labels say; `rank` if it takes a task.
    pub(super) fn add(&mut self, labels: &[Label], node: &Candidate<'_>, rank: Option<Rank>) {
        let mut branch = self;
        for label in labels {
            branch.tasks += node.of_service;
            let value = label.value(node.node).to_owned();
            branch = branch.branches.entry(value).or_default();
        }
        branch.tasks += node.of_service;
        branch.open.extend(rank.map(Reverse));
    }

    /// Gives `put` the best node of the branch with the fewest tasks that has one; it says what rank the node
    /// has with the new task, if it takes another. `false` if no node takes a task.
    pub(super) fn place(&mut self, put: &mut impl FnMut(&Rank) -> Option<Rank>) -> bool {
        let placed = match self.open.pop() {
            Some(Reverse(best)) => {
                self.open.extend(put(&best).map(Reverse));
                true
            }
            None => {
                self.branches.retain(|_, branch| branch.has_room());
                let branches = self.branches.values_mut();
                let fewest = branches.min_by_key(|branch| branch.tasks);
                fewest.is_some_and(|branch| branch.place(put))
            }
        };
        self.tasks += u64::from(placed);
        placed
    }

    fn has_room(&self) -> bool {
        !self.open.is_empty() || self.branches.values().any(Branch::has_room)
    }
}
