//! Tasks from their making to their end.

use std::time::Duration;

use crate::{
    api::{Availability, ClusterRequest, RestartPolicy, TaskState, task::RestartCondition},
    testing::bench::{Bench, service},
};

#[test]
fn a_service_gets_its_tasks_in_one_pass() {
    let mut bench = Bench::new(3);
    let web = bench.create(&service("web", 3));
    let pass = crate::manager::pass(&bench.view(), &mut bench.ctx);
    for result in bench.commit_all(pass.proposals) {
        result.unwrap();
    }
    let tasks = bench.live(&web);
    assert_eq!(
        tasks.iter().map(|it| it.slot).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    let mut nodes: Vec<_> = tasks.iter().map(|it| it.node_id.clone().unwrap()).collect();
    nodes.sort();
    nodes.dedup();
    assert_eq!(nodes.len(), 3, "one on each node");
    assert!(
        tasks
            .iter()
            .all(|it| it.status.state == TaskState::Assigned)
    );
    assert!(
        tasks
            .iter()
            .all(|it| it.desired_state == TaskState::Running)
    );
}

#[test]
fn a_pass_makes_large_tasks_in_portions() {
    let mut bench = Bench::new(3);
    let mut spec = service("web", 30);
    let container = spec.task_template.container_spec.as_mut().unwrap();
    container.env = vec![format!("A={}", "x".repeat(100_000)); 2];
    let web = bench.create(&spec);
    let pass = |bench: &mut Bench| {
        let proposals = crate::manager::orchestrator::orchestrate(&bench.view(), &mut bench.ctx);
        let before = bench.tasks(&web).len();
        for result in bench.commit_all(proposals) {
            result.unwrap();
        }
        bench.tasks(&web).len() - before
    };
    // 4 MiB hold 20 of them.
    assert_eq!([pass(&mut bench), pass(&mut bench)], [20, 10]);
    bench.obey();
    for task in bench.live(&web) {
        bench.report(&task, TaskState::Failed);
    }
    assert_eq!([pass(&mut bench), pass(&mut bench)], [20, 10]);
    assert_eq!(pass(&mut bench), 0);
}

#[test]
fn a_pass_over_a_settled_state_wants_nothing() {
    let mut bench = Bench::new(3);
    bench.create(&service("web", 3));
    bench.obey();
    let again = crate::manager::pass(&bench.view(), &mut bench.ctx);
    assert_eq!(again.proposals, []);
    assert_eq!(again.wake_at, None);
}

#[test]
fn an_ended_task_is_replaced_after_the_delay() {
    let mut bench = Bench::new(2);
    let web = bench.create(&service("web", 1));
    bench.obey();
    let first = bench.live(&web).remove(0);
    bench.report(&first, TaskState::Failed);
    let wake = bench.settle();
    let second = bench.live(&web).remove(0);
    assert_eq!((second.slot, second.desired_state), (1, TaskState::Ready));
    assert_eq!(second.predecessor.as_ref(), Some(&first.id));
    assert_eq!(wake, Some(bench.ctx.now + Duration::from_secs(5)));
    bench.wait(Duration::from_millis(4999));
    bench.settle();
    assert_eq!(bench.live(&web)[0].desired_state, TaskState::Ready);
    bench.wait(Duration::from_millis(1));
    bench.obey();
    assert_eq!(bench.live(&web)[0].status.state, TaskState::Running);
    let old = bench.view().task(&first.id).unwrap().desired_state;
    assert_eq!(old, TaskState::Shutdown);
}

#[test]
fn tasks_that_fail_while_they_are_prepared_follow_one_another_no_faster_than_the_delay() {
    let mut bench = Bench::new(1);
    let web = bench.create(&service("web", 1));
    bench.settle();
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..200 {
        bench.settle();
        for task in bench.live(&web) {
            ids.insert(task.id.clone());
            bench.report(&task, TaskState::Rejected);
        }
        bench.wait(Duration::from_millis(100));
    }
    // Twenty seconds: the first one at once, and then one each five seconds.
    assert!((4..=5).contains(&ids.len()), "{} tasks", ids.len());
}

#[test]
fn restart_conditions_hold() {
    use RestartCondition as C;
    for (condition, end, replaced) in [
        (C::None, TaskState::Failed, false),
        (C::None, TaskState::Complete, false),
        (C::OnFailure, TaskState::Complete, false),
        (C::OnFailure, TaskState::Failed, true),
        (C::Any, TaskState::Complete, true),
    ] {
        let mut bench = Bench::new(1);
        let mut spec = service("web", 1);
        spec.task_template.restart_policy = Some(RestartPolicy {
            condition: Some(condition),
            ..RestartPolicy::default()
        });
        let web = bench.create(&spec);
        bench.obey();
        let task = bench.live(&web).remove(0);
        bench.report(&task, end);
        bench.wait(Duration::from_secs(60));
        bench.obey();
        assert_eq!(
            bench.live(&web).len() == 1,
            replaced,
            "{condition:?} after {end:?}"
        );
        // A pass later the decision is the same.
        bench.settle();
        assert_eq!(bench.live(&web).len() == 1, replaced);
    }
}

#[test]
fn attempts_are_counted_and_history_is_short() {
    let mut bench = Bench::new(1);
    let mut spec = service("web", 1);
    spec.task_template.restart_policy = Some(RestartPolicy {
        max_attempts: Some(7),
        ..RestartPolicy::default()
    });
    let web = bench.create(&spec);
    let mut runs = 0;
    for _ in 0..20 {
        bench.wait(Duration::from_secs(6));
        bench.obey();
        let Some(task) = bench.live(&web).pop() else {
            break;
        };
        runs += 1;
        bench.report(&task, TaskState::Failed);
    }
    assert_eq!(runs, 8, "the first run and seven restarts");

    let mut bench = Bench::new(1);
    let web = bench.create(&service("web", 1));
    for _ in 0..20 {
        bench.wait(Duration::from_secs(6));
        bench.obey();
        let task = bench.live(&web).remove(0);
        bench.report(&task, TaskState::Failed);
    }
    bench.settle();
    assert_eq!(
        bench.tasks(&web).len(),
        6,
        "five that ended and the live one"
    );
}

#[test]
fn attempts_outside_the_window_do_not_count() {
    let mut bench = Bench::new(1);
    let mut spec = service("web", 1);
    spec.task_template.restart_policy = Some(RestartPolicy {
        max_attempts: Some(2),
        window: Some(Duration::from_secs(30)),
        ..RestartPolicy::default()
    });
    let web = bench.create(&spec);
    for run in 0..10 {
        bench.wait(Duration::from_secs(20));
        bench.obey();
        let task = bench.live(&web).pop();
        let task = task.unwrap_or_else(|| panic!("run {run} has no task"));
        bench.report(&task, TaskState::Failed);
    }
}

#[test]
fn a_node_that_is_lost_loses_its_tasks() {
    let mut bench = Bench::new(3);
    let web = bench.create(&service("web", 3));
    bench.obey();
    bench.lose("node2");
    bench.obey();
    let lost = bench.node("node2").id;
    let live = bench.live(&web);
    assert_eq!(live.len(), 3);
    assert!(live.iter().all(|it| it.node_id.as_ref() != Some(&lost)));
    assert!(live.iter().all(|it| it.status.state == TaskState::Running));
    let stuck: Vec<_> = bench.view().tasks_on_node(&lost).cloned().collect();
    assert_eq!(stuck.len(), 1);
    assert_eq!(stuck[0].desired_state, TaskState::Shutdown);
    // Nobody knows whether it runs, so its state stands for a day.
    assert!(!stuck[0].status.state.is_terminal());
    bench.wait(Duration::from_secs(24 * 3600));
    bench.settle();
    assert_eq!(
        bench.view().task(&stuck[0].id).unwrap().status.state,
        TaskState::Orphaned
    );
}

#[test]
fn a_drained_node_gives_its_tasks_up_one_after_the_other() {
    let mut bench = Bench::new(2);
    let web = bench.create(&service("web", 2));
    bench.obey();
    bench.change_node("node1", |node| node.spec.availability = Availability::Drain);
    bench.settle();
    let drained = bench.node("node1").id;
    let replacement = bench
        .live(&web)
        .into_iter()
        .find(|it| it.predecessor.is_some())
        .unwrap();
    assert_eq!(replacement.not_before, None, "moving is no crash");
    assert_eq!(
        replacement.desired_state,
        TaskState::Ready,
        "waits until the old one has stopped"
    );
    bench.obey();
    assert!(
        bench
            .live(&web)
            .iter()
            .all(|it| it.node_id.as_ref() != Some(&drained))
    );
    assert_eq!(bench.live(&web).len(), 2);
}

#[test]
fn scaling_down_takes_what_does_not_run_then_the_most_loaded() {
    let mut bench = Bench::new(2);
    let web = bench.create(&service("web", 4));
    bench.obey();
    let idle = bench.live(&web)[0].clone();
    bench.report(&idle, TaskState::Failed);
    bench.settle();
    bench.update(&web, |spec| {
        spec.mode.replicated.as_mut().unwrap().replicas = Some(3)
    });
    bench.obey();
    let slots: Vec<_> = bench.live(&web).iter().map(|it| it.slot).collect();
    assert_eq!(slots, [2, 3, 4], "slot 1 was between two runs");
    bench.update(&web, |spec| {
        spec.mode.replicated.as_mut().unwrap().replicas = Some(2)
    });
    bench.obey();
    let live = bench.live(&web);
    assert_ne!(live[0].node_id, live[1].node_id);
    assert_eq!(bench.tasks(&web).len(), 2, "what was removed is forgotten");
    bench.update(&web, |spec| {
        spec.mode.replicated.as_mut().unwrap().replicas = Some(0)
    });
    bench.obey();
    assert_eq!(bench.tasks(&web).len(), 0);
}

#[test]
fn a_removed_service_goes_once_its_tasks_have_stopped_and_its_name_is_free_at_once() {
    let mut bench = Bench::new(2);
    let web = bench.create(&service("web", 2));
    bench.obey();
    bench
        .request(&ClusterRequest::ServiceRemove("web".to_owned()))
        .unwrap();
    bench.settle();
    assert!(crate::manager::query::find_service(&bench.view(), "web").is_err());
    assert!(
        bench
            .tasks(&web)
            .iter()
            .all(|it| it.desired_state == TaskState::Remove)
    );
    let other = bench.create(&service("web", 1));
    bench.obey();
    assert!(bench.view().service(&web).is_none());
    assert_eq!(bench.tasks(&web).len(), 0);
    assert_eq!(bench.live(&other).len(), 1);
}
