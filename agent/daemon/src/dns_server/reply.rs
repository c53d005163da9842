//! From the bytes of a question to the bytes of an answer, or to the verdict that somebody else must answer.

use std::net::Ipv4Addr;

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata},
};
use skep_core::{
    network::{
        Inputs,
        dns::{self, Answer, TTL},
    },
    node::Names,
    rng::Rng,
};

/// The longest answer by UDP to a client that does not ask for more (RFC 1035).
const PLAIN_UDP: u16 = 512;
/// The longest answer by UDP at all: what fits an Ethernet frame (RFC 9715 calls 1400 safe).
const MAX_UDP: u16 = 1400;
/// Bytes of a header.
const HEADER: usize = 12;

/// How the question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What to do about a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Send these bytes.
    Bytes(Vec<u8>),
    /// Ask the node's name servers, and send [`failure`] if none answers.
    Forward,
    /// Say nothing: it is not a question.
    Silence,
}

/// Answers a question that came from the sandbox whose namespace has that name.
pub(super) fn reply(
    names: &Names,
    sandbox: &str,
    packet: &[u8],
    transport: Transport,
    rng: &mut Rng,
) -> Reply {
    let Ok(request) = Message::from_vec(packet) else {
        return refuse(packet, ResponseCode::FormErr);
    };
    if request.metadata.message_type != MessageType::Query {
        return Reply::Silence;
    }
    if request.metadata.op_code != OpCode::Query {
        return refuse(packet, ResponseCode::NotImp);
    }
    let [query] = request.queries.as_slice() else {
        return refuse(packet, ResponseCode::FormErr);
    };
    if query.query_class() != DNSClass::IN {
        return refuse(packet, ResponseCode::NotImp);
    }
    let Some(sandbox) = names
        .sandboxes
        .values()
        .find(|known| known.short_id() == sandbox)
    else {
        return refuse(packet, ResponseCode::ServFail);
    };
    let inputs = Inputs {
        mesh: &names.mesh,
        node: &names.node,
        sandboxes: &names.sandboxes,
    };
    let kind = kind_of(query.query_type());
    let answer = dns::answer(&inputs, sandbox, &query.name().to_ascii(), kind, rng);
    match answer {
        Answer::Forward => Reply::Forward,
        Answer::Addresses(addresses) => send(
            &request,
            ResponseCode::NoError,
            addresses_of(query, &addresses),
            transport,
        ),
        Answer::Name(name) => send(
            &request,
            ResponseCode::NoError,
            name_of(query, &name),
            transport,
        ),
        Answer::NoData => send(&request, ResponseCode::NoError, Vec::new(), transport),
        Answer::NoName => send(&request, ResponseCode::NXDomain, Vec::new(), transport),
    }
}

fn kind_of(record: RecordType) -> dns::RecordType {
    if record == RecordType::A {
        dns::RecordType::A
    } else if record == RecordType::PTR {
        dns::RecordType::Ptr
    } else {
        dns::RecordType::Other
    }
}

fn addresses_of(query: &Query, addresses: &[Ipv4Addr]) -> Vec<Record> {
    let record = |address: &Ipv4Addr| {
        Record::from_rdata(query.name().clone(), TTL, RData::A(rdata::A(*address)))
    };
    addresses.iter().map(record).collect()
}

fn name_of(query: &Query, name: &str) -> Vec<Record> {
    let target = Name::from_ascii(format!("{name}.")).map(|target| RData::PTR(rdata::PTR(target)));
    target
        .into_iter()
        .map(|data| Record::from_rdata(query.name().clone(), TTL, data))
        .collect()
}

fn send(
    request: &Message,
    code: ResponseCode,
    answers: Vec<Record>,
    transport: Transport,
) -> Reply {
    let mut response = Message::response(request.metadata.id, OpCode::Query);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.queries.clone_from(&request.queries);
    response.answers = answers;
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        response.edns = Some(edns);
    }
    let limit = match (transport, &request.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => PLAIN_UDP,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_UDP, MAX_UDP),
    };
    encode(response, usize::from(limit)).map_or(Reply::Silence, Reply::Bytes)
}

/// The bytes of a response, with as many answers as fit; then it says that there are more.
fn encode(mut response: Message, limit: usize) -> Option<Vec<u8>> {
    loop {
        let bytes = response.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        response.metadata.truncation = true;
        let keep = response.answers.len() / 2;
        if keep == response.answers.len() {
            return None;
        }
        response.answers.truncate(keep);
    }
}

/// The answer that nobody could give.
pub(super) fn failure(packet: &[u8], code: ResponseCode) -> Vec<u8> {
    match refuse(packet, code) {
        Reply::Bytes(bytes) => bytes,
        Reply::Forward | Reply::Silence => Vec::new(),
    }
}

/// An error about a packet that may be no more than a header.
fn refuse(packet: &[u8], code: ResponseCode) -> Reply {
    let is_answer = packet.get(2).is_none_or(|flags| flags & 0x80 != 0);
    let Some(&[high, low]) = packet
        .get(..2)
        .filter(|_| packet.len() >= HEADER && !is_answer)
    else {
        return Reply::Silence;
    };
    let mut message = Message::error_msg(u16::from_be_bytes([high, low]), OpCode::Query, code);
    if let Ok(request) = Message::from_vec(packet) {
        message.metadata = Metadata::response_from_request(&request.metadata);
        message.metadata.response_code = code;
        message.queries = request.queries;
    }
    message.metadata.recursion_available = true;
    message.to_vec().map_or(Reply::Silence, Reply::Bytes)
}
