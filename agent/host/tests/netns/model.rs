//! The model of a kernel that other tests build on ends where this kernel does.

use std::net::Ipv4Addr;

use skep_core::network::{
    NetState, Scope, desired,
    example::{self, Example, id, ingress, my_demo},
    plan,
};

use crate::machine::{Machine, possible, root};

/// One life of a node: what it must look like, one state after the other.
fn life() -> Vec<Example> {
    let full = example::whoami(0);
    let mut alone = full.clone();
    alone.sandboxes.clear();
    let mut moved = full.clone();
    for network in [ingress(), my_demo()] {
        let network = moved.mesh.networks.get_mut(&network).unwrap();
        network.endpoints.get_mut(&id(101)).unwrap().node_id = id(2);
    }
    let mut internal = full.clone();
    internal.mesh.networks.get_mut(&my_demo()).unwrap().internal = true;
    let mut renumbered = full.clone();
    let network = renumbered.mesh.networks.get_mut(&my_demo()).unwrap();
    (network.vni, network.mtu) = (5000, 1400);
    let mut elsewhere = full.clone();
    elsewhere.node.vtep = "192.168.77.40".parse().unwrap();
    elsewhere.node.gateway_bridge = "172.30.0.1/16".parse().unwrap();
    for (sandbox, last) in elsewhere.sandboxes.values_mut().zip(3..) {
        sandbox.gateway_address = Some(Ipv4Addr::new(172, 30, 0, last));
    }
    let mut outside = full.clone();
    outside.mesh = Default::default();
    outside.node.node_id = None;
    outside.sandboxes.clear();
    vec![
        alone.clone(),
        full.clone(),
        moved,
        internal,
        renumbered,
        full,
        elsewhere,
        alone,
        outside,
    ]
}

#[tokio::test]
async fn the_same_steps_lead_to_the_same_state() {
    if !root() {
        return;
    }
    let machine = Machine::new();
    let mut model = NetState::booted();
    for (turn, example) in life().iter().enumerate() {
        let want = possible(desired(&example.inputs()));
        for op in plan(&want, &model) {
            model.apply(&op).unwrap();
        }
        machine.converge(example).await;
        let kernel = machine.net.observe(&Scope::all(&want)).await.unwrap();
        assert_eq!(plan(&model, &kernel), [], "turn {turn}");
        assert_eq!(
            model.namespaces.keys().collect::<Vec<_>>(),
            kernel.namespaces.keys().collect::<Vec<_>>(),
            "turn {turn}"
        );
    }
}
