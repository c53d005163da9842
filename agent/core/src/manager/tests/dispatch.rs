//! Sessions, assignments, reports, joins.

use std::{net::IpAddr, time::Duration};

use crate::{
    api::{ContainerStatus, NodeState, Role, TaskState, TaskStatus},
    manager::{
        ca,
        dispatcher::{AssignmentChange, Dispatcher, Refused, assignments, reports},
        mesh::{Mesh, MeshDelta},
    },
    rng::Rng,
    testing::bench::{Bench, description, joins, network, service},
    time::Now,
};

const ADDR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 77, 12));

fn seconds(count: u64) -> Now {
    Now(count * 1_000_000_000)
}

fn commit_wishes(bench: &mut Bench, dispatcher: &mut Dispatcher) {
    let wishes = dispatcher.wishes(&bench.view(), bench.ctx.now);
    for result in bench.commit_all(wishes) {
        result.unwrap();
    }
}

#[test]
fn a_silent_node_goes_down_and_comes_back() {
    let mut bench = Bench::new(2);
    let mut dispatcher = Dispatcher::new(&bench.view(), Rng::seeded(1), seconds(0));
    commit_wishes(&mut bench, &mut dispatcher);
    assert_eq!(bench.node("node2").status.state, NodeState::Unknown);
    let id = bench.node("node2").id;
    let view = bench.view();
    let session = dispatcher
        .register(&view, &id, description("node2"), ADDR, seconds(1))
        .unwrap();
    commit_wishes(&mut bench, &mut dispatcher);
    assert_eq!(bench.node("node2").status.state, NodeState::Ready);
    for second in [5, 10, 15] {
        let next = dispatcher
            .heartbeat(&bench.view(), &id, &session, seconds(second))
            .unwrap();
        assert!((Duration::from_millis(4500)..=Duration::from_millis(5500)).contains(&next));
    }
    dispatcher.tick(seconds(29));
    commit_wishes(&mut bench, &mut dispatcher);
    assert_eq!(bench.node("node2").status.state, NodeState::Ready);
    assert_eq!(dispatcher.deadline(), Some(seconds(30)));
    dispatcher.tick(seconds(30));
    commit_wishes(&mut bench, &mut dispatcher);
    let node = bench.node("node2");
    assert_eq!(
        (node.status.state, node.status.message.as_str()),
        (NodeState::Down, "heartbeat failure")
    );
    assert_eq!(
        bench.node("node1").status.state,
        NodeState::Down,
        "it never came to the new leader"
    );
    let error = dispatcher
        .heartbeat(&bench.view(), &id, &session, seconds(31))
        .unwrap_err();
    assert_eq!(error, Refused::InvalidSession);
    dispatcher
        .register(&bench.view(), &id, description("node2"), ADDR, seconds(32))
        .unwrap();
    commit_wishes(&mut bench, &mut dispatcher);
    assert_eq!(bench.node("node2").status.state, NodeState::Ready);
    assert_eq!(dispatcher.wishes(&bench.view(), bench.ctx.now), []);
}

#[test]
fn registrations_are_limited_and_checked() {
    let mut bench = Bench::new(3);
    let view = bench.view();
    let mut dispatcher = Dispatcher::new(&view, Rng::seeded(1), seconds(0));
    let id = bench.node("node2").id;
    for _ in 0..3 {
        dispatcher
            .register(&view, &id, description("node2"), ADDR, seconds(1))
            .unwrap();
    }
    let error = dispatcher
        .register(&view, &id, description("node2"), ADDR, seconds(2))
        .unwrap_err();
    assert_eq!(error, Refused::TooFrequent);
    dispatcher
        .register(&view, &id, description("node2"), ADDR, seconds(10))
        .unwrap();

    let other = bench.node("node3").id;
    let mut twin = description("node3");
    twin.machine_id = "machine-node2".to_owned();
    let error = dispatcher
        .register(&view, &other, twin.clone(), ADDR, seconds(11))
        .unwrap_err();
    assert!(matches!(error, Refused::DuplicateMachine { .. }));
    assert!(error.to_string().contains("(node2)"), "{error}");
    dispatcher.tick(seconds(60));
    dispatcher
        .register(&view, &other, twin, ADDR, seconds(61))
        .unwrap();

    bench.change_node("node2", |node| node.status.state = NodeState::Down);
    let remove = crate::api::ClusterRequest::NodeRemove {
        node: "node2".to_owned(),
        force: false,
    };
    bench.request(&remove).unwrap();
    let error = dispatcher.register(&bench.view(), &id, description("node2"), ADDR, seconds(62));
    assert_eq!(error, Err(Refused::Removed(id)));
}

#[test]
fn assignments_repeat_only_what_the_node_does_not_know() {
    let mut bench = Bench::new(1);
    let web = bench.create(&service("web", 2));
    bench.settle();
    let node = bench.node("node1").id;
    let first = assignments(&bench.view(), &node);
    assert_eq!(first.tasks.len(), 2);
    let task = bench.live(&web).remove(0);
    bench.report(&task, TaskState::Running);
    let second = assignments(&bench.view(), &node);
    assert_eq!(first.diff(&second), []);
    bench.update(&web, |spec| {
        spec.mode.replicated.as_mut().unwrap().replicas = Some(1)
    });
    bench.settle();
    let third = assignments(&bench.view(), &node);
    let [AssignmentChange::Update(task)] = &second.diff(&third)[..] else {
        panic!("{:?}", second.diff(&third));
    };
    assert_eq!(task.desired_state, TaskState::Remove);
    bench.obey();
    let fourth = assignments(&bench.view(), &node);
    assert_eq!(
        third.diff(&fourth),
        [AssignmentChange::Remove(task.id.clone())]
    );
}

