//! What single changes of the map do.

use std::net::{IpAddr, Ipv4Addr};

use crate::network::{
    NetState, Ns, desired,
    desired::{overlay_ns, sandbox_scope},
    example::{self, Example, id, ingress, my_demo},
    plan,
    plan::Step,
    state::{INGRESS_SANDBOX, IpvsKey, OVERLAY_VXLAN, Scope},
};

fn weights(example: &Example) -> Vec<u32> {
    let state = desired(&example.inputs());
    let sandbox = &state.namespaces[&Ns::Named(INGRESS_SANDBOX.to_owned())];
    let destinations = sandbox.ipvs[&IpvsKey::Mark(256)].destinations.values();
    destinations.map(|forward| forward.weight).collect()
}

#[test]
fn suspicion_takes_the_weight_and_nothing_else() {
    let mut example = example::whoami(0);
    assert_eq!(weights(&example), [1, 1, 1]);
    example.mesh.nodes.get_mut(&id(2)).unwrap().alive = false;
    assert_eq!(weights(&example), [1, 1, 0]);
    let state = desired(&example.inputs());
    assert_eq!(state.namespaces[&overlay_ns(&ingress())].fdb.len(), 4);
}

#[test]
fn when_all_are_suspected_all_are_tried() {
    let mut example = example::whoami(0);
    for node in example.mesh.nodes.values_mut() {
        node.alive = false;
    }
    assert_eq!(weights(&example), [1, 0, 0], "the own one is alive");
    let mesh = example.mesh.networks.get_mut(&ingress()).unwrap();
    mesh.endpoints.get_mut(&id(100)).unwrap().in_service = false;
    assert_eq!(weights(&example), [0, 1, 1]);
}

#[test]
fn an_endpoint_out_of_service_keeps_its_connections() {
    let mut example = example::whoami(0);
    let mesh = example.mesh.networks.get_mut(&ingress()).unwrap();
    mesh.endpoints.get_mut(&id(101)).unwrap().in_service = false;
    assert_eq!(weights(&example), [1, 0, 1]);
}

#[test]
fn a_moved_address_moves_everywhere() {
    let before = example::whoami(0);
    let mut after = before.clone();
    let demo = after.mesh.networks.get_mut(&my_demo()).unwrap();
    demo.endpoints.get_mut(&id(101)).unwrap().node_id = id(2);
    let ops = plan(&desired(&after.inputs()), &desired(&before.inputs()));
    let steps: Vec<_> = ops.into_iter().map(|op| op.step).collect();
    let mac = "02:42:0a:00:01:07".parse().unwrap();
    let vtep = IpAddr::V4(Ipv4Addr::new(192, 168, 77, 13));
    assert_eq!(steps, [Step::SetFdb(OVERLAY_VXLAN.to_owned(), mac, vtep)]);
}

#[test]
fn a_local_sandbox_wins_over_an_old_map() {
    let mut example = example::whoami(0);
    let demo = example.mesh.networks.get_mut(&my_demo()).unwrap();
    demo.endpoints.get_mut(&id(100)).unwrap().node_id = id(1);
    let state = desired(&example.inputs());
    let overlay = &state.namespaces[&overlay_ns(&my_demo())];
    let own = (OVERLAY_VXLAN.to_owned(), Ipv4Addr::new(10, 0, 1, 6));
    assert!(!overlay.neighbours.contains_key(&own));
}

/// The plan of one container's start touches no other sandbox and keeps what others have.
#[test]
fn a_scope_is_enough_for_one_sandbox() {
    let after = example::whoami(0);
    let mut before = after.clone();
    let (_, sandbox) = before.sandboxes.pop_last().unwrap();
    let mut kernel = NetState::booted();
    for op in plan(&desired(&before.inputs()), &kernel) {
        kernel.apply(&op).unwrap();
    }
    let want = desired(&after.inputs());
    let scope = Scope::only(&want, sandbox_scope(&sandbox));
    let ops = plan(&want.restricted(&scope), &kernel.restricted(&scope));
    for op in &ops {
        assert!(scope.includes(&op.ns), "{op:?}");
        assert!(!matches!(op.step, Step::DeleteLink(_)), "{op:?}");
        kernel.apply(op).unwrap();
    }
    assert_eq!(plan(&want, &kernel), []);
}

#[test]
fn a_map_that_contradicts_itself_is_refused() {
    let good = example::whoami(0).mesh;
    assert_eq!(good.validate(), Ok(()));
    let bad = |change: &dyn Fn(&mut crate::network::mesh::MeshNetwork), field: &str| {
        let mut map = good.clone();
        change(map.networks.get_mut(&my_demo()).unwrap());
        assert_eq!(map.validate().unwrap_err().field, field);
    };
    bad(&|n| n.vni = 0, "vni");
    bad(&|n| n.vni = 1 << 24, "vni");
    bad(&|n| n.mtu = 100, "mtu");
    bad(&|n| n.vxlan_port = 0, "vxlan_port");
    bad(&|n| n.subnet = "10.0.0.0/8".parse().unwrap(), "subnet");
    bad(&|n| n.gateway = Ipv4Addr::new(10, 0, 2, 1), "gateway");
    bad(&|n| n.gateway = Ipv4Addr::new(10, 0, 1, 6), "endpoints");
    bad(&|n| n.services.get_mut(&id(20)).unwrap().mark = 0, "mark");
    bad(&|n| n.services.get_mut(&id(20)).unwrap().mark = 256, "mark");
    bad(
        &|n| n.services.get_mut(&id(20)).unwrap().vip = Some(Ipv4Addr::new(10, 0, 1, 2)),
        "vip",
    );
}
