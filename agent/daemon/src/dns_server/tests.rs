//! Questions over real sockets, answered from the articles' mesh.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use proptest::prelude::*;
use skep_core::{
    network::{MeshMap, example},
    node::Names,
    rng::Rng,
};
use skep_host::{netns::Namespaces, systemd::ServiceManager};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket as AsyncUdpSocket},
    time::timeout,
};

use super::{
    DnsServers, TCP_PREFIX, UDP_PREFIX,
    reply::{Reply, Transport, reply},
};

fn names() -> Names {
    let example = example::whoami(0);
    Names {
        mesh: Arc::new(example.mesh),
        sandboxes: Arc::new(example.sandboxes),
        node: example.node,
    }
}

fn sandbox(names: &Names) -> String {
    names
        .sandboxes
        .values()
        .next()
        .unwrap()
        .short_id()
        .to_owned()
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn addresses(message: &Message) -> BTreeSet<Ipv4Addr> {
    let address = |data: &RData| {
        if let RData::A(address) = data {
            Some(address.0)
        } else {
            None
        }
    };
    message
        .answers
        .iter()
        .filter_map(|record| address(&record.data))
        .collect()
}

fn ask(names: &Names, packet: &[u8], transport: Transport) -> Message {
    match reply(
        names,
        &sandbox(names),
        packet,
        transport,
        &mut Rng::seeded(1),
    ) {
        Reply::Bytes(bytes) => Message::from_vec(&bytes).unwrap(),
        other @ (Reply::Forward | Reply::Silence) => panic!("{other:?}"),
    }
}

#[test]
fn a_service_is_its_virtual_address_and_its_tasks_are_theirs() {
    let names = names();
    let vip = ask(&names, &question("whoami.", RecordType::A), Transport::Udp);
    assert_eq!(
        addresses(&vip),
        BTreeSet::from([Ipv4Addr::new(10, 0, 1, 5)])
    );
    assert_eq!((vip.metadata.id, vip.answers[0].ttl), (77, 1));
    assert!(vip.metadata.recursion_available);
    let tasks = ask(
        &names,
        &question("tasks.whoami.", RecordType::A),
        Transport::Udp,
    );
    assert_eq!(addresses(&tasks).len(), 3);
    let none = ask(
        &names,
        &question("whoami.", RecordType::AAAA),
        Transport::Udp,
    );
    assert_eq!(
        (none.metadata.response_code, none.answers.len()),
        (ResponseCode::NoError, 0)
    );
    let back = ask(
        &names,
        &question("5.1.0.10.in-addr.arpa.", RecordType::PTR),
        Transport::Udp,
    );
    assert_eq!(back.answers[0].data.to_string(), "whoami.my-demo.");
}

#[test]
fn names_of_others_go_to_the_nodes_servers() {
    let names = names();
    let packet = question("example.org.", RecordType::MX);
    let verdict = reply(
        &names,
        &sandbox(&names),
        &packet,
        Transport::Udp,
        &mut Rng::seeded(1),
    );
    assert_eq!(verdict, Reply::Forward);
}

/// `count` tasks of whoami.
fn crowd(count: u8) -> Names {
    let mut names = names();
    let mut mesh = MeshMap::clone(&names.mesh);
    let network = mesh.networks.get_mut(&example::my_demo()).unwrap();
    let one = network.endpoints[&example::id(100)].clone();
    for number in 0..count {
        let mut other = one.clone();
        other.address = Ipv4Addr::new(10, 0, 1, 20 + number);
        network
            .endpoints
            .insert(example::id(200 + u128::from(number)), other);
    }
    names.mesh = Arc::new(mesh);
    names
}

#[test]
fn an_answer_that_is_too_long_is_cut_and_says_so() {
    let names = crowd(100);
    let packet = question("tasks.whoami.", RecordType::A);
    let cut = ask(&names, &packet, Transport::Udp);
    assert!(cut.metadata.truncation && !cut.answers.is_empty());
    assert!(cut.to_vec().unwrap().len() <= 512);
    let whole = ask(&names, &packet, Transport::Tcp);
    assert_eq!(
        (whole.metadata.truncation, addresses(&whole).len()),
        (false, 103)
    );
}

#[test]
fn what_is_no_question_is_refused_or_ignored() {
    let names = names();
    let decide = |packet: &[u8]| {
        reply(
            &names,
            &sandbox(&names),
            packet,
            Transport::Udp,
            &mut Rng::seeded(1),
        )
    };
    let code = |packet: &[u8]| match decide(packet) {
        Reply::Bytes(bytes) => Message::from_vec(&bytes).unwrap().metadata.response_code,
        other @ (Reply::Forward | Reply::Silence) => panic!("{other:?}"),
    };
    let good = question("whoami.", RecordType::A);
    assert_eq!(code(&good[..good.len() - 1]), ResponseCode::FormErr);
    let mut update = good.clone();
    update[2] |= 5 << 3;
    assert_eq!(code(&update), ResponseCode::NotImp);
    let mut answer = good.clone();
    answer[2] |= 0x80;
    assert_eq!(decide(&answer), Reply::Silence);
    assert_eq!(decide(&good[..5]), Reply::Silence);
    let mut chaos = good;
    let last = chaos.len() - 1;
    chaos[last] = 3;
    assert_eq!(code(&chaos), ResponseCode::NotImp);
}

proptest! {
    #[test]
    fn hostile_packets_get_an_answer_of_theirs_or_none(packet in prop::collection::vec(any::<u8>(), 0..120)) {
        if let Reply::Bytes(bytes) = reply(&names(), "00000000006e", &packet, Transport::Udp, &mut Rng::seeded(1)) {
            prop_assert_eq!(&bytes[..2], &packet[..2]);
            prop_assert!(bytes[2] & 0x80 != 0, "it is an answer");
            prop_assert!(bytes.len() <= 512);
        }
    }

    #[test]
    fn damaged_questions_too(at in 0..30usize, byte in any::<u8>()) {
        let mut packet = question("tasks.whoami.my-demo.", RecordType::A);
        let at = at % packet.len();
        packet[at] = byte;
        let names = crowd(60);
        if let Reply::Bytes(bytes) = reply(&names, &sandbox(&names), &packet, Transport::Udp, &mut Rng::seeded(1)) {
            prop_assert!(bytes.len() <= 1400);
        }
    }
}

fn sockets() -> (UdpSocket, TcpListener, SocketAddr, SocketAddr) {
    let (udp, tcp) = (
        UdpSocket::bind("127.0.0.1:0").unwrap(),
        TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    udp.set_nonblocking(true).unwrap();
    tcp.set_nonblocking(true).unwrap();
    let addresses = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    (udp, tcp, addresses.0, addresses.1)
}

fn servers(stored: Vec<(String, OwnedFd)>) -> DnsServers {
    let manager = Arc::new(ServiceManager::connect(None).unwrap());
    DnsServers::new(Namespaces::new("/nonexistent"), manager, stored, 7)
}

fn stored(sandbox: &str, udp: &UdpSocket, tcp: &TcpListener) -> Vec<(String, OwnedFd)> {
    let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    vec![
        (format!("{UDP_PREFIX}{sandbox}"), copy(udp.as_fd())),
        (format!("{TCP_PREFIX}{sandbox}"), copy(tcp.as_fd())),
        ("dns-udp-alone".to_owned(), copy(udp.as_fd())),
    ]
}

async fn ask_udp(server: SocketAddr, packet: &[u8]) -> Message {
    let socket = AsyncUdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(packet, server).await.unwrap();
    let mut buffer = [0; 1500];
    let received = timeout(Duration::from_secs(10), socket.recv(&mut buffer))
        .await
        .unwrap();
    Message::from_vec(&buffer[..received.unwrap()]).unwrap()
}

async fn ask_tcp(stream: &mut TcpStream, packet: &[u8]) -> Message {
    stream
        .write_u16(u16::try_from(packet.len()).unwrap())
        .await
        .unwrap();
    stream.write_all(packet).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

/// A restart of skepd as clients see it: questions wait in the sockets that systemd kept.
#[tokio::test]
async fn a_question_asked_while_nobody_serves_is_answered_afterwards() {
    let (udp, tcp, udp_address, tcp_address) = sockets();
    let names = names();
    let packet = question("whoami.", RecordType::A);
    let servers = servers(stored(&sandbox(&names), &udp, &tcp));
    drop((udp, tcp));
    let early = tokio::spawn({
        let packet = packet.clone();
        async move { ask_udp(udp_address, &packet).await }
    });
    let mut stream = TcpStream::connect(tcp_address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!early.is_finished());
    servers.publish(names);
    assert_eq!(addresses(&early.await.unwrap()).len(), 1);
    for _ in 0..2 {
        assert_eq!(addresses(&ask_tcp(&mut stream, &packet).await).len(), 1);
    }
}

#[tokio::test]
async fn the_server_of_a_sandbox_that_is_gone_is_closed() {
    let (udp, tcp, _, tcp_address) = sockets();
    let mut names = names();
    let servers = servers(stored(&sandbox(&names), &udp, &tcp));
    drop((udp, tcp));
    servers.publish(names.clone());
    TcpStream::connect(tcp_address).await.unwrap();
    names.sandboxes = Arc::default();
    servers.publish(names);
    let mut refused = false;
    for _ in 0..100 {
        refused |= TcpStream::connect(tcp_address).await.is_err();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(refused);
}

#[tokio::test]
async fn without_a_server_that_answers_a_foreign_name_fails_and_says_so() {
    let (udp, tcp, udp_address, _) = sockets();
    let mut names = names();
    names.node.name_servers.clear();
    let servers = servers(stored(&sandbox(&names), &udp, &tcp));
    servers.publish(names);
    let answer = ask_udp(udp_address, &question("example.org.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}
