//! A job never runs more at a time than it may, and what it has done is not forgotten before its next run.

use std::collections::BTreeSet;

use skep_core::{
    api::{Service, SlotKey},
    id::Id,
    store::View,
};

/// A part of a run: the service, its run, and the slot.
type Part = (Id<Service>, u64, SlotKey);

#[derive(Default)]
pub(crate) struct Jobs {
    done: BTreeSet<Part>,
}

impl Jobs {
    pub(crate) fn check(&mut self, view: &View) {
        let mut done = BTreeSet::new();
        for service in view.services().filter(|service| !service.pending_delete) {
            let Some(run) = service.iteration() else {
                continue;
            };
            let tasks = view.tasks_of_service(&service.id);
            let tasks: Vec<_> = tasks.filter(|task| service.is_current(task)).collect();
            let counted = tasks.iter().filter(|task| service.counts(task));
            done.extend(counted.map(|task| (service.id.clone(), run, service.slot_of(task))));
            if let Some(job) = &service.spec.mode.replicated_job {
                let live = tasks.iter().filter(|task| task.is_live()).count() as u64;
                assert!(
                    live <= job.concurrent(),
                    "{live} tasks of job {} live, and {} may",
                    service.spec.name,
                    job.concurrent()
                );
                let beyond = tasks.iter().find(|task| task.slot >= job.total());
                assert!(beyond.is_none(), "a task beyond the last part: {beyond:?}");
            }
        }
        for part in &self.done {
            let (id, run, slot) = part;
            let service = view.service(id).filter(|service| !service.pending_delete);
            let goes_on = service.is_some_and(|service| service.iteration() == Some(*run));
            let node_is_there = match slot {
                SlotKey::Node(node) => view.node(node).is_some(),
                SlotKey::Number(_) => true,
            };
            assert!(
                !goes_on || !node_is_there || done.contains(part),
                "what was done is forgotten: {part:?}"
            );
        }
        self.done = done;
    }
}
