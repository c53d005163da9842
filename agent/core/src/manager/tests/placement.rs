//! Which node a task gets, and what is said when there is none.

use crate::{
    api::{
        Availability, NodeState, Placement, Platform, ResourceRequirements, Resources, ServiceSpec,
        TaskState,
    },
    testing::bench::{Bench, service},
};

fn placed(spec: &mut ServiceSpec) -> &mut Placement {
    spec.task_template.placement.get_or_insert_default()
}

fn reserve(spec: &mut ServiceSpec, nano_cpus: i64) {
    spec.task_template.resources = Some(ResourceRequirements {
        reservations: Some(Resources {
            nano_cpus,
            ..Resources::default()
        }),
        ..ResourceRequirements::default()
    });
}

fn why(bench: &mut Bench, spec: &ServiceSpec) -> String {
    let id = bench.create(spec);
    bench.settle();
    let tasks = bench.live(&id);
    let waiting = tasks
        .iter()
        .find(|it| it.status.state == TaskState::Pending);
    waiting.map_or_else(String::new, |it| it.status.err.clone())
}

#[test]
fn constraints_choose_nodes() {
    let mut bench = Bench::new(3);
    bench.change_node("node3", |node| {
        node.spec
            .labels
            .insert("zone".to_owned(), "East".to_owned());
    });
    for (constraint, wanted) in [
        ("node.role==manager", "node1"),
        ("node.hostname == node2", "node2"),
        ("node.labels.zone==east", "node3"),
        ("node.ip==192.168.77.12", "node2"),
        ("node.ip==192.168.77.13/32", "node3"),
    ] {
        let mut spec = service("", 2);
        placed(&mut spec).constraints = vec![constraint.to_owned()];
        let id = bench.create(&spec);
        bench.settle();
        let node = bench.node(wanted).id;
        let all = bench.live(&id);
        assert!(
            all.iter().all(|it| it.node_id.as_ref() == Some(&node)),
            "{constraint}"
        );
    }
    let mut spec = service("", 4);
    placed(&mut spec).constraints = vec![
        "node.role!=manager".to_owned(),
        "node.labels.zone!=east".to_owned(),
    ];
    let id = bench.create(&spec);
    bench.settle();
    let node = bench.node("node2").id;
    assert!(
        bench
            .live(&id)
            .iter()
            .all(|it| it.node_id.as_ref() == Some(&node))
    );
}

#[test]
fn a_waiting_task_says_why() {
    let mut bench = Bench::new(3);
    let mut spec = service("a", 1);
    placed(&mut spec).constraints = vec!["node.labels.zone==east".to_owned()];
    assert_eq!(
        why(&mut bench, &spec),
        "no suitable node (scheduling constraints not satisfied on 3 nodes)"
    );
    bench.change_node("node3", |node| node.spec.availability = Availability::Pause);
    let mut spec = service("b", 1);
    reserve(&mut spec, 5_000_000_000);
    assert_eq!(
        why(&mut bench, &spec),
        "no suitable node (insufficient resources on 2 nodes; 1 node not available for new tasks)"
    );
    let mut spec = service("c", 3);
    placed(&mut spec).max_replicas = 1;
    assert_eq!(
        why(&mut bench, &spec),
        "no suitable node (max replicas per node limit exceed; 1 node not available for new tasks)"
    );
    let mut spec = service("d", 1);
    placed(&mut spec).platforms = vec![Platform {
        architecture: "arm64".to_owned(),
        os: "linux".to_owned(),
    }];
    assert_eq!(
        why(&mut bench, &spec),
        "no suitable node (unsupported platform on 2 nodes; 1 node not available for new tasks)"
    );
}

#[test]
fn what_waits_is_placed_when_a_node_fits() {
    let mut bench = Bench::new(2);
    let mut spec = service("a", 1);
    placed(&mut spec).constraints = vec!["node.labels.zone==east".to_owned()];
    let id = bench.create(&spec);
    bench.settle();
    bench.change_node("node2", |node| {
        node.spec
            .labels
            .insert("zone".to_owned(), "east".to_owned());
    });
    bench.obey();
    let task = bench.live(&id).remove(0);
    assert_eq!(
        (task.status.state, task.status.err.as_str()),
        (TaskState::Running, "")
    );
    // And when the label goes, the task may not stay.
    bench.change_node("node2", |node| node.spec.labels.clear());
    bench.obey();
    assert_eq!(bench.live(&id)[0].status.state, TaskState::Pending);
}

#[test]
fn reservations_fill_a_node() {
    let mut bench = Bench::new(2);
    let mut spec = service("a", 5);
    reserve(&mut spec, 2_000_000_000);
    let id = bench.create(&spec);
    bench.obey();
    let states: Vec<_> = bench.live(&id).iter().map(|it| it.status.state).collect();
    assert_eq!(
        states
            .iter()
            .filter(|it| **it == TaskState::Running)
            .count(),
        4
    );
    assert_eq!(
        states
            .iter()
            .filter(|it| **it == TaskState::Pending)
            .count(),
        1
    );
}

#[test]
fn spread_counts_the_service_first() {
    let mut bench = Bench::new(2);
    let mut busy = service("busy", 4);
    placed(&mut busy).constraints = vec!["node.hostname==node1".to_owned()];
    bench.create(&busy);
    bench.obey();
    let id = bench.create(&service("web", 2));
    bench.settle();
    let mut nodes: Vec<_> = bench
        .live(&id)
        .iter()
        .map(|it| it.node_id.clone())
        .collect();
    nodes.dedup();
    assert_eq!(nodes.len(), 2, "one each, however busy node1 is");
    let id = bench.create(&service("one", 1));
    bench.settle();
    assert_eq!(bench.live(&id)[0].node_id, Some(bench.node("node2").id));
}

#[test]
fn a_node_where_it_fails_again_and_again_is_the_last_choice() {
    let mut bench = Bench::new(2);
    let id = bench.create(&service("web", 1));
    let unlucky = bench.node("node1").id;
    let mut failures = 0;
    for _ in 0..12 {
        bench.obey();
        let task = bench.live(&id).remove(0);
        if task.node_id.as_ref() == Some(&unlucky) {
            failures += 1;
            bench.report(&task, TaskState::Failed);
        } else if failures >= 5 {
            return;
        } else {
            // Back to the unlucky node: the other one is not there.
            bench.change_node("node2", |node| node.status.state = NodeState::Disconnected);
            bench.report(&task, TaskState::Failed);
        }
        bench.settle();
        if failures >= 5 {
            bench.change_node("node2", |node| node.status.state = NodeState::Ready);
        }
        bench.wait(std::time::Duration::from_secs(6));
    }
    panic!("still on the unlucky node after {failures} failures");
}
