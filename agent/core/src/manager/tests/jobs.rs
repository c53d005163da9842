//! Jobs: so many at a time, each part done once, and again at the next update.

use std::{net::IpAddr, sync::Arc, time::Duration};

use crate::{
    api::{
        ApiError, Availability, ClusterRequest, NodeState, RestartPolicy, Service, ServiceSpec,
        Task, TaskState, UpdateConfig, task::RestartCondition,
    },
    id::Id,
    manager::query,
    testing::bench::{Bench, global_job, job, service},
};

/// Running, wanted at a time, and done.
fn status(bench: &Bench, id: &Id<Service>) -> (u64, u64, u64) {
    let view = bench.view();
    let status = query::service_status(&view, view.service(id).unwrap());
    (
        status.running_tasks,
        status.desired_tasks,
        status.completed_tasks,
    )
}

fn slots(bench: &Bench, id: &Id<Service>) -> Vec<u64> {
    bench.live(id).iter().map(|task| task.slot).collect()
}

fn end_one(bench: &mut Bench, id: &Id<Service>, state: TaskState) -> Arc<Task> {
    let task = bench.live(id).remove(0);
    bench.report(&task, state);
    bench.obey();
    task
}

fn again(bench: &mut Bench, id: &Id<Service>) {
    bench.update(id, |spec| spec.task_template.force_update += 1);
}

fn restarting(mut spec: ServiceSpec, condition: RestartCondition, attempts: u64) -> ServiceSpec {
    spec.task_template.restart_policy = Some(RestartPolicy {
        condition: Some(condition),
        max_attempts: Some(attempts),
        ..RestartPolicy::default()
    });
    spec
}

#[test]
fn so_many_run_at_a_time_until_all_have_ended_well() {
    let mut bench = Bench::new(3);
    let id = bench.create(&job("sum", 2, 5));
    bench.obey();
    assert_eq!(slots(&bench, &id), [0, 1]);
    assert!(
        bench
            .live(&id)
            .iter()
            .all(|it| it.desired_state == TaskState::Complete)
    );
    assert_eq!(status(&bench, &id), (2, 2, 0));
    end_one(&mut bench, &id, TaskState::Complete);
    assert_eq!(slots(&bench, &id), [1, 2]);
    for _ in 0..4 {
        end_one(&mut bench, &id, TaskState::Complete);
    }
    assert_eq!(status(&bench, &id), (0, 2, 5));
    assert_eq!(bench.live(&id).len(), 0);
    let tasks = bench.tasks(&id);
    assert_eq!(
        tasks.iter().map(|it| it.slot).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4]
    );
    let rest = crate::manager::pass(&bench.view(), &mut bench.ctx);
    assert_eq!((rest.proposals, rest.wake_at), (vec![], None));
}

#[test]
fn what_is_done_is_kept_whatever_the_history_limit() {
    let mut bench = Bench::new(2);
    let mut cluster = crate::api::Cluster::clone(bench.view().cluster().unwrap());
    cluster.spec.orchestration.task_history_retention_limit = Some(0);
    bench.must([crate::store::Change::put_cluster(cluster)]);
    let id = bench.create(&job("sum", 2, 2));
    bench.obey();
    end_one(&mut bench, &id, TaskState::Complete);
    let lost = bench.live(&id).remove(0);
    let name = |bench: &Bench, task: &Task| {
        let view = bench.view();
        let node = view.node(task.node_id.as_ref().unwrap()).unwrap();
        node.description.as_ref().unwrap().hostname.clone()
    };
    let hostname = name(&bench, &lost);
    bench.change_node(&hostname, |node| {
        node.spec.availability = Availability::Drain
    });
    bench.settle();
    // It ends well all the same, and its part need not be done twice.
    bench.report(&lost, TaskState::Complete);
    bench.obey();
    assert_eq!(status(&bench, &id), (0, 2, 2));
    assert_eq!(bench.live(&id).len(), 0);
}

