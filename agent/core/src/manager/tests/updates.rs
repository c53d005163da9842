//! Rolling updates and rollbacks.

use std::{sync::Arc, time::Duration};

use crate::{
    api::{ClusterRequest, Service, Task, TaskState, UpdateConfig},
    id::Id,
    testing::bench::{Bench, service},
};

fn image(spec: &mut crate::api::ServiceSpec, image: &str) {
    image.clone_into(&mut spec.task_template.container_spec.as_mut().unwrap().image);
}

fn image_of(task: &Task) -> &str {
    &task.spec.container_spec.as_ref().unwrap().image
}

fn running(replicas: u64, config: UpdateConfig) -> (Bench, Id<Service>) {
    let mut bench = Bench::new(3);
    let mut spec = service("web", replicas);
    spec.update_config = Some(config);
    let web = bench.create(&spec);
    bench.obey();
    (bench, web)
}

fn state(bench: &Bench, web: &Id<Service>) -> String {
    let view = bench.view();
    let status = view.service(web).unwrap().update_status.clone();
    status.map_or_else(String::new, |it| it.state)
}

fn new_ones(bench: &Bench, web: &Id<Service>) -> Vec<Arc<Task>> {
    let mut live = bench.live(web);
    live.retain(|task| image_of(task) == "busybox:2");
    live
}

#[test]
fn tasks_are_replaced_one_at_a_time_and_the_old_one_stops_first() {
    let config = UpdateConfig {
        parallelism: 1,
        delay: Duration::from_secs(10),
        ..UpdateConfig::default()
    };
    let (mut bench, web) = running(3, config);
    bench.update(&web, |spec| image(spec, "busybox:2"));
    bench.settle();
    assert_eq!(state(&bench, &web), "updating");
    assert_eq!(new_ones(&bench, &web).len(), 1);
    assert_eq!(
        bench.live(&web).len(),
        3,
        "one of them is being stopped, none is extra"
    );
    assert_eq!(new_ones(&bench, &web)[0].desired_state, TaskState::Ready);
    bench.obey();
    assert_eq!(new_ones(&bench, &web).len(), 1, "the delay holds");
    assert_eq!(new_ones(&bench, &web)[0].status.state, TaskState::Running);
    for done in 2..=3 {
        bench.wait(Duration::from_secs(10));
        bench.obey();
        assert_eq!(new_ones(&bench, &web).len(), done);
    }
    assert_eq!(state(&bench, &web), "updating", "the last one is watched");
    bench.wait(Duration::from_secs(5));
    bench.obey();
    assert_eq!(state(&bench, &web), "completed");
    assert_eq!(bench.live(&web).len(), 3);
}

#[test]
fn start_first_keeps_the_old_task_until_the_new_one_runs() {
    let config = UpdateConfig {
        parallelism: 0,
        order: "start-first".to_owned(),
        ..UpdateConfig::default()
    };
    let (mut bench, web) = running(2, config);
    bench.update(&web, |spec| image(spec, "busybox:2"));
    bench.settle();
    assert_eq!(bench.live(&web).len(), 4);
    assert!(
        new_ones(&bench, &web)
            .iter()
            .all(|it| it.desired_state == TaskState::Running)
    );
    bench.obey();
    assert_eq!(bench.live(&web).len(), 2);
    assert_eq!(new_ones(&bench, &web).len(), 2);
}

#[test]
fn a_failing_update_pauses_and_names_the_task() {
    let (mut bench, web) = running(
        3,
        UpdateConfig {
            parallelism: 1,
            ..UpdateConfig::default()
        },
    );
    bench.update(&web, |spec| image(spec, "busybox:2"));
    bench.settle();
    let first = new_ones(&bench, &web).remove(0);
    bench.report(&first, TaskState::Rejected);
    bench.settle();
    assert_eq!(state(&bench, &web), "paused");
    let message = bench
        .view()
        .service(&web)
        .unwrap()
        .update_status
        .clone()
        .unwrap()
        .message;
    assert_eq!(
        message,
        format!(
            "update paused due to failure or early termination of task {}",
            first.id
        )
    );
    bench.wait(Duration::from_secs(60));
    bench.obey();
    let old = bench
        .live(&web)
        .iter()
        .filter(|it| image_of(it) == "busybox:latest")
        .count();
    assert_eq!(old, 2, "the other slots are left alone");
    // A better spec goes on.
    bench.update(&web, |spec| image(spec, "busybox:3"));
    for _ in 0..4 {
        bench.obey();
        bench.wait(Duration::from_secs(6));
    }
    assert!(
        bench
            .live(&web)
            .iter()
            .all(|it| image_of(it) == "busybox:3")
    );
    bench.settle();
    assert_eq!(state(&bench, &web), "completed");
}

