//! One namespace that is kept open.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "each function carries out the steps it knows and hands on the rest"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, OwnedFd},
};

use skep_core::network::{
    NetOp, Ns, Step,
    ruleset::Ruleset,
    state::{IpvsKey, IpvsService, Namespace, Table},
};

use super::notes::{Notes, Written};
use crate::{
    error::{HostError, Result},
    netlink::{
        failed,
        generation::{self, Generation},
        ipvs::Ipvs,
        monitor::Monitor,
        route::RouteSocket,
        unless,
    },
    netns::{self, Identity},
    nftables, sysctl,
};

/// What is kept open in a namespace, for as long as it is the same one.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) fd: OwnedFd,
    pub(super) identity: Option<Identity>,
    pub(super) route: RouteSocket,
    pub(super) _monitor: Monitor,
    /// What is known of our rules.
    pub(super) written: Option<Written>,
}

/// What a thread inside a namespace sees.
#[derive(Debug)]
pub(super) struct Inside {
    sysctls: BTreeMap<String, String>,
    generation: Generation,
    ipvs: BTreeMap<IpvsKey, IpvsService>,
}

impl Place {
    pub(super) async fn look(&self, ns: &Ns, keys: BTreeSet<String>) -> Result<Inside> {
        // Balancers in the host's namespace are not ours.
        let with_ipvs = *ns != Ns::Host;
        let look = move || {
            let ipvs = if with_ipvs { Ipvs::open()? } else { None };
            Ok(Inside {
                sysctls: keys
                    .into_iter()
                    .filter_map(|key| Some((sysctl::read(&key)?, key)))
                    .map(|(value, key)| (key, value))
                    .collect(),
                generation: generation::read()?,
                ipvs: ipvs
                    .map(|ipvs| ipvs.services())
                    .transpose()?
                    .unwrap_or_default(),
            })
        };
        let looked: io::Result<Inside> = netns::enter_async(self.fd.as_fd(), look).await?;
        looked.map_err(|error| failed("look at", ns, error))
    }

    pub(super) fn fill_in(&self, inside: Inside, namespace: &mut Namespace) {
        namespace.sysctls = inside.sysctls;
        namespace.ipvs = inside.ipvs;
        let written = self.written.as_ref();
        let unchanged = written.filter(|one| one.generation == inside.generation.id);
        let table = unchanged.map_or(Table::Unknown, |one| one.table.clone());
        namespace.table = inside.generation.has_table.then_some(table);
    }

    /// Steps that a thread inside the namespace has to do, one result each.
    pub(super) async fn apply_inside(&self, ops: &[NetOp]) -> Vec<Result<()>> {
        let steps: Vec<Step> = ops.iter().map(|op| op.step.clone()).collect();
        let work = move || {
            let mut ipvs = None;
            let done = steps.iter().map(|step| inside(step, &mut ipvs));
            done.collect::<Vec<_>>()
        };
        match netns::enter_async(self.fd.as_fd(), work).await {
            Ok(results) => results,
            Err(error) => all_failed(ops, &error),
        }
    }

    /// Replaces our table; the count of transactions afterwards, when no other one came in between.
    pub(super) async fn replace_table(&self, op: &NetOp) -> Result<Option<u32>> {
        let Step::ReplaceTable(ruleset) = op.step.clone() else {
            return Ok(None);
        };
        netns::enter_async(self.fd.as_fd(), move || replace_table(&ruleset)).await?
    }

    /// Remembers which rules were written at which count, also for after a restart.
    pub(super) fn note(&mut self, notes: &Notes, op: &NetOp, count: Option<u32>) {
        let Step::ReplaceTable(ruleset) = &op.step else {
            return;
        };
        self.written = count.map(|generation| Written {
            generation,
            table: Table::Is(ruleset.clone()),
        });
        notes.write(
            &op.ns,
            self.identity,
            count.map(|count| (count, ruleset.digest())),
        );
    }

