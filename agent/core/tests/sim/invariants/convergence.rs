//! Once nothing breaks any more, what runs is what was asked for.

use std::collections::BTreeSet;

use skep_core::{
    api::{ModeKind, NodeState, Service, TaskState},
    manager::{constraint, query},
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
    super::secrets::check_rest(world, &view)?;
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
    let live = view.tasks_of_service(&service.id);
    let live: Vec<_> = live.filter(|task| task.is_live()).collect();
    if service.spec.mode.kind().is_job() {
        let status = query::service_status(view, service);
        let (wanted, done) = (wanted(view, service), status.completed_tasks);
        return match (live.len(), done) {
            (0, done) if done == wanted => Ok(()),
            (live, done) => Err(format!("job {name}: {done} of {wanted} done, {live} live")),
        };
    }
    let running = live
        .iter()
        .filter(|task| task.status.state == TaskState::Running);
    let (wanted, running) = (wanted(view, service), running.count() as u64);
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

/// How many tasks shall run, or shall have ended well if it is a job.
fn wanted(view: &View, service: &Service) -> u64 {
    let mode = &service.spec.mode;
    let placement = service.spec.task_template.placement.as_ref();
    let texts = placement.map_or(&[][..], |placement| &placement.constraints);
    let constraints = constraint::parse_all(texts).expect("constraints that were checked");
    let fits = view
        .nodes()
        .filter(|node| constraints.iter().all(|one| one.matches(node)));
    match mode.kind() {
        ModeKind::Replicated => service.replicas(),
        ModeKind::ReplicatedJob => mode.replicated_job.as_ref().map_or(1, |job| job.total()),
        ModeKind::Global => fits.count() as u64,
        // What was done on a node that fits no more is done all the same.
        ModeKind::GlobalJob => {
            let tasks = view.tasks_of_service(&service.id);
            let done = tasks.filter(|task| service.counts(task));
            let done = done.filter_map(|task| task.node_id.clone());
            let nodes: BTreeSet<_> = done.chain(fits.map(|node| node.id.clone())).collect();
            nodes.len() as u64
        }
    }
}

fn check_containers(world: &World, view: &View) -> Result<(), String> {
    for node in &world.nodes {
        for (task, _) in node.running() {
            let task = view.task(&task.id);
            let wanted = task.is_some_and(|task| {
                task.desired_state == task.goal() && task.node_id.as_ref() == Some(&node.id)
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
