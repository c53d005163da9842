//! How a kernel carries out steps, as far as a plan depends on it. For tests and simulations; it
//! may be trusted because the tests in `skep-host` run the same plans on Linux.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each function takes the steps it knows and hands on the rest"
)]

use std::collections::{BTreeMap, BTreeSet};

use super::{
    plan::{NetOp, Step},
    state::{
        IpvsKey, IpvsService, Link, LinkKind, LinkName, Namespace, NetState, Ns, Station, Table,
    },
};

/// Why the model's kernel refused a step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{ns}: {step:?}: {why}")]
pub struct Refused {
    ns: Ns,
    step: Box<Step>,
    why: &'static str,
}

impl NetState {
    /// A machine that has just booted.
    #[must_use]
    pub fn booted() -> Self {
        Self {
            namespaces: BTreeMap::from([(Ns::Host, Namespace::default())]),
        }
    }

    /// Carries out one step, or refuses it and changes nothing. Stricter than the host, which
    /// takes it as done when a thing to remove is not there.
    ///
    /// # Errors
    /// When what the step needs is not there, or what it makes already is.
    pub fn apply(&mut self, op: &NetOp) -> Result<(), Refused> {
        self.carry_out(&op.ns, &op.step).map_err(|why| Refused {
            ns: op.ns.clone(),
            step: Box::new(op.step.clone()),
            why,
        })
    }

    fn carry_out(&mut self, ns: &Ns, step: &Step) -> Result<(), &'static str> {
        match step {
            Step::CreateNamespace => {
                let fresh = Namespace {
                    links: BTreeMap::from([("lo".to_owned(), new_link(LinkKind::Loopback))]),
                    ..Namespace::default()
                };
                let before = self.namespaces.insert(ns.clone(), fresh);
                return before.map_or(Ok(()), |_| Err("exists"));
            }
            Step::DeleteNamespace => return self.delete_namespace(ns),
            Step::DeleteLink(name) => return self.delete_link(ns, name),
            Step::CreateVeth(name, peer) => {
                let here = LinkName {
                    ns: ns.clone(),
                    name: name.clone(),
                };
                self.add_link(ns, name, LinkKind::Veth(Some(peer.clone())))?;
                return self.add_link(&peer.ns, &peer.name, LinkKind::Veth(Some(here)));
            }
            Step::CreateBridge(name) => return self.add_link(ns, name, LinkKind::Bridge),
            Step::CreateVxlan(name, vxlan) => {
                return self.add_link(ns, name, LinkKind::Vxlan(*vxlan));
            }
            _ => {}
        }
        let namespace = self.namespaces.get_mut(ns).ok_or("no such namespace")?;
        namespace.carry_out(step)
    }

    fn add_link(&mut self, ns: &Ns, name: &str, kind: LinkKind) -> Result<(), &'static str> {
        let clashes = |link: &Link| match (&link.kind, &kind) {
            (LinkKind::Vxlan(one), LinkKind::Vxlan(other)) => {
                (one.vni, one.port) == (other.vni, other.port)
            }
            _ => false,
        };
        let mut links = self.namespaces.values().flat_map(|n| n.links.values());
        if links.any(clashes) {
            return Err("another device has this VNI and port");
        }
        let namespace = self.namespaces.get_mut(ns).ok_or("no such namespace")?;
        if name.len() > 15 {
            return Err("name too long");
        }
        let before = namespace.links.insert(name.to_owned(), new_link(kind));
        before.map_or(Ok(()), |_| Err("link exists"))
    }

    /// A link goes with all that hangs on it; of a pair, both ends do. Gone already is fine: it may
    /// have been the other end.
    fn delete_link(&mut self, ns: &Ns, name: &str) -> Result<(), &'static str> {
        let namespace = self.namespaces.get_mut(ns).ok_or("no such namespace")?;
        let Some(link) = namespace.links.remove(name) else {
            return Ok(());
        };
        namespace.forget_link(name);
        let here = LinkName {
            ns: ns.clone(),
            name: name.to_owned(),
        };
        if let LinkKind::Veth(Some(peer)) = link.kind {
            let other = self
                .namespaces
                .get(&peer.ns)
                .and_then(|n| n.links.get(&peer.name));
            if other.is_some_and(|other| other.kind == LinkKind::Veth(Some(here))) {
                self.delete_link(&peer.ns, &peer.name)?;
            }
        }
        Ok(())
    }

    fn delete_namespace(&mut self, ns: &Ns) -> Result<(), &'static str> {
        let namespace = self.namespaces.get(ns).ok_or("no such namespace")?;
        let names: Vec<String> = namespace.links.keys().cloned().collect();
        for name in names {
            self.delete_link(ns, &name)?;
        }
        self.namespaces.remove(ns);
        Ok(())
    }
}

