//! A secret is only where a task that uses it has been assigned, and never on a disk.

use std::collections::{BTreeMap, BTreeSet};

use skep_core::{
    api::{DependencyId, Node, TaskState},
    id::Id,
    manager::dispatcher::needed,
    store::View,
};

use crate::world::{SECRET, World};

/// What each node was ever to have.
#[derive(Default)]
pub(crate) struct Secrets(BTreeMap<Id<Node>, BTreeSet<DependencyId>>);

impl Secrets {
    pub(crate) fn learn(&mut self, view: &View) {
        for task in view.tasks() {
            if let Some(node) = &task.node_id {
                let known = self.0.entry(node.clone()).or_default();
                known.extend(needed(task));
            }
        }
    }

    pub(crate) fn check(&self, world: &World) {
        for node in &world.nodes {
            let granted = self.0.get(&node.id);
            for held in node.dependencies() {
                let may = granted.is_some_and(|granted| granted.contains(held));
                assert!(may, "{} has {held} and no task for it", node.hostname);
            }
            let saved = serde_json::to_string(&node.machine.disk).expect("a document");
            let encoded = data_encoding::BASE64.encode(SECRET);
            assert!(
                !saved.contains(&encoded),
                "{} has a secret on its disk",
                node.hostname
            );
        }
    }
}

/// Once nothing breaks any more, a node has what its tasks need and nothing else.
pub(crate) fn check_rest(world: &World, view: &View) -> Result<(), String> {
    for node in &world.nodes {
        let tasks = view.tasks_on_node(&node.id);
        let assigned = tasks.filter(|task| task.status.state >= TaskState::Assigned);
        let wanted: BTreeSet<DependencyId> = assigned.flat_map(|task| needed(task)).collect();
        let held: BTreeSet<DependencyId> = node.dependencies().cloned().collect();
        if held != wanted {
            return Err(format!(
                "{} has {held:?} and needs {wanted:?}",
                node.hostname
            ));
        }
    }
    Ok(())
}
