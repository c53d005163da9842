//! Never two live tasks in one slot beyond what the update order asks for.

use std::collections::BTreeMap;

use skep_core::{
    api::{Service, SlotKey, Task, TaskState},
    id::Id,
    store::View,
    testing::fleet::SimNode,
};

use crate::world::World;

fn limit(view: &View, service: &Id<Service>) -> usize {
    let service = view.service(service);
    // With start-first the old one stays until the new one runs. The setting itself may just have changed.
    let start_first = service.is_some_and(|service| {
        let specs = [Some(&service.spec), service.previous_spec.as_ref()];
        let configs = specs.into_iter().flatten();
        let configs = configs.flat_map(|spec| [&spec.update_config, &spec.rollback_config]);
        configs
            .flatten()
            .any(|config| config.order == "start-first")
    });
    if start_first { 2 } else { 1 }
}

/// The slot of a task: its number, or its node if its service is global.
fn slot(view: &View, task: &Task) -> SlotKey {
    let service = view.service(&task.service_id);
    service.map_or(SlotKey::Number(task.slot), |service| service.slot_of(task))
}

pub(crate) fn check(view: &View) {
    let mut live: BTreeMap<(&Id<Service>, SlotKey), Vec<_>> = BTreeMap::new();
    for task in view.tasks().filter(|task| task.is_live()) {
        let key = (&task.service_id, slot(view, task));
        let slot = live.entry(key).or_default();
        slot.push((
            &task.id,
            &task.predecessor,
            task.status.state,
            task.desired_state,
        ));
    }
    for ((service, slot), tasks) in live {
        assert!(
            tasks.len() <= limit(view, service),
            "live tasks in slot {slot:?} of service {service} at version {}: {tasks:#?}",
            view.version()
        );
    }
}

/// The same of what really runs, where the leader can see it.
pub(crate) fn check_containers(world: &World, view: &View) {
    let mut running: BTreeMap<(Id<Service>, SlotKey), Vec<String>> = BTreeMap::new();
    for (task, program) in world.nodes.iter().flat_map(SimNode::running) {
        // The tasks of a job's earlier run are stopped while the next one begins.
        let service = view.service(&task.service_id);
        let current = service.is_none_or(|service| service.is_current(task));
        // With start-first one that is told to stop may take its grace period, however many follow it meanwhile.
        let told = view.task(&task.id);
        let told = told.is_none_or(|task| task.desired_state > TaskState::Running);
        let stops = told && limit(view, &task.service_id) > 1;
        if !program.was_cut && current && !stops {
            let slot = (task.service_id.clone(), slot(view, task));
            running.entry(slot).or_default().push(task.id.to_string());
        }
    }
    for ((service, slot), tasks) in running {
        assert!(
            tasks.len() <= limit(view, &service),
            "containers {tasks:?} run in slot {slot:?} of service {service}"
        );
    }
}