#[test]
fn a_failing_update_rolls_back() {
    let config = UpdateConfig {
        parallelism: 2,
        failure_action: "rollback".to_owned(),
        ..UpdateConfig::default()
    };
    let (mut bench, web) = running(3, config);
    bench.update(&web, |spec| image(spec, "busybox:2"));
    bench.settle();
    let first = new_ones(&bench, &web).remove(0);
    bench.report(&first, TaskState::Failed);
    bench.settle();
    assert_eq!(state(&bench, &web), "rollback_started");
    for _ in 0..4 {
        bench.obey();
        bench.wait(Duration::from_secs(6));
    }
    bench.settle();
    assert_eq!(state(&bench, &web), "rollback_completed");
    assert_eq!(bench.live(&web).len(), 3);
    assert!(
        bench
            .live(&web)
            .iter()
            .all(|it| image_of(it) == "busybox:latest")
    );
}

#[test]
fn continue_does_not_stop() {
    let config = UpdateConfig {
        parallelism: 1,
        failure_action: "continue".to_owned(),
        ..UpdateConfig::default()
    };
    let (mut bench, web) = running(3, config);
    bench.update(&web, |spec| image(spec, "busybox:2"));
    bench.settle();
    let first = new_ones(&bench, &web).remove(0);
    bench.report(&first, TaskState::Failed);
    bench.obey();
    assert!(
        new_ones(&bench, &web).len() >= 2,
        "another slot is under way"
    );
}

#[test]
fn a_user_rolls_back() {
    let (mut bench, web) = running(
        2,
        UpdateConfig {
            parallelism: 0,
            ..UpdateConfig::default()
        },
    );
    bench.update(&web, |spec| image(spec, "busybox:2"));
    bench.obey();
    let service = bench.view().service(&web).unwrap().clone();
    let rollback = |version| ClusterRequest::ServiceUpdate {
        service: "web".to_owned(),
        version,
        spec: Box::new(service.spec.clone()),
        rollback: true,
    };
    bench.request(&rollback(service.meta.version)).unwrap();
    for _ in 0..4 {
        bench.obey();
        bench.wait(Duration::from_secs(6));
    }
    assert!(
        bench
            .live(&web)
            .iter()
            .all(|it| image_of(it) == "busybox:latest")
    );
    let version = bench.view().service(&web).unwrap().meta.version;
    let error = bench.request(&rollback(version)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "service web does not have a previous spec"
    );
}

#[test]
fn scaling_and_limits_of_the_update_replace_nothing() {
    let (mut bench, web) = running(2, UpdateConfig::default());
    let before = bench.live(&web);
    bench.update(&web, |spec| {
        spec.mode.replicated.as_mut().unwrap().replicas = Some(3);
        spec.update_config.as_mut().unwrap().parallelism = 5;
    });
    bench.obey();
    let after = bench.live(&web);
    assert_eq!(after.len(), 3);
    assert!(
        before
            .iter()
            .all(|task| after.iter().any(|it| it.id == task.id))
    );
}

#[test]
fn a_constraint_that_the_node_satisfies_replaces_nothing() {
    let (mut bench, web) = running(1, UpdateConfig::default());
    let task = bench.live(&web).remove(0);
    let node = task.node_id.clone().unwrap();
    bench.update(&web, |spec| {
        let placement = spec.task_template.placement.get_or_insert_default();
        placement.constraints = vec![format!("node.id=={node}")];
    });
    bench.obey();
    assert_eq!(bench.live(&web)[0].id, task.id);
}
