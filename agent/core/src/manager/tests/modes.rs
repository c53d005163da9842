//! Services that run once on each eligible node.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use proptest::prelude::*;

use crate::{
    api::{
        ApiError, Availability, ClusterRequest, Node, NodeState, Placement, RestartPolicy, Service,
        ServiceSpec, Task, TaskState, TaskStatus, UpdateConfig, task::RestartCondition,
    },
    id::Id,
    manager::{
        dispatcher::{Refused, assignments, reports},
        query::{self, ServiceStatus},
    },
    testing::bench::{Bench, global, service},
};

fn constrained(spec: &mut ServiceSpec, constraint: &str) {
    spec.task_template.placement = Some(Placement {
        constraints: vec![constraint.to_owned()],
        ..Placement::default()
    });
}

fn restarting(spec: &mut ServiceSpec, condition: RestartCondition) {
    spec.task_template.restart_policy = Some(RestartPolicy {
        condition: Some(condition),
        ..RestartPolicy::default()
    });
}

fn available(bench: &mut Bench, hostname: &str, availability: Availability) {
    bench.change_node(hostname, |node| node.spec.availability = availability);
}

fn found_again(bench: &mut Bench, hostname: &str) {
    bench.change_node(hostname, |node| node.status.state = NodeState::Ready);
}

/// The host names of the nodes on which the service runs, each once.
fn runs_on(bench: &Bench, id: &Id<Service>) -> Vec<String> {
    let view = bench.view();
    let running = bench.live(id).into_iter();
    let running = running.filter(|task| task.status.state == TaskState::Running);
    let name = |task: Arc<Task>| {
        let node = view.node(task.node_id.as_ref()?)?;
        Some(node.description.as_ref()?.hostname.clone())
    };
    let mut names: Vec<String> = running.filter_map(name).collect();
    names.sort();
    names
}

fn on(bench: &Bench, id: &Id<Service>, hostname: &str) -> Arc<Task> {
    let node = bench.node(hostname).id;
    let mut live = bench.live(id).into_iter();
    let task = live.find(|task| task.node_id.as_ref() == Some(&node));
    task.unwrap_or_else(|| panic!("nothing on {hostname}"))
}

fn status(bench: &Bench, id: &Id<Service>) -> (u64, u64) {
    let view = bench.view();
    let status = query::service_status(&view, view.service(id).unwrap());
    (status.running_tasks, status.desired_tasks)
}

#[test]
fn each_node_runs_one_task_and_so_does_one_that_joins_later() {
    let mut bench = Bench::new(3);
    let id = bench.create(&global("agent"));
    bench.obey();
    assert_eq!(runs_on(&bench, &id), ["node1", "node2", "node3"]);
    for task in bench.live(&id) {
        let node = task.node_id.clone().unwrap();
        assert_eq!(task.name(), format!("agent.{node}.{}", task.id));
        assert_eq!(task.slot, 0);
        let found = query::find_task(&bench.view(), &format!("agent.{node}"));
        assert_eq!(found.unwrap().id, task.id);
    }
    bench.join("node4", IpAddr::from([192, 168, 77, 14]));
    bench.obey();
    assert_eq!(runs_on(&bench, &id), ["node1", "node2", "node3", "node4"]);
    assert_eq!(status(&bench, &id), (4, 4));
    let again = crate::manager::pass(&bench.view(), &mut bench.ctx);
    assert_eq!((again.proposals, again.wake_at), (vec![], None));
}

#[test]
fn a_drained_node_gives_its_task_up_and_gets_one_again() {
    for condition in [RestartCondition::Any, RestartCondition::None] {
        let mut bench = Bench::new(2);
        let mut spec = global("agent");
        restarting(&mut spec, condition);
        let id = bench.create(&spec);
        bench.obey();
        available(&mut bench, "node2", Availability::Drain);
        bench.obey();
        assert_eq!(runs_on(&bench, &id), ["node1"]);
        assert_eq!(status(&bench, &id), (1, 1));
        available(&mut bench, "node2", Availability::Active);
        bench.obey();
        assert_eq!(runs_on(&bench, &id), ["node1", "node2"], "{condition:?}");
    }
}

