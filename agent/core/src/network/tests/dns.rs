//! Names (rows E1 to E3 and E5 of the walk-through).

use std::{collections::BTreeSet, net::Ipv4Addr};

use proptest::prelude::*;

use crate::{
    network::{
        dns::{Answer, RecordType, answer},
        example::{self, Example, id, my_demo},
    },
    rng::Rng,
};

fn ask(example: &Example, sandbox: usize, name: &str, kind: RecordType) -> Answer {
    let sandbox = example.sandboxes.values().nth(sandbox).unwrap();
    answer(&example.inputs(), sandbox, name, kind, &mut Rng::seeded(1))
}

const CLIENT: usize = 1;

fn demo(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

fn sorted(answer: Answer) -> Vec<Ipv4Addr> {
    let Answer::Addresses(mut addresses) = answer else {
        panic!("{answer:?}")
    };
    addresses.sort();
    addresses
}

#[test]
fn a_service_is_its_vip_and_its_tasks_are_their_addresses() {
    let example = example::whoami(0);
    for name in [
        "whoami",
        "whoami.",
        "WhoAmI",
        "whoami.my-demo",
        "whoami.my-demo.",
    ] {
        let answer = ask(&example, CLIENT, name, RecordType::A);
        assert_eq!(answer, Answer::Addresses(vec![demo(5)]), "{name}");
    }
    for name in ["tasks.whoami", "tasks.whoami.my-demo"] {
        let tasks = sorted(ask(&example, CLIENT, name, RecordType::A));
        assert_eq!(tasks, [demo(6), demo(7), demo(8)], "{name}");
    }
}

#[test]
fn a_task_is_known_by_its_own_names() {
    let example = example::whoami(0);
    let sandbox = example.sandboxes.values().nth(CLIENT).unwrap();
    for name in [&sandbox.hostname, &sandbox.name, sandbox.short_id()] {
        let answer = ask(&example, CLIENT, name, RecordType::A);
        assert_eq!(answer, Answer::Addresses(vec![demo(3)]), "{name}");
    }
    let other = &example.mesh.networks[&my_demo()].endpoints[&id(101)].name;
    let answer = ask(&example, CLIENT, other, RecordType::A);
    assert_eq!(answer, Answer::Addresses(vec![demo(7)]));
}

#[test]
fn aliases_stand_for_the_service() {
    let mut example = example::whoami(0);
    let network = example.mesh.networks.get_mut(&my_demo()).unwrap();
    network
        .services
        .get_mut(&id(20))
        .unwrap()
        .aliases
        .push("who".to_owned());
    assert_eq!(
        sorted(ask(&example, CLIENT, "who", RecordType::A)),
        [demo(5)]
    );
    assert_eq!(
        sorted(ask(&example, CLIENT, "tasks.who", RecordType::A)).len(),
        3
    );
}

#[test]
fn dnsrr_changes_its_order() {
    let mut example = example::whoami(0);
    let network = example.mesh.networks.get_mut(&my_demo()).unwrap();
    network.services.get_mut(&id(20)).unwrap().vip = None;
    let sandbox = example.sandboxes.values().nth(CLIENT).unwrap();
    let mut rng = Rng::seeded(7);
    let mut once = || {
        let answer = answer(
            &example.inputs(),
            sandbox,
            "whoami",
            RecordType::A,
            &mut rng,
        );
        let Answer::Addresses(addresses) = answer else {
            panic!("{answer:?}")
        };
        addresses
    };
    let orders: BTreeSet<_> = (0..50).map(|_| once()).collect();
    assert_eq!(orders.len(), 6, "every order of three");
}

#[test]
fn who_takes_no_connections_is_not_named() {
    let mut example = example::whoami(0);
    example.mesh.nodes.get_mut(&id(2)).unwrap().alive = false;
    let network = example.mesh.networks.get_mut(&my_demo()).unwrap();
    network.endpoints.get_mut(&id(101)).unwrap().in_service = false;
    assert_eq!(
        sorted(ask(&example, CLIENT, "tasks.whoami", RecordType::A)),
        [demo(6)]
    );
    let network = example.mesh.networks.get_mut(&my_demo()).unwrap();
    network.endpoints.clear();
    assert_eq!(
        ask(&example, CLIENT, "tasks.whoami", RecordType::A),
        Answer::NoData
    );
}

#[test]
fn other_types_of_a_known_name_are_empty() {
    let example = example::whoami(0);
    assert_eq!(
        ask(&example, CLIENT, "whoami", RecordType::Other),
        Answer::NoData
    );
    assert_eq!(
        ask(&example, CLIENT, "nosuchname", RecordType::Other),
        Answer::Forward
    );
    assert_eq!(
        ask(&example, CLIENT, "debian.org", RecordType::A),
        Answer::Forward
    );
    assert_eq!(
        ask(&example, CLIENT, "tasks.nosuchname", RecordType::A),
        Answer::Forward
    );
}

#[test]
fn only_own_networks_are_seen() {
    let mut example = example::whoami(0);
    for sandbox in example.sandboxes.values_mut() {
        sandbox
            .attachments
            .retain(|one| one.network_id != my_demo());
    }
    assert_eq!(ask(&example, 0, "whoami", RecordType::A), Answer::Forward);
    assert_eq!(
        ask(&example, 0, "whoami.my-demo", RecordType::A),
        Answer::Forward
    );
    assert_eq!(
        ask(&example, 0, "whoami.ingress", RecordType::A),
        Answer::Forward
    );
}

#[test]
fn addresses_have_names() {
    let example = example::whoami(0);
    let name = &example.mesh.networks[&my_demo()].endpoints[&id(101)].name;
    let ptr = |name: &str| ask(&example, CLIENT, name, RecordType::Ptr);
    assert_eq!(
        ptr("7.1.0.10.in-addr.arpa"),
        Answer::Name(format!("{name}.my-demo"))
    );
    assert_eq!(
        ptr("5.1.0.10.in-addr.arpa."),
        Answer::Name("whoami.my-demo".to_owned())
    );
    assert_eq!(ptr("99.1.0.10.in-addr.arpa"), Answer::NoName);
    assert_eq!(ptr("8.8.8.8.in-addr.arpa"), Answer::Forward);
    assert_eq!(ptr("1.10.in-addr.arpa"), Answer::Forward);
}

#[test]
fn an_internal_network_asks_nobody_outside() {
    let mut example = example::whoami(0);
    example.mesh.networks.get_mut(&my_demo()).unwrap().internal = true;
    assert_eq!(
        ask(&example, CLIENT, "debian.org", RecordType::A),
        Answer::NoName
    );
    assert_eq!(
        sorted(ask(&example, CLIENT, "whoami", RecordType::A)),
        [demo(5)]
    );
}

proptest! {
    #[test]
    fn any_name_is_answered(name in ".{0,60}", reverse in "[0-9.]{0,20}", kind in 0..3usize) {
        let kind = [RecordType::A, RecordType::Ptr, RecordType::Other][kind];
        let example = example::whoami(0);
        for name in [name, format!("{reverse}.in-addr.arpa")] {
            let answer = ask(&example, CLIENT, &name, kind);
            prop_assert!(kind == RecordType::A || !matches!(answer, Answer::Addresses(_)));
        }
    }
}