impl Namespace {
    fn carry_out(&mut self, step: &Step) -> Result<(), &'static str> {
        match step {
            Step::DeleteTable => self.table = None,
            Step::ReplaceTable(ruleset) => self.table = Some(Table::Is(ruleset.clone())),
            Step::SetSysctl(key, value) => {
                self.sysctls.insert(key.clone(), value.clone());
            }
            Step::DeleteRoute(route) => was(self.routes.remove(route))?,
            Step::AddRoute(route) => {
                self.link(&route.link)?;
                self.routes.insert(route.clone());
            }
            Step::DeleteNeighbour(link, addr) => {
                was(self.neighbours.remove(&(link.clone(), *addr)).is_some())?;
            }
            Step::SetNeighbour(link, addr, mac) => {
                self.link(link)?;
                self.neighbours.insert((link.clone(), *addr), *mac);
            }
            Step::DeleteFdb(link, mac) => was(self.fdb.remove(&(link.clone(), *mac)).is_some())?,
            Step::SetFdb(link, mac, vtep) => {
                self.link(link)?;
                self.fdb.insert((link.clone(), *mac), *vtep);
            }
            Step::DeleteStation(station) => was(self.stations.remove(station))?,
            Step::SetStation(station) => self.set_station(station)?,
            _ => return self.carry_out_rest(step),
        }
        Ok(())
    }

    fn carry_out_rest(&mut self, step: &Step) -> Result<(), &'static str> {
        match step {
            Step::DeleteAddress(link, address) => {
                was(self.link(link)?.addresses.remove(address))?;
            }
            Step::AddAddress(link, address) => {
                self.link(link)?.addresses.insert(*address);
            }
            Step::SetMac(link, mac) => self.link(link)?.mac = Some(*mac),
            Step::SetMtu(link, mtu) => self.link(link)?.mtu = *mtu,
            Step::SetUp(link, up) => self.link(link)?.up = *up,
            Step::ClearPort(link) => {
                self.link(link)?.port = None;
                self.stations.retain(|station| station.port != *link);
            }
            Step::SetPort(link, port) => {
                self.link(&port.bridge)?;
                self.link(link)?.port = Some(port.clone());
            }
            Step::AddIpvsService(key, scheduler, flags) => {
                self.add_ipvs(*key, scheduler, *flags)?
            }
            Step::DeleteIpvsService(key) => was(self.ipvs.remove(key).is_some())?,
            Step::SetIpvsDestination(key, server, forward) => {
                let service = self.ipvs.get_mut(key).ok_or("no such balancer")?;
                service.destinations.insert(*server, *forward);
            }
            Step::DeleteIpvsDestination(key, server) => {
                let service = self.ipvs.get_mut(key).ok_or("no such balancer")?;
                was(service.destinations.remove(server).is_some())?;
            }
            _ => return Err("not a step within a namespace"),
        }
        Ok(())
    }

    fn link(&mut self, name: &str) -> Result<&mut Link, &'static str> {
        self.links.get_mut(name).ok_or("no such link")
    }

    fn set_station(&mut self, station: &Station) -> Result<(), &'static str> {
        if self.link(&station.port)?.port.is_none() {
            return Err("not a port of a bridge");
        }
        // One place per MAC address and bridge, and of one kind.
        self.stations
            .retain(|other| other.mac != station.mac || other.local && !station.local);
        self.stations.insert(station.clone());
        Ok(())
    }

    fn add_ipvs(&mut self, key: IpvsKey, scheduler: &str, flags: u32) -> Result<(), &'static str> {
        let service = IpvsService {
            scheduler: scheduler.to_owned(),
            flags,
            destinations: BTreeMap::new(),
        };
        let before = self.ipvs.insert(key, service);
        before.map_or(Ok(()), |_| Err("balancer exists"))
    }

    fn forget_link(&mut self, name: &str) {
        self.routes.retain(|route| route.link != name);
        self.neighbours.retain(|(link, _), _| link != name);
        self.fdb.retain(|(link, _), _| link != name);
        let conf = format!("/conf/{name}/");
        self.sysctls.retain(|key, _| !key.contains(&conf));
        let mut freed = vec![name.to_owned()];
        for (port, link) in &mut self.links {
            if link.port.as_ref().is_some_and(|port| port.bridge == name) {
                link.port = None;
                freed.push(port.clone());
            }
        }
        self.stations
            .retain(|station| !freed.contains(&station.port));
    }
}

fn was(there: bool) -> Result<(), &'static str> {
    if there { Ok(()) } else { Err("not there") }
}

fn new_link(kind: LinkKind) -> Link {
    Link {
        kind,
        mac: None,
        mtu: 1_500,
        up: false,
        port: None,
        addresses: BTreeSet::new(),
    }
}
