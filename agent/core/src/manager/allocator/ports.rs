//! Published ports of the routing mesh.

use std::collections::BTreeSet;

use crate::{
    api::{Endpoint, PortConfig, Protocol, PublishMode, Service},
    id::Id,
    store::View,
};

/// The first port that is given to a service whose user left the choice to us.
pub const FIRST_DYNAMIC_PORT: u16 = 30_000;
/// The last such port.
pub const LAST_DYNAMIC_PORT: u16 = 32_767;

/// The service's published ports with every number filled in. A port that was given stays with the
/// same target port over updates. `given` is what other services got in this pass.
pub(super) fn assign<'a>(
    view: &View,
    service: &Service,
    given: impl Iterator<Item = (&'a Id<Service>, &'a Endpoint)>,
) -> Result<Vec<PortConfig>, String> {
    let spec = service.spec.endpoint_spec.as_ref();
    let wished: &[PortConfig] = spec.map_or(&[], |spec| &spec.ports);
    let mut taken: BTreeSet<(Protocol, u16)> = given
        .filter(|(id, _)| **id != service.id)
        .flat_map(|(_, endpoint)| &endpoint.ports)
        .map(|port| (port.protocol, port.published_port))
        .collect();
    taken.extend(
        wished
            .iter()
            .map(|port| (port.protocol, port.published_port)),
    );
    let foreign = |protocol, port| {
        let holder = view.port_holder(protocol, port);
        holder.is_some_and(|holder| holder.id != service.id)
    };
    let mut ports = Vec::with_capacity(wished.len());
    for wish in wished {
        let mut port = wish.clone();
        if wish.published_port == 0 && wish.publish_mode == PublishMode::Ingress {
            let free = |number: &u16| {
                !taken.contains(&(wish.protocol, *number)) && !foreign(wish.protocol, *number)
            };
            let before = earlier(service, wish).filter(|number| free(number));
            let number = before.or_else(|| (FIRST_DYNAMIC_PORT..=LAST_DYNAMIC_PORT).find(free));
            port.published_port = number.ok_or_else(|| {
                format!(
                    "no port from {FIRST_DYNAMIC_PORT} to {LAST_DYNAMIC_PORT} is left for {}/{} of service {}: publish it on a port of your choice",
                    wish.target_port,
                    wish.protocol.as_str(),
                    service.spec.name
                )
            })?;
            taken.insert((wish.protocol, port.published_port));
        }
        ports.push(port);
    }
    Ok(ports)
}

/// The number that the service was given before for the same port.
fn earlier(service: &Service, wish: &PortConfig) -> Option<u16> {
    let ports = service.endpoint.ports.iter();
    let same = |port: &&PortConfig| {
        (port.protocol, port.target_port, port.publish_mode)
            == (wish.protocol, wish.target_port, wish.publish_mode)
    };
    let numbers = ports.filter(same).map(|port| port.published_port);
    numbers
        .into_iter()
        .find(|number| (FIRST_DYNAMIC_PORT..=LAST_DYNAMIC_PORT).contains(number))
}
