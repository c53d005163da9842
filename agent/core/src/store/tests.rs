use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::{
    api::{Role, TaskState},
    rng::Rng,
    testing::bench::{self, Bench},
};

fn node(rng: &mut Rng, name: &str) -> Node {
    bench::node(rng, name, IpAddr::from([10, 1, 1, 1]), Role::Worker)
}

fn entry(changes: impl IntoIterator<Item = Change>) -> Entry {
    Entry {
        proposals: vec![Proposal::of(changes)],
    }
}

fn refused(result: &[Result<Applied, ApplyError>]) -> String {
    match &result[0] {
        Ok(_) => panic!("it was taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_write_needs_the_version_that_is_there() {
    let (mut store, mut rng) = (Store::default(), Rng::seeded(1));
    let mut one = node(&mut rng, "a");
    let result = store.apply(5, &entry([Change::put_node(one.clone())]));
    let applied = result[0].clone().unwrap();
    assert_eq!(
        (applied.index, applied.touched),
        (5, vec![ObjectId::Node(one.id.clone())])
    );
    assert_eq!(store.view().node(&one.id).unwrap().meta.version, 5);

    let again = store.apply(6, &entry([Change::put_node(one.clone())]));
    assert_eq!(
        refused(&again),
        format!("node {} is at version 5, not 0: read it again", one.id)
    );
    one.meta.version = 5;
    store.apply(7, &entry([Change::put_node(one.clone())]))[0]
        .clone()
        .unwrap();
    let delete = |version| Change::Delete {
        object: ObjectId::Node(one.id.clone()),
        version,
    };
    refused(&store.apply(8, &entry([delete(5)])));
    store.apply(9, &entry([delete(7)]))[0].clone().unwrap();
    assert!(store.view().node(&one.id).is_none());
}

#[test]
fn a_proposal_is_done_whole_or_not_at_all() {
    let (mut store, mut rng) = (Store::default(), Rng::seeded(1));
    let (good, mut bad) = (node(&mut rng, "a"), node(&mut rng, "b"));
    bad.meta.version = 3;
    let both = Proposal::of([Change::put_node(good.clone()), Change::put_node(bad)]);
    let alone = Proposal::of([Change::put_node(good.clone())]);
    let results = store.apply(
        1,
        &Entry {
            proposals: vec![both, alone],
        },
    );
    assert!(results[0].is_err() && results[1].is_ok());
    assert_eq!(store.view().nodes().count(), 1);
}

#[test]
fn an_entry_is_applied_once() {
    let (mut store, mut rng) = (Store::default(), Rng::seeded(1));
    let one = entry([Change::put_node(node(&mut rng, "a"))]);
    store.apply(4, &one)[0].clone().unwrap();
    let said = refused(&store.apply(4, &entry([Change::put_node(node(&mut rng, "b"))])));
    assert_eq!(said, "entry 4 was applied already: the store is at 4");
    assert_eq!(
        (store.view().version(), store.view().nodes().count()),
        (4, 1)
    );
}

#[test]
fn a_view_does_not_change_under_its_reader() {
    let (mut store, mut rng) = (Store::default(), Rng::seeded(1));
    let before = store.view();
    store.apply(1, &entry([Change::put_node(node(&mut rng, "a"))]))[0]
        .clone()
        .unwrap();
    assert_eq!(
        (before.nodes().count(), store.view().nodes().count()),
        (0, 1)
    );
}

#[test]
fn states_of_tasks_only_grow() {
    let mut bench = Bench::new(1);
    let web = bench.create(&bench::service("web", 1));
    bench.obey();
    let task = bench.live(&web).remove(0);
    let mut back = Task::clone(&task);
    back.status.state = TaskState::Ready;
    let error = bench
        .commit(Proposal::of([Change::put_task(back)]))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("can't go back from Running to Ready"),
        "{error}"
    );
    bench.report(&task, TaskState::Starting);
    assert_eq!(bench.tasks(&web)[0].status.state, TaskState::Running);
    bench.report(&task, TaskState::Failed);
    bench.report(&task, TaskState::Complete);
    assert_eq!(
        bench.tasks(&web)[0].status.state,
        TaskState::Failed,
        "an end is final"
    );
}

#[test]
fn what_is_referenced_stays() {
    let mut bench = Bench::new(1);
    let net = bench.create_network(&bench::network("net"));
    let view = bench.view();
    let mut spec = bench::service("web", 1);
    spec.task_template.networks = vec![bench::joins("net")];
    // Decided over one view, committed one after the other.
    let create = crate::api::ClusterRequest::ServiceCreate(Box::new(spec));
    let remove = crate::api::ClusterRequest::NetworkRemove("net".to_owned());
    let mut decide = |request| {
        crate::manager::control::handle(&view, request, &mut bench.ctx)
            .unwrap()
            .0
    };
    let (create, remove) = (decide(&create), decide(&remove));
    let results = bench.commit_all(vec![create.clone(), remove.clone()]);
    let error = results[1].clone().unwrap_err();
    assert_eq!(error.to_string(), "network net is in use by service web");
    let mut other = Bench::new(1);
    assert_eq!(
        other.create_network(&bench::network("net")),
        net,
        "the same seed"
    );
    let results = other.commit_all(vec![remove, create]);
    let error = results[1].clone().unwrap_err();
    assert_eq!(error, ApplyError::NoNetwork(net.to_string()));
}

#[test]
fn damaged_snapshots_are_refused() {
    for bytes in [&b""[..], b"{", b"[]", b"{\"Format\": 1}"] {
        assert!(View::from_snapshot(bytes).is_err());
    }
    let error = View::from_snapshot(b"{\"Format\": 9}").unwrap_err();
    assert!(error.to_string().contains("format 9"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A restored snapshot is the state with all its indexes, whatever has happened before.
    #[test]
    fn a_snapshot_is_the_state(seed: u64, steps in prop::collection::vec(0..6u8, 0..25)) {
        let mut bench = Bench::new(3);
        bench.ctx.rng = Rng::seeded(seed);
        bench.create_secret("db", b"x");
        bench.create_config("site", b"x");
        for (number, step) in steps.into_iter().enumerate() {
            let name = format!("s{}", number % 4);
            let known = bench.view().service_named(&name).map(|it| it.id.clone());
            match (step, known) {
                (0, _) if bench.view().network_named(&name).is_none() => {
                    bench.create_network(&bench::network(&name));
                }
                (1 | 2, None) => {
                    let mut spec = bench::service(&name, u64::from(step) * 2);
                    if bench.view().network_named(&name).is_some() {
                        spec.task_template.networks = vec![bench::joins(&name)];
                    }
                    bench.create(&spec);
                }
                (3, Some(id)) => bench.update(&id, |spec| spec.task_template.force_update += 1),
                (4, Some(_)) => {
                    let remove = crate::api::ClusterRequest::ServiceRemove(name);
                    bench.request(&remove).unwrap();
                }
                (5, _) => bench.obey(),
                _ => {
                    bench.settle();
                }
            }
            let view = bench.view();
            let restored = View::from_snapshot(&view.to_snapshot().unwrap()).unwrap();
            prop_assert_eq!(restored.version(), view.version());
            prop_assert!(restored.index == view.index, "the indexes differ");
            prop_assert!(restored.tasks().eq(view.tasks()));
            prop_assert!(restored.services().eq(view.services()));
            prop_assert!(restored.networks().eq(view.networks()));
            prop_assert!(restored.nodes().eq(view.nodes()));
            prop_assert!(restored.secrets().eq(view.secrets()));
            prop_assert!(restored.configs().eq(view.configs()));
            prop_assert_eq!(restored.cluster(), view.cluster());
        }
    }
}
