//! A machine: a namespace that stands for a host's, with a directory for those of its containers.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use skep_core::network::{
    NetOp, NetState, Ns, Scope, Step, desired, example::Example, plan, state::IpvsKey,
};
use skep_host::{
    netlink::ipvs::Ipvs,
    netns::{self, Namespaces},
    network::NetHost,
};

/// Turns that a repair may take: the kernel does things of its own after some steps.
const MAX_TURNS: usize = 5;

pub(crate) struct Machine {
    pub(crate) net: NetHost,
    directory: PathBuf,
    hosts: Namespaces,
    name: String,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let inside = Namespaces::new(&self.directory);
        for name in inside.list().unwrap_or_default() {
            inside.delete(&name).unwrap();
        }
        self.hosts.delete(&self.name).unwrap();
        fs::remove_dir_all(&self.directory).unwrap();
        let _ = fs::remove_dir_all(self.directory.with_extension("rules"));
    }
}

/// Whether the tests may run; says it when not.
pub(crate) fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root (network namespaces)");
    }
    root
}

/// Whether this kernel has IPVS; says it when not.
pub(crate) fn ipvs() -> bool {
    let there = Ipvs::open().unwrap().is_some();
    if !there {
        eprintln!("SKIPPED: this kernel has no IPVS");
    }
    there
}

impl Machine {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("m{}-{number}", std::process::id());
        let base = std::env::temp_dir().join("skep-netns");
        let hosts = Namespaces::new(base.join("hosts"));
        hosts.create(&name).unwrap();
        let directory = base.join(&name);
        fs::create_dir_all(&directory).unwrap();
        let machine = Self {
            net: NetHost::at(hosts.open(&name).unwrap(), &directory),
            directory,
            hosts,
            name,
        };
        machine.run(&Ns::Host, "ip link set lo up");
        machine
    }

    /// Runs a command line in a namespace and returns what it prints; it must succeed.
    pub(crate) fn run(&self, ns: &Ns, line: &str) -> String {
        let (ok, text) = self.try_run(ns, line);
        assert!(ok, "{line} in {ns}: {text}");
        text
    }

    /// The same, with whether it succeeded.
    pub(crate) fn try_run(&self, ns: &Ns, line: &str) -> (bool, String) {
        let fd = self.net.open(ns).unwrap();
        let run = || Command::new("sh").args(["-c", line]).output();
        let output = netns::enter(fd.as_fd(), run).unwrap().unwrap();
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Makes the machine look as it must; returns what it took.
    pub(crate) async fn converge(&self, example: &Example) -> Vec<NetOp> {
        let want = possible(desired(&example.inputs()));
        let mut all = Vec::new();
        for _ in 0..MAX_TURNS {
            let seen = self.net.observe(&Scope::all(&want)).await.unwrap();
            let ops = plan(&want, &seen);
            if ops.is_empty() {
                return all;
            }
            for (op, result) in ops.iter().zip(self.net.apply(&ops).await) {
                match result {
                    Err(error) if !error.temporary => panic!("{op:?}: {}", error.chain()),
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Ok(()) => {}
                }
            }
            all.extend(ops);
        }
        let seen = self.net.observe(&Scope::all(&want)).await.unwrap();
        panic!("still to do: {:#?}", plan(&want, &seen));
    }

    /// The same machine with skepd started anew.
    pub(crate) fn restarted(mut self) -> Self {
        self.net = NetHost::at(self.hosts.open(&self.name).unwrap(), &self.directory);
        self
    }

    /// Makes a namespace behind the node's back.
    pub(crate) fn create(&self, name: &str) {
        Namespaces::new(&self.directory).create(name).unwrap();
    }

    /// Whether the namespace that is held has its place again.
    pub(crate) fn restore(&self, ns: &Ns, held: &OwnedFd) -> bool {
        let Ns::Named(name) = ns else { panic!("{ns}") };
        let namespaces = Namespaces::new(&self.directory);
        namespaces.restore(name, held.as_fd()).unwrap()
    }

    /// Takes a namespace away behind the node's back.
    pub(crate) fn unmount(&self, ns: &Ns) {
        let Ns::Named(name) = ns else { panic!("{ns}") };
        Namespaces::new(&self.directory).delete(name).unwrap();
    }

    pub(crate) async fn observe(&self, example: &Example) -> NetState {
        let want = possible(desired(&example.inputs()));
        self.net.observe(&Scope::all(&want)).await.unwrap()
    }
}

/// A wire between machines, which is a machine itself.
pub(crate) struct Wire {
    switch: Machine,
    ends: AtomicU32,
}

impl Wire {
    pub(crate) fn new() -> Self {
        let switch = Machine::new();
        switch.run(
            &Ns::Host,
            "ip link add wire type bridge && ip link set wire up",
        );
        Self {
            switch,
            ends: AtomicU32::new(0),
        }
    }

    /// Gives a machine `eth0` on the wire with this address.
    pub(crate) fn plug(&self, machine: &Machine, addr: IpAddr) {
        let end = self.ends.fetch_add(1, Ordering::Relaxed);
        let other = machine.hosts.path(&machine.name).unwrap();
        let other = other.display();
        let line = format!(
            "ip link add w{end} type veth peer name x{end} && ip link set x{end} netns {other} && \
             ip link set w{end} master wire up"
        );
        self.switch.run(&Ns::Host, &line);
        let line = format!(
            "ip link set x{end} name eth0 && ip addr add {addr}/24 dev eth0 && ip link set eth0 up"
        );
        machine.run(&Ns::Host, &line);
    }
}

/// What this kernel can do of a state: settings that only the first namespace has are left out, and
/// what needs IPVS where there is none.
pub(crate) fn possible(mut state: NetState) -> NetState {
    let ipvs = Ipvs::open().unwrap().is_some();
    for namespace in state.namespaces.values_mut() {
        namespace
            .sysctls
            .retain(|key, _| !key.starts_with("net/ipv4/neigh/"));
        if !ipvs {
            namespace
                .sysctls
                .retain(|key, _| !key.starts_with("net/ipv4/vs/"));
            namespace.ipvs = BTreeMap::<IpvsKey, _>::new();
        }
    }
    state
}

pub(crate) fn count(ops: &[NetOp], of: impl Fn(&Step) -> bool) -> usize {
    ops.iter().filter(|op| of(&op.step)).count()
}