    /// Steps on links and what hangs on them.
    pub(super) async fn entry(
        &self,
        step: &Step,
        indexes: &BTreeMap<String, u32>,
    ) -> io::Result<()> {
        let route = &self.route;
        let index = |name: &str| {
            let index = indexes.get(name).copied();
            index.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
        };
        let done = match step {
            Step::CreateBridge(name) => route.create_bridge(name).await,
            Step::DeleteLink(name) => route.delete_link(name).await,
            Step::SetMac(name, mac) => route.set_mac(name, *mac).await,
            Step::SetMtu(name, mtu) => route.set_mtu(name, *mtu).await,
            Step::SetPort(name, port) => route.set_port(name, index(&port.bridge)?, port).await,
            Step::ClearPort(name) => route.clear_port(name).await,
            Step::SetUp(name, up) => route.set_up(name, *up).await,
            Step::AddAddress(link, address) => route.add_address(index(link)?, *address).await,
            Step::SetNeighbour(link, addr, mac) => {
                route.set_neighbour(index(link)?, *addr, *mac).await
            }
            Step::SetFdb(link, mac, vtep) => route.set_fdb(index(link)?, *mac, *vtep).await,
            Step::SetStation(station) => route.set_station(index(&station.port)?, station).await,
            Step::AddRoute(one) => route.add_route(index(&one.link)?, one).await,
            other => self.remove_entry(other, indexes).await,
        };
        unless(done, already(step))
    }