#[test]
fn a_node_that_comes_back_ends_its_old_task_before_the_new_one_runs() {
    let mut bench = Bench::new(2);
    let id = bench.create(&global("agent"));
    bench.obey();
    let old = on(&bench, &id, "node2");
    bench.lose("node2");
    bench.obey();
    assert_eq!(
        runs_on(&bench, &id),
        ["node1"],
        "no other node gets a second one"
    );
    assert_eq!(bench.live(&id).len(), 1);
    found_again(&mut bench, "node2");
    bench.settle();
    let new = on(&bench, &id, "node2");
    assert_eq!(new.desired_state, TaskState::Ready);
    assert_eq!(new.predecessor.as_ref(), Some(&old.id));
    // It is taken away in its turn, and has stopped: whatever follows waits for the oldest one all the same.
    available(&mut bench, "node2", Availability::Drain);
    bench.settle();
    bench.report(&new, TaskState::Shutdown);
    available(&mut bench, "node2", Availability::Active);
    bench.settle();
    assert_eq!(on(&bench, &id, "node2").desired_state, TaskState::Ready);
    bench.report(&old, TaskState::Shutdown);
    bench.obey();
    assert_eq!(runs_on(&bench, &id), ["node1", "node2"]);
}

#[test]
fn the_tasks_of_a_removed_node_are_forgotten() {
    let mut bench = Bench::new(2);
    let id = bench.create(&global("agent"));
    bench.obey();
    bench.lose("node2");
    bench.obey();
    bench
        .request(&ClusterRequest::NodeRemove {
            node: "node2".to_owned(),
            force: false,
        })
        .unwrap();
    bench.obey();
    assert_eq!(bench.tasks(&id).len(), 1);
}

#[test]
fn a_paused_node_keeps_what_it_has_and_gets_nothing_new() {
    let mut bench = Bench::new(2);
    let id = bench.create(&global("agent"));
    let other = bench.create(&global("other"));
    bench.obey();
    available(&mut bench, "node2", Availability::Pause);
    let late = bench.create(&global("late"));
    bench.update(&id, |spec| spec.task_template.force_update += 1);
    let failed = on(&bench, &other, "node2");
    bench.report(&failed, TaskState::Failed);
    for _ in 0..3 {
        bench.obey();
        bench.wait(Duration::from_secs(6));
    }
    assert_eq!(runs_on(&bench, &late), ["node1"]);
    assert_eq!(runs_on(&bench, &other), ["node1"]);
    assert_eq!(runs_on(&bench, &id), ["node1", "node2"]);
    let version = |bench: &Bench, node| on(bench, &id, node).spec.force_update;
    assert_eq!((version(&bench, "node1"), version(&bench, "node2")), (1, 0));
    available(&mut bench, "node2", Availability::Active);
    for _ in 0..3 {
        bench.obey();
        bench.wait(Duration::from_secs(6));
    }
    for id in [&id, &other, &late] {
        assert_eq!(runs_on(&bench, id), ["node1", "node2"]);
    }
    assert_eq!(version(&bench, "node2"), 1);
}

#[test]
fn constraints_choose_the_nodes_also_when_labels_or_the_service_change() {
    let mut bench = Bench::new(3);
    let mut spec = global("agent");
    constrained(&mut spec, "node.labels.zone==east");
    let id = bench.create(&spec);
    bench.obey();
    assert_eq!(
        (runs_on(&bench, &id).len(), status(&bench, &id)),
        (0, (0, 0))
    );
    let label = |node: &mut Node| {
        node.spec
            .labels
            .insert("zone".to_owned(), "east".to_owned());
    };
    bench.change_node("node3", label);
    bench.obey();
    assert_eq!(runs_on(&bench, &id), ["node3"]);
    let kept = on(&bench, &id, "node3");
    bench.update(&id, |spec| constrained(spec, "node.role!=manager"));
    bench.obey();
    assert_eq!(runs_on(&bench, &id), ["node2", "node3"]);
    assert_eq!(on(&bench, &id, "node3").id, kept.id, "it fits as it is");
    bench.update(&id, |spec| constrained(spec, "node.role==manager"));
    bench.obey();
    assert_eq!(runs_on(&bench, &id), ["node1"]);
}

#[test]
fn the_restart_policy_judges_ends_that_nobody_wanted() {
    for (condition, end, replaced) in [
        (RestartCondition::Any, TaskState::Complete, true),
        (RestartCondition::OnFailure, TaskState::Complete, false),
        (RestartCondition::OnFailure, TaskState::Failed, true),
        (RestartCondition::None, TaskState::Failed, false),
    ] {
        let mut bench = Bench::new(2);
        let mut spec = global("agent");
        restarting(&mut spec, condition);
        let id = bench.create(&spec);
        bench.obey();
        let task = on(&bench, &id, "node2");
        bench.report(&task, end);
        bench.settle();
        if replaced {
            let next = on(&bench, &id, "node2");
            assert_eq!(
                next.not_before,
                Some(bench.ctx.now + Duration::from_secs(5))
            );
            assert_eq!(status(&bench, &id), (1, 2));
        }
        bench.wait(Duration::from_secs(6));
        bench.obey();
        assert_eq!(
            runs_on(&bench, &id).len() == 2,
            replaced,
            "{condition:?}, {end:?}"
        );
    }
}

