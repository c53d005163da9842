//! Once nothing breaks any more, what runs is what was asked for.

use skep_core::{
    api::{NodeState, Service, TaskState},
    store::View,
};

use crate::world::World;

pub(crate) fn check(world: &World) -> Result<(), String> {
    let view = world.log.view();
    for node in view.nodes() {
        if node.status.state != NodeState::Ready {
            return Err(format!("node {} is {:?}", node.id, node.status.state));
        }
    }
    for service in view.services() {
        check_service(&view, service)?;
    }
    check_containers(world, &view)?;
    match world.leader_is_idle() {
        true => Ok(()),
        false => Err("the leader is still planning".to_owned()),
    }
}

fn check_service(view: &View, service: &Service) -> Result<(), String> {
    let name = &service.spec.name;
    if service.pending_delete {
        return Err(format!("service {name} is still being removed"));
    }
    let status = service.update_status.as_ref();
    let status = status.map_or("", |status| status.state.as_str());
    if ["updating", "rollback_started"].contains(&status) {
        return Err(format!("service {name} is {status}"));
    }
    let live = view.tasks_of_service(&service.id).filter(|task| {
        task.desired_state <= TaskState::Running && !task.status.state.is_terminal()
    });
    let live: Vec<_> = live.collect();
    let running = live
        .iter()
        .filter(|task| task.status.state == TaskState::Running);
    let (wanted, running) = (service.replicas(), running.count() as u64);
    if (live.len() as u64, running) != (wanted, wanted) {
        let states: Vec<_> = live
            .iter()
            .map(|task| {
                (
                    task.slot,
                    task.status.state,
                    task.desired_state,
                    &task.status.err,
                )
            })
            .collect();
        return Err(format!("service {name} wants {wanted} and has {states:?}"));
    }
    let paused = status.ends_with("paused");
    let outdated = live
        .iter()
        .filter(|task| task.spec != service.spec.task_template);
    match outdated.count() {
        some if some > 0 && !paused => Err(format!("{some} tasks of {name} are outdated")),
        _ => Ok(()),
    }
}

fn check_containers(world: &World, view: &View) -> Result<(), String> {
    for node in &world.nodes {
        for (task, _) in node.running() {
            let task = view.task(&task.id);
            let wanted = task.is_some_and(|task| {
                task.desired_state == TaskState::Running && task.node_id.as_ref() == Some(&node.id)
            });
            if !wanted {
                return Err(format!("{} runs a task for nobody", node.hostname));
            }
        }
    }
    match world.watchers.settled() {
        Some(version) if version == view.version() => Ok(()),
        settled => Err(format!(
            "the mesh is settled at {settled:?}, the state is at {}",
            view.version()
        )),
    }
}
