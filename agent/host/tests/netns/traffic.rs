//! Packets: what reaches whom, and as whom.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use skep_core::network::{
    Ns,
    desired::sandbox_ns,
    example::{self, Example, id, ingress, my_demo},
};
use skep_host::netns;

use crate::machine::{Machine, Wire, ipvs, root};

const PATIENCE: Duration = Duration::from_secs(3);
/// How long a refusal is waited for: long enough for a slow guest, short enough to be run often.
const REFUSAL: Duration = Duration::from_millis(700);
const TARGET: u16 = 80;

/// The three nodes of the articles on one wire, with servers in the whoami tasks.
struct Swarm {
    nodes: Vec<(Machine, Example)>,
    wire: Wire,
}

impl Swarm {
    /// `change` may turn the articles' mesh into another.
    async fn new(change: impl Fn(&mut Example)) -> Self {
        let wire = Wire::new();
        let mut nodes = Vec::new();
        for index in 0..3 {
            let mut example = example::whoami(index);
            change(&mut example);
            let machine = Machine::new();
            wire.plug(&machine, example.node.vtep);
            machine.converge(&example).await;
            nodes.push((machine, example));
        }
        let swarm = Self { nodes, wire };
        for index in 0..3 {
            if let Some(ns) = swarm.sandbox(index, 0) {
                serve(&swarm.nodes[index].0, &ns, TARGET, &format!("task{index}"));
            }
        }
        swarm
    }

    fn machine(&self, node: usize) -> &Machine {
        &self.nodes[node].0
    }

    fn sandbox(&self, node: usize, number: usize) -> Option<Ns> {
        self.nodes[node]
            .1
            .sandboxes
            .values()
            .nth(number)
            .map(sandbox_ns)
    }

    fn client(&self) -> (&Machine, Ns) {
        (self.machine(0), self.sandbox(0, 1).unwrap())
    }
}

/// Serves TCP and UDP in a namespace: who it is and whom it sees.
fn serve(machine: &Machine, ns: &Ns, port: u16, name: &str) {
    let fd = machine.net.open(ns).unwrap();
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let bind = || io::Result::Ok((TcpListener::bind(address)?, UdpSocket::bind(address)?));
    let (tcp, udp) = netns::enter(fd.as_fd(), bind).unwrap().unwrap();
    let who = name.to_owned();
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip();
            // The other side may have hung up.
            let _ = write!(stream, "{who} {peer}");
        }
    });
    let who = name.to_owned();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{who} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

/// Calls a server; what it says.
fn call(machine: &Machine, ns: &Ns, to: (Ipv4Addr, u16), wait: Duration) -> io::Result<String> {
    let fd = machine.net.open(ns).unwrap();
    let connect = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(to), wait)?;
        stream.set_read_timeout(Some(wait))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    netns::enter(fd.as_fd(), connect).unwrap()
}

fn call_udp(machine: &Machine, ns: &Ns, to: (Ipv4Addr, u16)) -> io::Result<String> {
    ask(machine, ns, to, b"?")
}

/// Sends a datagram that must not be cut into pieces; the answer.
fn ask(machine: &Machine, ns: &Ns, to: (Ipv4Addr, u16), what: &[u8]) -> io::Result<String> {
    let fd = machine.net.open(ns).unwrap();
    let ask = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        never_fragment(&socket)?;
        socket.connect(to)?;
        socket.send(what)?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    netns::enter(fd.as_fd(), ask).unwrap()
}

fn never_fragment(socket: &UdpSocket) -> io::Result<()> {
    let value = libc::IP_PMTUDISC_DO;
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap();
    // SAFETY: the pointer and the length are those of `value`, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            length,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether an echo comes back. It needs no capability, as in a container.
fn ping(machine: &Machine, ns: &Ns, to: Ipv4Addr) -> bool {
    let fd = machine.net.open(ns).unwrap();
    let echo = || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            flags,
            SockProtocol::Icmp,
        )?;
        let socket = UdpSocket::from(fd);
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect((to, 0))?;
        // Type 8, code 0; the kernel fills in checksum and identifier.
        socket.send(&[8, 0, 0, 0, 0, 0, 0, 1, b'?'])?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        io::Result::Ok(length == 9 && buffer[0] == 0)
    };
    netns::enter(fd.as_fd(), echo).unwrap().unwrap_or(false)
}

