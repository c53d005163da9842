//! Which node a task gets, and what is said when there is none.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::{
    api::{
        Availability, NodeState, Placement, PlacementPreference, Platform, ResourceRequirements,
        Resources, Service, ServiceSpec, SpreadOver, TaskState,
    },
    id::Id,
    testing::bench::{Bench, global, service},
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

fn spread(labels: &[&str]) -> Vec<PlacementPreference> {
    let over = |label: &&str| PlacementPreference {
        spread: Some(SpreadOver {
            spread_descriptor: (*label).to_owned(),
        }),
    };
    labels.iter().map(over).collect()
}

fn labelled(bench: &mut Bench, hostname: &str, labels: &[(&str, &str)]) {
    bench.change_node(hostname, |node| {
        let labels = labels.iter();
        let labels = labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        node.spec.labels = labels.collect();
    });
}

/// How many live tasks each node has, by host name.
fn counts(bench: &Bench, id: &Id<Service>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for task in bench.live(id) {
        let Some(node) = task
            .node_id
            .as_ref()
            .and_then(|id| bench.view().node(id).cloned())
        else {
            continue;
        };
        *counts
            .entry(node.description.as_ref().unwrap().hostname.clone())
            .or_default() += 1;
    }
    counts
}

fn table(rows: &[(&str, usize)]) -> BTreeMap<String, usize> {
    rows.iter()
        .map(|(name, count)| ((*name).to_owned(), *count))
        .collect()
}

#[test]
fn tasks_are_spread_over_the_values_of_a_label_before_nodes() {
    let mut bench = Bench::new(4);
    labelled(&mut bench, "node1", &[("zone", "east")]);
    labelled(&mut bench, "node2", &[("zone", "west")]);
    labelled(&mut bench, "node3", &[("zone", "west")]);
    // The nodes without the label are a zone of their own.
    let mut spec = service("web", 6);
    placed(&mut spec).preferences = spread(&["node.labels.zone"]);
    let id = bench.create(&spec);
    bench.settle();
    let wanted = table(&[("node1", 2), ("node2", 1), ("node3", 1), ("node4", 2)]);
    assert_eq!(counts(&bench, &id), wanted);
}

#[test]
fn the_second_label_splits_what_the_first_has_divided() {
    let mut bench = Bench::new(4);
    labelled(&mut bench, "node1", &[("zone", "east"), ("rack", "1")]);
    labelled(&mut bench, "node2", &[("zone", "west"), ("rack", "1")]);
    labelled(&mut bench, "node3", &[("zone", "west"), ("rack", "2")]);
    labelled(&mut bench, "node4", &[("zone", "west"), ("rack", "2")]);
    let mut spec = service("web", 8);
    placed(&mut spec).preferences = spread(&["NODE.labels.zone", "node.labels.rack"]);
    let id = bench.create(&spec);
    bench.settle();
    let wanted = table(&[("node1", 4), ("node2", 2), ("node3", 1), ("node4", 1)]);
    assert_eq!(counts(&bench, &id), wanted);
}

#[test]
fn a_branch_that_is_full_leaves_the_rest_to_the_others() {
    let mut bench = Bench::new(3);
    labelled(&mut bench, "node1", &[("zone", "east")]);
    labelled(&mut bench, "node2", &[("zone", "west")]);
    bench.change_node("node3", |node| {
        let engine = &mut node.description.as_mut().unwrap().engine;
        engine.labels.insert("zone".to_owned(), "east".to_owned());
        node.spec.availability = Availability::Pause;
    });
    let mut spec = service("web", 5);
    placed(&mut spec).preferences = spread(&["node.labels.zone"]);
    placed(&mut spec).constraints = vec!["node.hostname!=node1".to_owned()];
    let id = bench.create(&spec);
    bench.settle();
    assert_eq!(counts(&bench, &id), table(&[("node2", 5)]));
    let mut spec = service("limited", 5);
    placed(&mut spec).preferences = spread(&["node.labels.zone", "engine.labels.zone"]);
    placed(&mut spec).max_replicas = 2;
    let id = bench.create(&spec);
    bench.settle();
    assert_eq!(counts(&bench, &id), table(&[("node1", 2), ("node2", 2)]));
    let waiting = bench
        .live(&id)
        .into_iter()
        .find(|it| it.node_id.is_none())
        .unwrap();
    assert_eq!(
        waiting.status.err,
        "no suitable node (max replicas per node limit exceed; 1 node not available for new tasks)"
    );
}

#[test]
fn a_task_that_belongs_to_a_node_says_why_it_can_not_run_there() {
    let mut bench = Bench::new(2);
    let mut spec = global("agent");
    reserve(&mut spec, 3_000_000_000);
    let mut busy = service("busy", 1);
    reserve(&mut busy, 2_000_000_000);
    placed(&mut busy).constraints = vec!["node.hostname==node2".to_owned()];
    let busy = bench.create(&busy);
    bench.obey();
    let id = bench.create(&spec);
    bench.obey();
    let home = bench.node("node2").id;
    let waiting = |bench: &Bench| {
        let live = bench.live(&id);
        let mut waiting = live
            .iter()
            .filter(|it| it.status.state == TaskState::Pending);
        waiting
            .next()
            .map(|it| (it.node_id.clone(), it.status.err.clone()))
    };
    let why = "insufficient resources on 1 node".to_owned();
    assert_eq!(waiting(&bench), Some((Some(home), why)));
    bench.change_node("node2", |node| node.status.state = NodeState::Disconnected);
    bench.settle();
    let (_, why) = waiting(&bench).unwrap();
    assert_eq!(why, "1 node not available for new tasks");
    bench.change_node("node2", |node| node.status.state = NodeState::Ready);
    bench.update(&busy, |spec| {
        spec.mode.replicated.as_mut().unwrap().replicas = Some(0)
    });
    bench.obey();
    assert_eq!(waiting(&bench), None);
}

proptest! {
    #[test]
    fn zones_with_room_differ_by_one_task_at_most(
        zones in prop::collection::vec(0..4_u8, 1..8),
        steps in prop::collection::vec(0..12_u64, 1..4),
    ) {
        let mut bench = Bench::new(u8::try_from(zones.len()).unwrap());
        for (position, zone) in zones.iter().enumerate() {
            labelled(&mut bench, &format!("node{}", position + 1), &[("zone", &zone.to_string())]);
        }
        let mut spec = service("web", 0);
        placed(&mut spec).preferences = spread(&["node.labels.zone"]);
        let id = bench.create(&spec);
        let mut replicas = 0;
        for step in steps {
            replicas += step;
            bench.update(&id, |spec| spec.mode.replicated.as_mut().unwrap().replicas = Some(replicas));
            bench.settle();
            let counts = counts(&bench, &id);
            let mut sums: BTreeMap<u8, usize> = zones.iter().map(|zone| (*zone, 0)).collect();
            for (position, zone) in zones.iter().enumerate() {
                let here = counts.get(&format!("node{}", position + 1)).copied();
                *sums.get_mut(zone).unwrap() += here.unwrap_or(0);
            }
            let (least, most) = (sums.values().min().unwrap(), sums.values().max().unwrap());
            prop_assert!(most - least <= 1, "{:?}", sums);
            prop_assert_eq!(sums.values().sum::<usize>() as u64, replicas);
        }
    }
}