#[test]
fn an_update_goes_from_node_to_node() {
    let mut bench = Bench::new(3);
    let mut spec = global("agent");
    spec.update_config = Some(UpdateConfig {
        parallelism: 1,
        delay: Duration::from_secs(10),
        ..UpdateConfig::default()
    });
    let id = bench.create(&spec);
    bench.obey();
    bench.update(&id, |spec| spec.task_template.force_update = 1);
    let state = |bench: &Bench| {
        let view = bench.view();
        let status = view.service(&id).unwrap().update_status.clone();
        status.map_or_else(String::new, |status| status.state)
    };
    for done in 1..=3 {
        bench.obey();
        let new = bench.live(&id).into_iter();
        assert_eq!(new.filter(|it| it.spec.force_update == 1).count(), done);
        assert_eq!(runs_on(&bench, &id), ["node1", "node2", "node3"]);
        assert_eq!(state(&bench), "updating");
        bench.wait(Duration::from_secs(10));
    }
    bench.obey();
    assert_eq!(state(&bench), "completed");
}

#[test]
fn a_failing_update_is_rolled_back_on_every_node() {
    let mut bench = Bench::new(3);
    let mut spec = global("agent");
    spec.update_config = Some(UpdateConfig {
        parallelism: 1,
        failure_action: "rollback".to_owned(),
        ..UpdateConfig::default()
    });
    let id = bench.create(&spec);
    bench.obey();
    bench.update(&id, |spec| spec.task_template.force_update = 1);
    bench.settle();
    let mut live = bench.live(&id).into_iter();
    let first = live.find(|it| it.spec.force_update == 1).unwrap();
    bench.report(&first, TaskState::Rejected);
    for _ in 0..4 {
        bench.obey();
        bench.wait(Duration::from_secs(6));
    }
    bench.settle();
    let service = Arc::clone(bench.view().service(&id).unwrap());
    assert_eq!(
        service.update_status.as_ref().unwrap().state,
        "rollback_completed"
    );
    assert_eq!(runs_on(&bench, &id), ["node1", "node2", "node3"]);
    assert!(bench.live(&id).iter().all(|it| it.spec.force_update == 0));
}

#[test]
fn start_first_runs_two_on_a_node_for_a_while() {
    let mut bench = Bench::new(1);
    let mut spec = global("agent");
    spec.update_config = Some(UpdateConfig {
        order: "start-first".to_owned(),
        ..UpdateConfig::default()
    });
    // The bound is on tasks at rest: one that takes another's place is not held up by it.
    spec.task_template.placement = Some(Placement {
        max_replicas: 1,
        ..Placement::default()
    });
    let id = bench.create(&spec);
    bench.obey();
    bench.update(&id, |spec| spec.task_template.force_update = 1);
    bench.settle();
    assert_eq!(bench.live(&id).len(), 2);
    bench.obey();
    assert_eq!(bench.live(&id).len(), 1);
    assert_eq!(on(&bench, &id, "node1").spec.force_update, 1);
}

#[test]
fn a_node_can_not_report_of_a_task_before_it_is_sent_there() {
    let mut bench = Bench::new(1);
    bench.change_node("node1", |node| node.status.state = NodeState::Disconnected);
    let id = bench.create(&global("agent"));
    bench.settle();
    let task = on(&bench, &id, "node1");
    assert_eq!(task.status.state, TaskState::Pending);
    let node = task.node_id.clone().unwrap();
    assert_eq!(assignments(&bench.view(), &node).tasks.len(), 0);
    let status = TaskStatus {
        state: TaskState::Running,
        ..TaskStatus::default()
    };
    let said = vec![(task.id.to_string(), status)];
    let refused = reports(&bench.view(), &node, said, bench.ctx.now);
    assert!(matches!(refused, Err(Refused::ForeignTask { .. })));
}

