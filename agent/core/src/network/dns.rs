//! Names as a container sees them.
//!
//! A sandbox resolves names of its own overlay networks and no others. The ingress network is left out:
//! it carries published ports and nothing else, so an address on it would lead nowhere.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{
    balancing::takers,
    desired::Inputs,
    mesh::{MeshEndpoint, MeshNetwork, MeshService, Sandbox},
};
use crate::rng::Rng;

/// Where the server listens inside each sandbox, UDP and TCP.
pub const LISTEN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);
/// Time to live of every answer in seconds: short, because tasks come and go.
pub const TTL: u32 = 1;

/// Types of records that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordType {
    /// IPv4 address.
    A,
    /// Name of an address.
    Ptr,
    /// Every other type. A name that exists has none of them.
    Other,
}

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These addresses, in this order.
    Addresses(Vec<Ipv4Addr>),
    /// This name.
    Name(String),
    /// The name exists, a record of that type does not (NOERROR without answers).
    NoData,
    /// There is no such name (NXDOMAIN).
    NoName,
    /// It is not ours: ask the node's name servers.
    Forward,
}

/// Answers a question of a sandbox. `name` may end in a dot and be in any case.
#[must_use]
pub fn answer(
    inputs: &Inputs<'_>,
    sandbox: &Sandbox,
    name: &str,
    kind: RecordType,
    rng: &mut Rng,
) -> Answer {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let view = View { inputs, sandbox };
    if let Some(addr) = reverse(&name) {
        return match (view.name_of(addr), kind) {
            (Some(name), RecordType::Ptr) => Answer::Name(name),
            (Some(_), RecordType::A | RecordType::Other) => Answer::NoData,
            (None, _) if view.networks().any(|network| network.subnet.contains(addr)) => {
                Answer::NoName
            }
            (None, _) => view.elsewhere(),
        };
    }
    let Some(mut addresses) = view.addresses_of(&name) else {
        return view.elsewhere();
    };
    if kind != RecordType::A || addresses.is_empty() {
        return Answer::NoData;
    }
    rng.shuffle(&mut addresses);
    Answer::Addresses(addresses)
}

/// The address that `4.3.2.1.in-addr.arpa` stands for.
fn reverse(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_suffix(".in-addr.arpa")?;
    let addr: Ipv4Addr = digits.parse().ok()?;
    let [a, b, c, d] = addr.octets();
    Some(Ipv4Addr::new(d, c, b, a))
}

/// What one sandbox sees.
struct View<'a> {
    inputs: &'a Inputs<'a>,
    sandbox: &'a Sandbox,
}

impl<'a> View<'a> {
    /// Its overlay networks in its own order.
    fn networks(&self) -> impl Iterator<Item = &'a MeshNetwork> + use<'a> {
        let mesh = self.inputs.mesh;
        let attachments = self.sandbox.attachments.iter();
        attachments
            .filter_map(|attachment| mesh.networks.get(&attachment.network_id))
            .filter(|network| !network.ingress)
    }

    fn elsewhere(&self) -> Answer {
        // A sandbox without a way out has none through our resolver either.
        if self.inputs.has_gateway(self.sandbox) {
            Answer::Forward
        } else {
            Answer::NoName
        }
    }

    /// The addresses of a name, plain or with the network's name behind it; the first network that
    /// knows it decides.
    fn addresses_of(&self, name: &str) -> Option<Vec<Ipv4Addr>> {
        let qualified = |network: &MeshNetwork| {
            let suffix = network.name.to_ascii_lowercase();
            let plain = name.strip_suffix(&suffix)?.strip_suffix('.')?;
            self.in_network(network, plain)
        };
        self.networks()
            .find_map(|network| self.in_network(network, name))
            .or_else(|| self.networks().find_map(qualified))
    }

    fn in_network(&self, network: &MeshNetwork, name: &str) -> Option<Vec<Ipv4Addr>> {
        self.own_address(network, name)
            .or_else(|| service_addresses(self, network, name))
            .or_else(|| {
                let named = |e: &&MeshEndpoint| is_one_of(name, &e.name, &e.aliases);
                let endpoint = network.endpoints.values().find(named)?;
                Some(vec![endpoint.address])
            })
    }

    /// Its own host name, short id and container name.
    fn own_address(&self, network: &MeshNetwork, name: &str) -> Option<Vec<Ipv4Addr>> {
        let sandbox = self.sandbox;
        let own = [&sandbox.hostname, sandbox.short_id(), &sandbox.name];
        let asked = own.iter().any(|own| name.eq_ignore_ascii_case(own));
        let mut attachments = sandbox.attachments.iter();
        let here = attachments.find(|one| network.subnet.contains(one.address))?;
        asked.then(|| vec![here.address])
    }

    /// `<container or service>.<network>`.
    fn name_of(&self, addr: Ipv4Addr) -> Option<String> {
        self.networks().find_map(|network| {
            let task = network.endpoints.values().find(|e| e.address == addr);
            let service = || network.services.values().find(|s| s.vip == Some(addr));
            let name = task.map(|task| &task.name);
            let name = name.or_else(|| service().map(|service| &service.name))?;
            Some(format!("{name}.{}", network.name))
        })
    }
}

/// A service by name or alias: its VIP, or its tasks when it has none or `tasks.` is in front.
fn service_addresses(view: &View<'_>, network: &MeshNetwork, name: &str) -> Option<Vec<Ipv4Addr>> {
    let find = |name: &str| {
        let mut services = network.services.iter();
        services.find(|(_, service): &(_, &MeshService)| {
            is_one_of(name, &service.name, &service.aliases)
        })
    };
    if let Some((id, service)) = find(name) {
        let vip = service.vip.map(|vip| vec![vip]);
        return Some(vip.unwrap_or_else(|| takers(view.inputs, network, id)));
    }
    let (id, _) = find(name.strip_prefix("tasks.")?)?;
    Some(takers(view.inputs, network, id))
}

fn is_one_of(asked: &str, name: &str, aliases: &[String]) -> bool {
    asked.eq_ignore_ascii_case(name) || aliases.iter().any(|one| asked.eq_ignore_ascii_case(one))
}