#[test]
fn a_task_that_fails_is_tried_again_as_its_policy_says() {
    let mut bench = Bench::new(2);
    let id = bench.create(&job("sum", 1, 2));
    bench.obey();
    let failed = end_one(&mut bench, &id, TaskState::Failed);
    let next = bench.live(&id).remove(0);
    assert_eq!((next.slot, next.desired_state), (0, TaskState::Ready));
    assert_eq!(next.predecessor.as_ref(), Some(&failed.id));
    assert_eq!(bench.live(&id).len(), 1, "it keeps its place");
    bench.wait(Duration::from_secs(5));
    bench.obey();
    let next = bench.live(&id).remove(0);
    assert_eq!(next.status.state, TaskState::Running);
    assert_eq!(next.desired_state, TaskState::Complete);
}

#[test]
fn a_part_without_attempts_left_is_given_up_and_makes_room() {
    for (condition, attempts, runs) in [
        (RestartCondition::None, 0, 1),
        (RestartCondition::OnFailure, 2, 3),
        (RestartCondition::Any, 1, 2),
    ] {
        let mut bench = Bench::new(2);
        let id = bench.create(&restarting(job("sum", 1, 2), condition, attempts));
        for _ in 0..runs {
            bench.obey();
            assert_eq!(slots(&bench, &id), [0], "{condition:?}");
            end_one(&mut bench, &id, TaskState::Failed);
            bench.wait(Duration::from_secs(6));
        }
        bench.obey();
        assert_eq!(slots(&bench, &id), [1], "{condition:?}");
        end_one(&mut bench, &id, TaskState::Complete);
        bench.wait(Duration::from_secs(60));
        bench.obey();
        assert_eq!(status(&bench, &id), (0, 1, 1), "{condition:?}");
        assert_eq!(bench.live(&id).len(), 0);
    }
}

#[test]
fn an_update_runs_the_job_again() {
    let mut bench = Bench::new(2);
    let id = bench.create(&job("sum", 2, 3));
    bench.obey();
    let done = end_one(&mut bench, &id, TaskState::Complete);
    let running = bench.live(&id).remove(0);
    bench.wait(Duration::from_secs(10));
    again(&mut bench, &id);
    let service = Arc::clone(bench.view().service(&id).unwrap());
    let job = service.job_status.clone().unwrap();
    assert_eq!((job.job_iteration, job.last_execution), (1, bench.ctx.now));
    assert_eq!(status(&bench, &id), (0, 2, 0));
    bench.obey();
    assert_eq!(slots(&bench, &id), [0, 1]);
    assert!(bench.live(&id).iter().all(|it| it.job_iteration == Some(1)));
    let old = bench.view().task(&done.id).cloned().unwrap();
    assert_eq!(old.desired_state, TaskState::Shutdown, "it is history");
    assert!(bench.view().task(&running.id).is_none(), "it was removed");
    for _ in 0..3 {
        end_one(&mut bench, &id, TaskState::Complete);
    }
    assert_eq!(status(&bench, &id), (0, 2, 3));
}

#[test]
fn runs_of_a_job_leave_no_more_history_than_others() {
    let mut bench = Bench::new(2);
    let id = bench.create(&job("sum", 1, 1));
    for _ in 0..20 {
        bench.obey();
        end_one(&mut bench, &id, TaskState::Complete);
        again(&mut bench, &id);
    }
    bench.obey();
    assert_eq!(
        bench.tasks(&id).len(),
        6,
        "five that ended and the live one"
    );
}

#[test]
fn what_a_lost_node_ran_is_run_elsewhere_whatever_the_policy() {
    let mut bench = Bench::new(2);
    let id = bench.create(&restarting(job("sum", 2, 2), RestartCondition::None, 0));
    bench.obey();
    bench.lose("node2");
    bench.obey();
    assert_eq!(status(&bench, &id), (2, 2, 0));
    let home = bench.node("node1").id;
    let live = bench.live(&id);
    assert!(live.iter().all(|it| it.node_id.as_ref() == Some(&home)));
    // The node comes back and says that its part was done.
    let away = bench.node("node2").id;
    bench.change_node("node2", |node| node.status.state = NodeState::Ready);
    let lost = bench.view().tasks_on_node(&away).next().cloned().unwrap();
    bench.report(&lost, TaskState::Complete);
    bench.obey();
    assert_eq!(status(&bench, &id), (1, 2, 1));
    assert_ne!(slots(&bench, &id), [lost.slot]);
}