#[test]
fn reports_are_checked() {
    let mut bench = Bench::new(2);
    let web = bench.create(&service("web", 2));
    bench.settle();
    let view = bench.view();
    let task = bench.live(&web).remove(0);
    let node = task.node_id.clone().unwrap();
    let other = view.nodes().find(|it| it.id != node).unwrap().id.clone();
    let now = bench.ctx.now;
    let status = |state| TaskStatus {
        state,
        ..TaskStatus::default()
    };
    let one = |state| vec![(task.id.to_string(), status(state))];
    assert!(matches!(
        reports(&view, &other, one(TaskState::Running), now),
        Err(Refused::ForeignTask { .. })
    ));
    assert!(matches!(
        reports(&view, &node, one(TaskState::Orphaned), now),
        Err(Refused::InvalidReport { .. })
    ));
    assert_eq!(
        reports(
            &view,
            &node,
            vec![("nonsense".to_owned(), status(TaskState::Running))],
            now
        ),
        Ok(vec![])
    );
    let changes = reports(&view, &node, one(TaskState::Running), now).unwrap();
    bench.must(changes);
    let stored = bench.view().task(&task.id).unwrap().clone();
    assert_eq!(stored.running_since, Some(now), "by the leader's clock");
    assert_eq!(
        reports(&bench.view(), &node, one(TaskState::Running), now),
        Ok(vec![]),
        "nothing new"
    );
    assert_eq!(
        reports(&bench.view(), &node, one(TaskState::Ready), now),
        Ok(vec![]),
        "older"
    );
    let mut bad = status(TaskState::Running);
    bad.container_status = Some(ContainerStatus {
        container_id: "../../etc".to_owned(),
        ..ContainerStatus::default()
    });
    let bad = vec![(task.id.to_string(), bad)];
    assert!(matches!(
        reports(&bench.view(), &node, bad, now),
        Err(Refused::InvalidReport { .. })
    ));
}

#[test]
fn tokens_give_roles_and_a_repeated_request_makes_one_node() {
    let mut bench = Bench::new(0);
    let view = bench.view();
    let cluster = view.cluster().unwrap();
    assert_eq!(ca::role_of_token(cluster, "worker-token"), Ok(Role::Worker));
    assert_eq!(
        ca::role_of_token(cluster, "manager-token"),
        Ok(Role::Manager)
    );
    for bad in ["", "worker-toke", "worker-token2"] {
        assert_eq!(ca::role_of_token(cluster, bad), Err(ca::JoinError::Token));
    }
    let csr = "-----BEGIN CERTIFICATE REQUEST-----\nMA==\n-----END CERTIFICATE REQUEST-----\n";
    let availability = crate::api::Availability::Active;
    let (id, proposal) =
        ca::join(&view, "worker-token", csr, availability, &mut bench.ctx).unwrap();
    bench.commit(proposal.unwrap()).unwrap();
    let again = ca::join(
        &bench.view(),
        "worker-token",
        csr,
        availability,
        &mut bench.ctx,
    );
    assert_eq!(again, Ok((id.clone(), None)));
    let view = bench.view();
    let waiting: Vec<_> = ca::unsigned(&view).map(|node| node.id.clone()).collect();
    assert_eq!(waiting, std::slice::from_ref(&id));
    let signed = ca::signed(&view, &id, csr, Ok("chain".to_owned()), &bench.ctx).unwrap();
    bench.commit(signed).unwrap();
    assert_eq!(ca::unsigned(&bench.view()).count(), 0);
    assert!(ca::renew(&bench.view(), &id, "no pem", &bench.ctx).is_err());
    let renewal = ca::renew(&bench.view(), &id, csr, &bench.ctx).unwrap();
    bench.commit(renewal).unwrap();
    assert_eq!(ca::unsigned(&bench.view()).count(), 1);
}

#[test]
fn differences_lead_from_map_to_map() {
    let mut bench = Bench::new(3);
    let node = bench.node("node1").id;
    let mut map = crate::manager::mesh::map(&bench.view(), &node);
    let step = |bench: &mut Bench, map: &mut crate::network::mesh::MeshMap| {
        let view = bench.view();
        let next = Mesh::of(&view).map(&view, &node);
        next.validate().unwrap();
        let delta = MeshDelta::between(map, &next);
        let sent = serde_json::to_vec(&delta).unwrap();
        let received: MeshDelta = serde_json::from_slice(&sent).unwrap();
        let applied = received.apply(map).unwrap();
        assert_eq!(applied, next);
        assert!(received.apply(&applied).is_err() || applied.version == map.version);
        *map = applied;
    };
    bench.create_network(&network("net"));
    bench.settle();
    step(&mut bench, &mut map);
    let mut spec = service("web", 4);
    spec.task_template.networks = vec![joins("net")];
    let web = bench.create(&spec);
    bench.settle();
    step(&mut bench, &mut map);
    bench.obey();
    step(&mut bench, &mut map);
    bench.lose("node2");
    bench.settle();
    step(&mut bench, &mut map);
    bench.update(&web, |spec| {
        spec.mode.replicated.as_mut().unwrap().replicas = Some(1)
    });
    bench.obey();
    step(&mut bench, &mut map);
    let before = map.clone();
    bench.must([]);
    step(&mut bench, &mut map);
    assert!(MeshDelta::between(&before, &map).is_empty());
}
