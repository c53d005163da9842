//! Observed and desired state of a task only grow.

use std::collections::BTreeMap;

use skep_core::{
    api::{Task, TaskState},
    id::Id,
    store::View,
};

#[derive(Default)]
pub(crate) struct States(BTreeMap<Id<Task>, (TaskState, TaskState)>);

impl States {
    pub(crate) fn check(&mut self, view: &View) {
        let mut now = BTreeMap::new();
        for task in view.tasks() {
            let states = (task.status.state, task.desired_state);
            if let Some(before) = self.0.get(&task.id) {
                assert!(
                    states.0 >= before.0 && states.1 >= before.1,
                    "task {} went from {before:?} to {states:?}",
                    task.id
                );
            }
            now.insert(task.id.clone(), states);
        }
        self.0 = now;
    }
}
