//! How often nftables of the calling thread's namespace has changed, without asking for the rules.
//!
//! The kernel counts the transactions of each namespace. When the count is still the one that our
//! own transaction made, nobody has changed a rule since: reading them back is not needed.

use std::io;

use neli::{
    consts::{nl::NlmF, socket::NlFamily},
    nl::{NlPayload, Nlmsghdr, NlmsghdrBuilder},
    socket::synchronous::NlSocketHandle,
    types::Buffer,
    utils::Groups,
};
use skep_core::network::ruleset::TABLE;

use super::bound_waiting;

/// `NFNL_SUBSYS_NFTABLES`, the upper half of a message type.
const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
const TABLE_NAME: u16 = 1;
const GENERATION_ID: u16 = 1;
const NFPROTO_IPV4: u8 = 2;

/// What can be seen of nftables at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// The count of transactions.
    pub id: u32,
    /// Whether there is a table of our name.
    pub has_table: bool,
}

/// Looks at the calling thread's namespace.
///
/// # Errors
/// When this kernel has no nftables.
pub fn read() -> io::Result<Generation> {
    let socket = NlSocketHandle::connect(NlFamily::Netfilter, None, Groups::empty())
        .map_err(io::Error::other)?;
    bound_waiting(&socket)?;
    let mut name = TABLE.as_bytes().to_vec();
    name.push(0);
    let has_table = match ask(&socket, GET_TABLE, &attribute(TABLE_NAME, &name)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        other => other.map(|_| true)?,
    };
    let answer = ask(&socket, GET_GENERATION, &[])?;
    let id = generation_id(&answer).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Generation { id, has_table })
}

fn ask(socket: &NlSocketHandle, kind: u16, attributes: &[u8]) -> io::Result<Vec<u8>> {
    // struct nfgenmsg: family, version, resource id.
    let mut payload = vec![NFPROTO_IPV4, 0, 0, 0];
    payload.extend(attributes);
    let request: Nlmsghdr<u16, Buffer> = NlmsghdrBuilder::default()
        .nl_type(kind)
        .nl_flags(NlmF::REQUEST)
        .nl_payload(NlPayload::Payload(Buffer::from(payload)))
        .build()
        .map_err(io::Error::other)?;
    socket.send(&request).map_err(io::Error::other)?;
    let (messages, _) = socket.recv::<u16, Buffer>().map_err(io::Error::other)?;
    for message in messages {
        let message = message.map_err(io::Error::other)?;
        match message.nl_payload() {
            NlPayload::Payload(payload) => return Ok(payload.as_ref().to_vec()),
            NlPayload::Err(error) => {
                let code = error.error().saturating_neg();
                return Err(io::Error::from_raw_os_error(code));
            }
            NlPayload::Ack(_) | NlPayload::DumpExtAck(_) | NlPayload::Empty => {}
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The count in an answer: the first attribute after the header, big-endian.
fn generation_id(answer: &[u8]) -> Option<u32> {
    let attribute = answer.get(4..12)?;
    let kind = u16::from_ne_bytes([attribute[2], attribute[3]]) & 0x3fff;
    let value: [u8; 4] = attribute[4..].try_into().ok()?;
    (kind == GENERATION_ID).then(|| u32::from_be_bytes(value))
}
