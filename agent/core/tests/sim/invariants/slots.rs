//! Never two live tasks in one slot beyond what the update order asks for.

use std::collections::BTreeMap;

use skep_core::{
    api::{Service, TaskState},
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

pub(crate) fn check(view: &View) {
    let mut live: BTreeMap<(&Id<Service>, u64), Vec<_>> = BTreeMap::new();
    let wanted = view.tasks().filter(|task| {
        task.desired_state <= TaskState::Running && !task.status.state.is_terminal()
    });
    for task in wanted {
        let slot = live.entry((&task.service_id, task.slot)).or_default();
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
            "live tasks in slot {slot} of service {service} at version {}: {tasks:#?}",
            view.version()
        );
    }
}

/// The same of what really runs, where the leader can see it.
pub(crate) fn check_containers(world: &World, view: &View) {
    let mut running: BTreeMap<(Id<Service>, u64), Vec<String>> = BTreeMap::new();
    for (task, program) in world.nodes.iter().flat_map(SimNode::running) {
        if !program.was_cut {
            let slot = (task.service_id.clone(), task.slot);
            running.entry(slot).or_default().push(task.id.to_string());
        }
    }
    for ((service, slot), tasks) in running {
        assert!(
            tasks.len() <= limit(view, &service),
            "containers {tasks:?} run in slot {slot} of service {service}"
        );
    }
}
