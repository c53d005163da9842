//! Which tasks of a service get connections.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    desired::Inputs,
    mesh::{MeshEndpoint, MeshNetwork},
    state::{IpvsDestination, IpvsForward, IpvsKey, IpvsService},
};
use crate::{api::Service, id::Id};

/// The balancer of each service of a network that has a VIP.
pub(super) fn balancers(
    inputs: &Inputs<'_>,
    network: &MeshNetwork,
) -> BTreeMap<IpvsKey, IpvsService> {
    let mut tasks: BTreeMap<&Id<Service>, Vec<&MeshEndpoint>> = BTreeMap::new();
    for endpoint in network.endpoints.values() {
        if let Some(service) = &endpoint.service_id {
            tasks.entry(service).or_default().push(endpoint);
        }
    }
    let services = network.services.iter();
    services
        .filter(|(_, service)| service.vip.is_some())
        .map(|(id, service)| {
            let tasks = tasks.get(id).map(Vec::as_slice).unwrap_or_default();
            (IpvsKey::Mark(service.mark), balancer(inputs, tasks))
        })
        .collect()
}

/// The addresses of a service's tasks that take new connections.
pub(super) fn takers(
    inputs: &Inputs<'_>,
    network: &MeshNetwork,
    id: &Id<Service>,
) -> Vec<Ipv4Addr> {
    let endpoints = network.endpoints.values();
    let tasks: Vec<_> = endpoints
        .filter(|endpoint| endpoint.service_id.as_ref() == Some(id))
        .collect();
    let taking = judged(inputs, &tasks)
        .into_iter()
        .filter(|(_, takes)| *takes);
    taking.map(|(endpoint, _)| endpoint.address).collect()
}

fn balancer(inputs: &Inputs<'_>, tasks: &[&MeshEndpoint]) -> IpvsService {
    let destination = |(endpoint, takes): (&MeshEndpoint, bool)| {
        let destination = IpvsDestination {
            addr: IpAddr::V4(endpoint.address),
            port: 0,
        };
        let forward = IpvsForward {
            masquerade: true,
            weight: u32::from(takes),
        };
        (destination, forward)
    };
    IpvsService {
        scheduler: "rr".to_owned(),
        flags: 0,
        destinations: judged(inputs, tasks).into_iter().map(destination).collect(),
    }
}

/// Each task of one service with whether it takes new connections.
fn judged<'e>(inputs: &Inputs<'_>, tasks: &[&'e MeshEndpoint]) -> Vec<(&'e MeshEndpoint, bool)> {
    let own = inputs.node.node_id.as_ref();
    let alive = |endpoint: &MeshEndpoint| {
        let node = &endpoint.node_id;
        Some(node) == own || inputs.mesh.nodes.get(node).is_some_and(|n| n.alive)
    };
    // When every node is suspected it is us who are cut off: keep trying all of them.
    let any_alive = tasks.iter().any(|one| one.in_service && alive(one));
    let takes = |one: &MeshEndpoint| one.in_service && (!any_alive || alive(one));
    tasks.iter().map(|one| (*one, takes(one))).collect()
}