#[test]
fn a_global_job_ends_once_on_each_node_and_on_one_that_joins_later() {
    let mut bench = Bench::new(2);
    let id = bench.create(&global_job("scan"));
    bench.obey();
    assert_eq!(status(&bench, &id), (2, 2, 0));
    end_one(&mut bench, &id, TaskState::Complete);
    assert_eq!(status(&bench, &id), (1, 1, 1));
    end_one(&mut bench, &id, TaskState::Complete);
    bench.join("node3", IpAddr::from([192, 168, 77, 13]));
    bench.obey();
    assert_eq!(status(&bench, &id), (1, 1, 2));
    end_one(&mut bench, &id, TaskState::Complete);
    for hostname in ["node1", "node2", "node3"] {
        bench.change_node(hostname, |node| {
            node.spec.availability = Availability::Drain
        });
    }
    bench.obey();
    assert_eq!(status(&bench, &id), (0, 0, 3), "what is done is done");
    for hostname in ["node1", "node2", "node3"] {
        bench.change_node(hostname, |node| {
            node.spec.availability = Availability::Active
        });
    }
    bench.obey();
    assert_eq!(bench.live(&id).len(), 0);
    again(&mut bench, &id);
    bench.obey();
    assert_eq!(status(&bench, &id), (3, 3, 0));
}

#[test]
fn jobs_have_no_settings_for_updates() {
    for change in [
        |spec: &mut ServiceSpec| spec.update_config = Some(UpdateConfig::default()),
        |spec: &mut ServiceSpec| spec.rollback_config = Some(UpdateConfig::default()),
    ] {
        for mut spec in [job("sum", 1, 1), global_job("scan")] {
            change(&mut spec);
            let request = ClusterRequest::ServiceCreate(Box::new(spec));
            let error = Bench::new(1).request(&request);
            let Err(ApiError::Invalid { field, why }) = error else {
                panic!("{error:?}");
            };
            assert!(["UpdateConfig", "RollbackConfig"].contains(&field.as_str()));
            assert!(why.starts_with("update and rollback configuration is not supported for jobs"));
        }
    }
}

#[test]
fn a_job_that_is_rolled_back_runs_again_as_it_was() {
    let mut bench = Bench::new(1);
    let id = bench.create(&job("sum", 1, 1));
    bench.update(&id, |spec| {
        let mode = spec.mode.replicated_job.as_mut().unwrap();
        mode.total_completions = Some(2);
    });
    let old = Arc::clone(bench.view().service(&id).unwrap());
    bench
        .request(&ClusterRequest::ServiceUpdate {
            service: "sum".to_owned(),
            version: old.meta.version,
            spec: Box::new(service("sum", 1)),
            rollback: true,
        })
        .unwrap();
    let service = Arc::clone(bench.view().service(&id).unwrap());
    assert_eq!(
        service.spec.mode.replicated_job.as_ref().unwrap().total(),
        1
    );
    assert_eq!(service.iteration(), Some(2));
    assert_eq!(service.update_status, None);
}

#[test]
fn a_node_that_is_silent_before_it_is_down_holds_a_job_up_only_so_long() {
    for silent in ["node1", "node2", "node3"] {
        let mut bench = Bench::new(3);
        let dead = bench.node(silent).id;
        let id = bench.create(&job("sum", 2, 3));
        for round in 0..100 {
            bench.settle();
            let live = bench.live(&id);
            let there = live.iter().filter(|it| it.node_id.as_ref() != Some(&dead));
            for task in there {
                let state = match (task.desired_state, task.status.state) {
                    (TaskState::Ready, _) => TaskState::Ready,
                    (_, TaskState::Running) => TaskState::Complete,
                    (_, _) => TaskState::Running,
                };
                bench.report(task, state);
            }
            if round == 30 {
                bench.lose(silent);
            }
            bench.wait(Duration::from_millis(500));
        }
        assert_eq!(status(&bench, &id).2, 3, "{:#?}", bench.tasks(&id));
    }
}