#[test]
fn lists_and_counts_know_the_mode() {
    let mut bench = Bench::new(2);
    let id = bench.create(&global("agent"));
    bench.create(&service("web", 1));
    bench.settle();
    let names = |mode: &str| {
        let filters = BTreeMap::from([("mode".to_owned(), vec![mode.to_owned()])]);
        let found = query::list_services(&bench.view(), &filters).unwrap();
        found
            .iter()
            .map(|it| it.spec.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("global"), ["agent"]);
    assert_eq!(names("replicated"), ["web"]);
    assert_eq!(names("global-job"), [""; 0]);
    let view = bench.view();
    let status = query::service_status(&view, view.service(&id).unwrap());
    let wanted = ServiceStatus {
        running_tasks: 0,
        desired_tasks: 2,
        completed_tasks: 0,
    };
    assert_eq!(status, wanted);
}

#[test]
fn the_mode_of_a_service_stays() {
    let mut bench = Bench::new(1);
    let id = bench.create(&service("web", 1));
    let version = bench.view().service(&id).unwrap().meta.version;
    let error = bench.request(&ClusterRequest::ServiceUpdate {
        service: "web".to_owned(),
        version,
        spec: Box::new(global("web")),
        rollback: false,
    });
    let Err(ApiError::Precondition(why)) = error else {
        panic!("{error:?}");
    };
    assert!(
        why.starts_with("service mode change is not allowed"),
        "{why}"
    );
}

/// What happens to a cluster of three, by number of the node.
#[derive(Debug, Clone, Copy)]
enum Event {
    Lose(u8),
    Find(u8),
    Drain(u8),
    Pause(u8),
    Activate(u8),
    Label(u8),
    Fail(u8),
    Update,
    Obey,
    Wait,
}

fn event() -> impl Strategy<Value = Event> {
    let node = || 1..=3_u8;
    prop_oneof![
        node().prop_map(Event::Lose),
        node().prop_map(Event::Find),
        node().prop_map(Event::Drain),
        node().prop_map(Event::Pause),
        node().prop_map(Event::Activate),
        node().prop_map(Event::Label),
        node().prop_map(Event::Fail),
        Just(Event::Update),
        Just(Event::Obey),
        Just(Event::Wait),
    ]
}

fn happen(bench: &mut Bench, id: &Id<Service>, event: Event) {
    let name = |number: u8| format!("node{number}");
    match event {
        Event::Lose(node) => bench.lose(&name(node)),
        Event::Find(node) => found_again(bench, &name(node)),
        Event::Drain(node) => available(bench, &name(node), Availability::Drain),
        Event::Pause(node) => available(bench, &name(node), Availability::Pause),
        Event::Activate(node) => available(bench, &name(node), Availability::Active),
        Event::Label(node) => bench.change_node(&name(node), |node| {
            if node.spec.labels.remove("off").is_none() {
                node.spec.labels.insert("off".to_owned(), "1".to_owned());
            }
        }),
        Event::Fail(node) => {
            let node = bench.node(&name(node)).id;
            let tasks = bench
                .view()
                .tasks_on_node(&node)
                .cloned()
                .collect::<Vec<_>>();
            let running = |task: &&Arc<Task>| task.status.state == TaskState::Running;
            if let Some(task) = tasks.iter().find(running) {
                bench.report(task, TaskState::Failed);
            }
        }
        Event::Update => bench.update(id, |spec| spec.task_template.force_update += 1),
        Event::Obey => bench.obey(),
        Event::Wait => bench.wait(Duration::from_secs(3)),
    }
    bench.settle();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn never_two_on_a_node_and_in_the_end_one_on_each_that_is_eligible(
        events in prop::collection::vec(event(), 0..40),
    ) {
        let mut bench = Bench::new(3);
        let mut spec = global("agent");
        constrained(&mut spec, "node.labels.off!=1");
        let config = UpdateConfig { failure_action: "continue".to_owned(), parallelism: 1, ..UpdateConfig::default() };
        spec.update_config = Some(config);
        let id = bench.create(&spec);
        for event in events {
            happen(&mut bench, &id, event);
            let mut nodes: Vec<_> = bench.live(&id).iter().map(|it| it.node_id.clone()).collect();
            let live = nodes.len();
            nodes.sort();
            nodes.dedup();
            prop_assert_eq!(nodes.len(), live, "two on a node after {:?}", event);
        }
        for number in 1..=3 {
            found_again(&mut bench, &format!("node{number}"));
            available(&mut bench, &format!("node{number}"), Availability::Active);
        }
        for _ in 0..12 {
            bench.obey();
            bench.wait(Duration::from_secs(6));
        }
        let eligible = bench.view().nodes().filter(|node| node.spec.labels.is_empty()).count();
        prop_assert_eq!(runs_on(&bench, &id).len(), eligible);
        prop_assert_eq!(bench.live(&id).len(), eligible);
        prop_assert_eq!(status(&bench, &id), (eligible as u64, eligible as u64));
    }
}