/// How often each server answers `times` calls, and the set of addresses they saw.
fn census(
    machine: &Machine,
    ns: &Ns,
    to: (Ipv4Addr, u16),
    times: usize,
) -> (BTreeMap<String, usize>, Vec<String>) {
    let mut servers = BTreeMap::new();
    let mut seen = Vec::new();
    for _ in 0..times {
        let said = call(machine, ns, to, PATIENCE).unwrap();
        let (server, peer) = said.split_once(' ').unwrap();
        *servers.entry(server.to_owned()).or_default() += 1;
        seen.push(peer.to_owned());
    }
    seen.sort();
    seen.dedup();
    (servers, seen)
}

fn demo(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

fn v4(addr: IpAddr) -> Ipv4Addr {
    match addr {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(addr) => panic!("{addr}"),
    }
}

const EVERY_TASK_TWICE: [(&str, usize); 3] = [("task0", 2), ("task1", 2), ("task2", 2)];

fn twice_each(servers: &BTreeMap<String, usize>) {
    let servers: Vec<_> = servers
        .iter()
        .map(|(name, times)| (name.as_str(), *times))
        .collect();
    assert_eq!(servers, EVERY_TASK_TWICE);
}

/// One swarm for all of these: it takes longer to make than to try. Later checks may disturb what
/// earlier ones need.
#[tokio::test]
async fn overlays_join_and_part() {
    if !root() {
        return;
    }
    let swarm = Swarm::new(|_| {}).await;
    containers_of_one_overlay_reach_each_other_across_nodes(&swarm);
    an_overlay_is_vxlan_on_the_wire(&swarm);
    different_overlays_do_not_reach_each_other(&swarm);
    a_container_goes_out_as_its_node_and_the_host_is_shut(&swarm);
    only_members_may_send_vxlan(&swarm);
}

fn containers_of_one_overlay_reach_each_other_across_nodes(swarm: &Swarm) {
    let (machine, client) = swarm.client();
    for (last, task) in [(6, "task0"), (7, "task1"), (8, "task2")] {
        let to = (demo(last), TARGET);
        let said = call(machine, &client, to, PATIENCE).unwrap();
        assert_eq!(said, format!("{task} 10.0.1.3"));
        assert_eq!(call_udp(machine, &client, to).unwrap(), said);
        assert!(ping(machine, &client, demo(last)), "{last}");
    }
    assert!(!ping(machine, &client, demo(99)), "nobody is there");
    // 1450 bytes pass in one piece, 28 of them headers; the wire carries no more.
    let whole = [b'x'; 1422];
    assert_eq!(
        ask(machine, &client, (demo(7), TARGET), &whole).unwrap(),
        "task1 10.0.1.3"
    );
    let error = ask(machine, &client, (demo(7), TARGET), &[b'x'; 1423]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
}

fn an_overlay_is_vxlan_on_the_wire(swarm: &Swarm) {
    let (machine, client) = swarm.client();
    let other = swarm.machine(1);
    other.run(
        &Ns::Host,
        "nft 'add table ip probe; add chain ip probe in { type filter hook input priority -300; }; \
         add rule ip probe in udp dport 4789 counter; add rule ip probe in udp dport != 4789 counter; \
         add rule ip probe in tcp dport 1-65535 counter'",
    );
    call(machine, &client, (demo(7), TARGET), PATIENCE).unwrap();
    let rules = other.run(&Ns::Host, "nft list table ip probe");
    let counts: Vec<u64> = rules
        .lines()
        .filter_map(|line| {
            line.split_once("packets ")?
                .1
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    assert!(counts[0] >= 5, "a handshake, data and an end: {rules}");
    assert_eq!(counts[1..], [0, 0], "{rules}");
}

fn different_overlays_do_not_reach_each_other(swarm: &Swarm) {
    let (machine, client) = swarm.client();
    // The client is not on the ingress network, where the tasks are too.
    for to in [Ipv4Addr::new(10, 255, 0, 6), Ipv4Addr::new(10, 255, 0, 7)] {
        for port in [TARGET, 8000] {
            assert!(
                call(machine, &client, (to, port), REFUSAL).is_err(),
                "{to}:{port}"
            );
        }
    }
    // Nor does the gateway bridge join containers (no inter-container traffic).
    let other = Ipv4Addr::new(172, 18, 0, 3);
    assert!(call(machine, &client, (other, TARGET), REFUSAL).is_err());
    machine.run(
        &client,
        "ip route add 172.18.0.3/32 via 172.18.0.1 dev eth1",
    );
    assert!(
        call(machine, &client, (other, TARGET), REFUSAL).is_err(),
        "by way of the host"
    );
}

fn a_container_goes_out_as_its_node_and_the_host_is_shut(swarm: &Swarm) {
    let (machine, client) = swarm.client();
    let outside = Machine::new();
    let address = Ipv4Addr::new(192, 168, 77, 99);
    swarm.wire.plug(&outside, IpAddr::V4(address));
    serve(&outside, &Ns::Host, 9000, "outside");
    let said = call(machine, &client, (address, 9000), PATIENCE).unwrap();
    assert_eq!(said, "outside 192.168.77.11");
    // What listens at the host's 127.0.0.1 is not for containers, whatever route they make.
    serve(machine, &Ns::Host, 9001, "host");
    let local = Ipv4Addr::new(127, 0, 0, 5);
    machine.run(&client, "sysctl -q -w net.ipv4.conf.all.route_localnet=1");
    machine.run(&client, "ip route add 127.0.0.5/32 via 172.18.0.1 dev eth1 src 172.18.0.4 && ip route del table local 127.0.0.0/8 dev lo");
    assert!(call(machine, &client, (local, 9001), REFUSAL).is_err());
    // From outside nothing is routed to containers.
    outside.run(&Ns::Host, "ip route add 172.18.0.0/16 via 192.168.77.11");
    let task = Ipv4Addr::new(172, 18, 0, 3);
    assert!(call(&outside, &Ns::Host, (task, TARGET), REFUSAL).is_err());
}

fn only_members_may_send_vxlan(swarm: &Swarm) {
    let (machine, client) = swarm.client();
    // A stranger on the segment makes a device of the same network and knows every address.
    let stranger = Machine::new();
    swarm.wire.plug(&stranger, "192.168.77.66".parse().unwrap());
    stranger.run(
        &Ns::Host,
        "ip link add v type vxlan id 4097 local 192.168.77.66 remote 192.168.77.11 dstport 4789 && \
         ip addr add 10.0.1.77/24 dev v && ip link set v up && \
         ip neigh replace 10.0.1.3 lladdr 02:42:0a:00:01:03 dev v",
    );
    machine.run(
        &client,
        "nft 'add table ip probe; add chain ip probe in { type filter hook prerouting priority -300; }; \
         add rule ip probe in ip saddr 10.0.1.77 counter'",
    );
    stranger.run(
        &Ns::Host,
        "sysctl -q -w net.ipv4.ping_group_range='0 100000'",
    );
    assert!(!ping(&stranger, &Ns::Host, demo(3)));
    let rules = machine.run(&client, "nft list table ip probe");
    assert!(
        rules.contains("packets 0"),
        "its packets came through: {rules}"
    );
}

#[tokio::test]
async fn the_mesh_balances() {
    if !root() || !ipvs() {
        return;
    }
    let swarm = Swarm::new(|_| {}).await;
    a_virtual_address_is_balanced_in_the_clients_namespace(&swarm);
    a_task_may_call_its_own_service(&swarm);
    a_published_port_answers_on_every_node(&swarm);
    nothing_but_the_target_port_is_open_on_the_ingress_network(&swarm);
}

fn a_virtual_address_is_balanced_in_the_clients_namespace(swarm: &Swarm) {
    let (machine, client) = swarm.client();
    let (servers, seen) = census(machine, &client, (demo(5), TARGET), 6);
    twice_each(&servers);
    assert_eq!(seen, ["10.0.1.3"], "the task sees the client's own address");
    let listed = machine.run(&client, "ipvsadm -ln");
    assert!(listed.contains("FWM  257 rr"), "{listed}");
    for _ in 0..3 {
        call_udp(machine, &client, (demo(5), TARGET)).unwrap();
    }
    assert!(ping(machine, &client, demo(5)));
}

fn a_task_may_call_its_own_service(swarm: &Swarm) {
    for node in 0..3 {
        let ns = swarm.sandbox(node, 0).unwrap();
        let (servers, _) = census(swarm.machine(node), &ns, (demo(5), TARGET), 6);
        twice_each(&servers);
        for _ in 0..3 {
            call_udp(swarm.machine(node), &ns, (demo(5), TARGET)).unwrap();
        }
    }
}

fn a_published_port_answers_on_every_node(swarm: &Swarm) {
    let outside = Machine::new();
    swarm.wire.plug(&outside, "192.168.77.99".parse().unwrap());
    for (machine, example) in &swarm.nodes {
        let vtep = v4(example.node.vtep);
        for (from, to) in [
            (&outside, vtep),
            (machine, vtep),
            (machine, Ipv4Addr::LOCALHOST),
        ] {
            let (servers, _) = census(from, &Ns::Host, (to, 8000), 6);
            twice_each(&servers);
        }
    }
    let ns = Ns::Named("ingress_sbox".to_owned());
    let listed = swarm.machine(0).run(&ns, "ipvsadm -ln");
    assert!(listed.contains("FWM  256 rr"), "{listed}");
    assert_eq!(listed.matches("Masq    1").count(), 3, "{listed}");
    // A container calls its own node's published port, and another's.
    let (machine, client) = swarm.client();
    for node in [11, 12] {
        let to = (Ipv4Addr::new(192, 168, 77, node), 8000);
        twice_each(&census(machine, &client, to, 6).0);
    }
}

fn nothing_but_the_target_port_is_open_on_the_ingress_network(swarm: &Swarm) {
    let task = swarm.sandbox(0, 0).unwrap();
    serve(swarm.machine(0), &task, 7777, "private");
    let neighbour = swarm.sandbox(1, 0).unwrap();
    let address = Ipv4Addr::new(10, 255, 0, 6);
    let try_port = |port| call(swarm.machine(1), &neighbour, (address, port), REFUSAL);
    assert!(try_port(7777).is_err());
    assert_eq!(try_port(8000).unwrap(), "task0 10.255.0.7");
    // On the overlay of its own it is.
    let said = call(swarm.machine(1), &neighbour, (demo(6), 7777), PATIENCE).unwrap();
    assert_eq!(said, "private 10.0.1.7");
}

#[tokio::test]
async fn an_internal_network_ends_at_itself() {
    if !root() {
        return;
    }
    let internal = |example: &mut Example| {
        example.mesh.networks.get_mut(&my_demo()).unwrap().internal = true;
    };
    let swarm = Swarm::new(internal).await;
    let (machine, client) = swarm.client();
    call(machine, &client, (demo(7), TARGET), PATIENCE).unwrap();
    let node = Ipv4Addr::new(192, 168, 77, 11);
    let error = call(machine, &client, (node, 9001), REFUSAL).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
}

#[tokio::test]
async fn a_node_without_a_replica_answers_and_one_that_is_gone_gets_nothing() {
    if !root() || !ipvs() {
        return;
    }
    let empty = |example: &mut Example| {
        for network in [ingress(), my_demo()] {
            let network = example.mesh.networks.get_mut(&network).unwrap();
            network.endpoints.remove(&id(102));
        }
        example
            .sandboxes
            .retain(|_, sandbox| sandbox.task_id != Some(id(102)));
    };
    let mut swarm = Swarm::new(empty).await;
    let vtep = Ipv4Addr::new(192, 168, 77, 13);
    let (servers, _) = census(swarm.machine(1), &Ns::Host, (vtep, 8000), 4);
    assert_eq!(servers.values().copied().collect::<Vec<_>>(), [2, 2]);
    // Suspicion: nothing new goes to node 1.
    let (machine, example) = &mut swarm.nodes[2];
    example.mesh.nodes.get_mut(&id(1)).unwrap().alive = false;
    machine.converge(example).await;
    let (servers, _) = census(machine, &Ns::Host, (vtep, 8000), 4);
    assert_eq!(
        servers.into_iter().collect::<Vec<_>>(),
        [("task0".to_owned(), 4)]
    );
}
