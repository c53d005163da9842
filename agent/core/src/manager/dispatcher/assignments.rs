//! What a node shall run.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    api::{Node, Task, TaskState, TaskStatus},
    id::Id,
    store::View,
};

/// The tasks of one node at one version.
#[derive(Debug, Clone, Default)]
pub struct AssignmentSet {
    /// By id; tasks that have ended stay until they are forgotten, so that their logs do.
    pub tasks: BTreeMap<Id<Task>, Arc<Task>>,
}

/// One difference between two sets.
#[derive(Debug, Clone, PartialEq)]
pub enum AssignmentChange {
    /// A task is new, or something of it other than what its node reports has changed.
    Update(Arc<Task>),
    /// A task is not assigned any more.
    Remove(Id<Task>),
}

/// The set of a node. Its tasks are those that have got this node.
#[must_use]
pub fn assignments(view: &View, node: &Id<Node>) -> AssignmentSet {
    let tasks = view.tasks_on_node(node);
    let tasks = tasks.filter(|task| task.status.state >= TaskState::Assigned);
    AssignmentSet {
        tasks: tasks
            .map(|task| (task.id.clone(), Arc::clone(task)))
            .collect(),
    }
}

impl AssignmentSet {
    /// What a node that has this set must be told to have `newer`: removals first.
    #[must_use]
    pub fn diff(&self, newer: &AssignmentSet) -> Vec<AssignmentChange> {
        let gone = self.tasks.keys();
        let gone = gone.filter(|id| !newer.tasks.contains_key(id));
        let news = newer.tasks.iter().filter(|(id, task)| {
            let before = self.tasks.get(id);
            before.is_none_or(|before| !Arc::ptr_eq(before, task) && differs(before, task))
        });
        let gone = gone.map(|id| AssignmentChange::Remove(id.clone()));
        gone.chain(news.map(|(_, task)| AssignmentChange::Update(Arc::clone(task))))
            .collect()
    }
}

/// Whether something that the node does not know by itself differs.
fn differs(a: &Task, b: &Task) -> bool {
    let told = |task: &Task| Task {
        status: TaskStatus::default(),
        running_since: None,
        meta: crate::api::Meta::default(),
        ..task.clone()
    };
    told(a) != told(b)
}