    async fn remove_entry(&self, step: &Step, indexes: &BTreeMap<String, u32>) -> io::Result<()> {
        let route = &self.route;
        // What hung on a link that is gone is gone too.
        let index = |name: &str| {
            let index = indexes.get(name).copied();
            index.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
        };
        match step {
            Step::DeleteAddress(link, address) => {
                route.delete_address(index(link)?, *address).await
            }
            Step::DeleteNeighbour(link, addr) => route.delete_neighbour(index(link)?, *addr).await,
            Step::DeleteFdb(link, mac) => route.delete_fdb(index(link)?, *mac).await,
            Step::DeleteStation(station) => {
                route.delete_station(index(&station.port)?, station).await
            }
            Step::DeleteRoute(one) => route.delete_route(index(&one.link)?, one).await,
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// Replaces our table; the count of transactions afterwards, when no other one came in between.
fn replace_table(ruleset: &Ruleset) -> Result<Option<u32>> {
    let before = generation::read();
    nftables::replace(ruleset)?;
    let ours = match (before, generation::read()) {
        (Ok(before), Ok(after)) if after.id == before.id.wrapping_add(1) => Some(after.id),
        (Ok(_) | Err(_), _) => None,
    };
    Ok(ours)
}

/// The same failure for each step.
pub(super) fn all_failed(ops: &[NetOp], error: &HostError) -> Vec<Result<()>> {
    let one = |op: &NetOp| {
        let failed = HostError::new(op_name(&op.step), object(&op.step), error.chain());
        Err(if error.temporary {
            failed.temporary()
        } else {
            failed
        })
    };
    ops.iter().map(one).collect()
}

/// A step by the calling thread in its namespace. The IPVS socket is opened by the first that needs it.
fn inside(step: &Step, ipvs: &mut Option<Ipvs>) -> Result<()> {
    match step {
        Step::DeleteTable => nftables::remove(),
        Step::SetSysctl(key, value) => sysctl::write(key, value),
        other => {
            balancer(other, ipvs).map_err(|error| failed(op_name(other), object(other), error))
        }
    }
}

fn balancer(step: &Step, socket: &mut Option<Ipvs>) -> io::Result<()> {
    if socket.is_none() {
        *socket = Ipvs::open()?;
    }
    let ipvs = socket.as_ref();
    let ipvs = ipvs.ok_or_else(|| io::Error::other("this kernel has no IPVS"))?;
    match step {
        Step::AddIpvsService(key, scheduler, flags) => ipvs.add_service(key, scheduler, *flags),
        Step::DeleteIpvsService(key) => ipvs.delete_service(key),
        Step::SetIpvsDestination(key, destination, forward) => {
            ipvs.set_destination(key, destination, *forward)
        }
        Step::DeleteIpvsDestination(key, destination) => ipvs.delete_destination(key, destination),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Steps that need a thread inside the namespace.
pub(super) fn is_inside(step: &Step) -> bool {
    matches!(
        step,
        Step::DeleteTable
            | Step::SetSysctl(..)
            | Step::AddIpvsService(..)
            | Step::DeleteIpvsService(_)
            | Step::SetIpvsDestination(..)
            | Step::DeleteIpvsDestination(..)
    )
}

/// Steps of which any number can be under way at once.
pub(super) fn is_entry(step: &Step) -> bool {
    matches!(
        step,
        Step::SetNeighbour(..)
            | Step::DeleteNeighbour(..)
            | Step::SetFdb(..)
            | Step::DeleteFdb(..)
            | Step::SetStation(_)
            | Step::DeleteStation(_)
            | Step::AddAddress(..)
            | Step::DeleteAddress(..)
    )
}

/// Error numbers that mean that the step was done before.
fn already(step: &Step) -> &'static [i32] {
    match step {
        Step::AddAddress(..) | Step::AddRoute(_) => &[libc::EEXIST],
        Step::DeleteLink(_)
        | Step::DeleteAddress(..)
        | Step::DeleteNeighbour(..)
        | Step::DeleteFdb(..)
        | Step::DeleteStation(_)
        | Step::DeleteRoute(_) => &[libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL],
        _ => &[],
    }
}

pub(super) fn report(op: &NetOp, done: io::Result<()>) -> Result<()> {
    done.map_err(|error| {
        let place = format!("{} in {}", object(&op.step), op.ns);
        let passes = will_pass(&op.step, error.raw_os_error());
        let error = failed(op_name(&op.step), place, error);
        if passes { error.temporary() } else { error }
    })
}

/// Whether the next pass will find things otherwise.
fn will_pass(step: &Step, code: Option<i32>) -> bool {
    match (step, code) {
        // The kernel takes a namespace apart in its own time, and its VXLAN devices last.
        (Step::CreateVxlan(..), Some(libc::EEXIST)) => true,
        // The link went away, or its making failed: the next look says which.
        (_, Some(libc::ENODEV)) => true,
        _ => false,
    }
}

/// What a step does, for errors.
pub(super) fn op_name(step: &Step) -> &'static str {
    match step {
        Step::DeleteTable => "remove nftables table",
        Step::DeleteIpvsDestination(..) => "remove IPVS destination",
        Step::DeleteIpvsService(_) => "remove IPVS service",
        Step::DeleteRoute(_) => "remove route",
        Step::DeleteNeighbour(..) => "remove neighbour",
        Step::DeleteFdb(..) => "remove forwarding entry",
        Step::DeleteStation(_) => "remove bridge entry",
        Step::DeleteAddress(..) => "remove address",
        Step::DeleteLink(_) => "remove link",
        Step::DeleteNamespace => "remove namespace",
        Step::CreateNamespace => "create namespace",
        Step::SetSysctl(..) => "set",
        Step::CreateBridge(_) => "create bridge",
        Step::CreateVxlan(..) => "create VXLAN device",
        Step::CreateVeth(..) => "create pair",
        Step::SetMac(..) => "set MAC address of",
        Step::SetMtu(..) => "set MTU of",
        Step::SetPort(..) => "make a port of its bridge",
        Step::ClearPort(_) => "take out of its bridge",
        Step::AddAddress(..) => "add address",
        Step::SetUp(..) => "switch",
        Step::SetNeighbour(..) => "set neighbour",
        Step::SetFdb(..) => "set forwarding entry",
        Step::SetStation(_) => "set bridge entry",
        Step::AddRoute(_) => "add route",
        Step::AddIpvsService(..) => "add IPVS service",
        Step::SetIpvsDestination(..) => "set IPVS destination",
        Step::ReplaceTable(_) => "replace nftables table",
    }
}

/// What a step is about, for errors.
fn object(step: &Step) -> String {
    match step {
        Step::DeleteTable
        | Step::ReplaceTable(_)
        | Step::DeleteNamespace
        | Step::CreateNamespace => String::new(),
        Step::DeleteIpvsDestination(key, destination)
        | Step::SetIpvsDestination(key, destination, _) => {
            format!("{}:{} of {key:?}", destination.addr, destination.port)
        }
        Step::DeleteIpvsService(key) | Step::AddIpvsService(key, ..) => format!("{key:?}"),
        Step::DeleteRoute(route) | Step::AddRoute(route) => {
            format!("{} by {}", route.destination, route.link)
        }
        Step::DeleteNeighbour(link, addr) | Step::SetNeighbour(link, addr, _) => {
            format!("{addr} on {link}")
        }
        Step::DeleteFdb(link, mac) | Step::SetFdb(link, mac, _) => format!("{mac} on {link}"),
        Step::DeleteStation(station) | Step::SetStation(station) => {
            format!("{} behind {}", station.mac, station.port)
        }
        Step::DeleteAddress(link, address) | Step::AddAddress(link, address) => {
            format!("{address} on {link}")
        }
        Step::SetSysctl(key, value) => format!("{key} to {value}"),
        Step::DeleteLink(name)
        | Step::CreateBridge(name)
        | Step::CreateVxlan(name, _)
        | Step::CreateVeth(name, _)
        | Step::SetMac(name, _)
        | Step::SetMtu(name, _)
        | Step::SetPort(name, _)
        | Step::ClearPort(name) => name.clone(),
        Step::SetUp(name, up) => format!("{name} {}", if *up { "on" } else { "off" }),
    }
}
