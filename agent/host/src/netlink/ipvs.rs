//! IPVS of the calling thread's namespace: generic netlink family `IPVS`, version 1
//! (linux/ip_vs.h). The answers are parsed as if anybody could have written them.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use neli::{
    consts::{nl::NlmF, socket::NlFamily},
    genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder},
    nl::{NlPayload, Nlmsghdr, NlmsghdrBuilder},
    socket::synchronous::NlSocketHandle,
    types::{Buffer, GenlBuffer},
    utils::Groups,
};
use skep_core::network::state::{IpvsDestination, IpvsForward, IpvsKey, IpvsService};

use super::{bound_waiting, unless};

const FAMILY: &str = "IPVS";
const VERSION: u8 = 1;
/// `GENL_ID_CTRL` and its request for a family by name.
const CONTROL: u16 = 0x10;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;

/// Commands.
mod command {
    pub(super) const NEW_SERVICE: u8 = 1;
    pub(super) const SET_SERVICE: u8 = 2;
    pub(super) const DEL_SERVICE: u8 = 3;
    pub(super) const GET_SERVICE: u8 = 4;
    pub(super) const NEW_DEST: u8 = 5;
    pub(super) const SET_DEST: u8 = 6;
    pub(super) const DEL_DEST: u8 = 7;
    pub(super) const GET_DEST: u8 = 8;
}

/// Attributes of a command.
mod top {
    pub(super) const SERVICE: u16 = 1;
    pub(super) const DEST: u16 = 2;
}

/// Attributes of a service.
mod service {
    pub(super) const FAMILY: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;
    pub(super) const ADDR: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const FWMARK: u16 = 5;
    pub(super) const SCHEDULER: u16 = 6;
    pub(super) const FLAGS: u16 = 7;
    pub(super) const TIMEOUT: u16 = 8;
    pub(super) const NETMASK: u16 = 9;
}

/// Attributes of a destination.
mod dest {
    pub(super) const ADDR: u16 = 1;
    pub(super) const PORT: u16 = 2;
    pub(super) const FORWARD: u16 = 3;
    pub(super) const WEIGHT: u16 = 4;
    pub(super) const UPPER: u16 = 5;
    pub(super) const LOWER: u16 = 6;
    pub(super) const FAMILY: u16 = 11;
}

/// `IP_VS_SVC_F_HASHED`: the kernel's note that the service is in its table.
const HASHED: u32 = 2;
/// `IP_VS_CONN_F_FWD_MASK`; 0 is masquerading.
const FORWARD_MASK: u32 = 7;
const FORWARD_ROUTE: u32 = 3;

/// A socket with the number that the family has in this kernel.
pub struct Ipvs {
    socket: NlSocketHandle,
    family: u16,
}

type Message = Nlmsghdr<u16, Genlmsghdr<u8, u16>>;
type Attributes = GenlBuffer<u16, Buffer>;

impl Ipvs {
    /// Opens it; none when this kernel has no IPVS.
    ///
    /// # Errors
    /// When there is no netlink either.
    pub fn open() -> io::Result<Option<Self>> {
        let socket = NlSocketHandle::connect(NlFamily::Generic, None, Groups::empty())
            .map_err(io::Error::other)?;
        bound_waiting(&socket)?;
        let mut name = FAMILY.as_bytes().to_vec();
        name.push(0);
        let attributes = vec![attribute(CONTROL_FAMILY_NAME, name)?];
        let answers = exchange(&socket, CONTROL, CONTROL_GET_FAMILY, NlmF::ACK, attributes);
        let answers = match answers {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            other => other?,
        };
        let ids = answers
            .iter()
            .filter_map(|attributes| find(attributes, CONTROL_FAMILY_ID));
        let family = ids.filter_map(u16_of).next();
        Ok(family.map(|family| Self { socket, family }))
    }

    /// Every service with its destinations.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn services(&self) -> io::Result<BTreeMap<IpvsKey, IpvsService>> {
        let listed = self.ask(command::GET_SERVICE, NlmF::DUMP, Vec::new())?;
        let mut services = BTreeMap::new();
        for attributes in &listed {
            let Some((key, mut found)) = find(attributes, top::SERVICE).and_then(parse_service)
            else {
                continue;
            };
            let which = vec![nest(top::SERVICE, &identity(&key)?)?];
            for attributes in &self.ask(command::GET_DEST, NlmF::DUMP, which)? {
                let parsed = find(attributes, top::DEST);
                let parsed = parsed.and_then(|bytes| parse_destination(bytes, &key));
                found.destinations.extend(parsed);
            }
            services.insert(key, found);
        }
        Ok(services)
    }

    /// Makes a service, or gives it this scheduler and these flags.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_service(&self, key: &IpvsKey, scheduler: &str, flags: u32) -> io::Result<()> {
        let mut attributes = identity(key)?;
        let mut name = scheduler.as_bytes().to_vec();
        name.push(0);
        attributes.push(attribute(service::SCHEDULER, name)?);
        let mask = u32::MAX;
        let flags = [flags.to_ne_bytes(), mask.to_ne_bytes()].concat();
        attributes.push(attribute(service::FLAGS, flags)?);
        attributes.push(attribute(service::TIMEOUT, 0u32.to_ne_bytes().to_vec())?);
        attributes.push(attribute(
            service::NETMASK,
            u32::MAX.to_ne_bytes().to_vec(),
        )?);
        let attributes = nest(top::SERVICE, &attributes)?;
        self.create_or_set(command::NEW_SERVICE, command::SET_SERVICE, &[attributes])
    }

    /// Removes a service; none is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_service(&self, key: &IpvsKey) -> io::Result<()> {
        let which = vec![nest(top::SERVICE, &identity(key)?)?];
        let done = self.ask(command::DEL_SERVICE, NlmF::ACK, which);
        unless(done.map(drop), &[libc::ESRCH, libc::ENOENT])
    }

    /// Adds a destination, or gives it this weight and way.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_destination(
        &self,
        key: &IpvsKey,
        destination: &IpvsDestination,
        forward: IpvsForward,
    ) -> io::Result<()> {
        let way = if forward.masquerade { 0 } else { FORWARD_ROUTE };
        let mut attributes = destination_identity(destination)?;
        for (kind, value) in [
            (dest::FORWARD, way),
            (dest::WEIGHT, forward.weight),
            (dest::UPPER, 0),
            (dest::LOWER, 0),
        ] {
            attributes.push(attribute(kind, value.to_ne_bytes().to_vec())?);
        }
        let attributes = [
            nest(top::SERVICE, &identity(key)?)?,
            nest(top::DEST, &attributes)?,
        ];
        self.create_or_set(command::NEW_DEST, command::SET_DEST, &attributes)
    }

    /// Removes a destination; none is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_destination(
        &self,
        key: &IpvsKey,
        destination: &IpvsDestination,
    ) -> io::Result<()> {
        let attributes = vec![
            nest(top::SERVICE, &identity(key)?)?,
            nest(top::DEST, &destination_identity(destination)?)?,
        ];
        let done = self.ask(command::DEL_DEST, NlmF::ACK, attributes);
        unless(done.map(drop), &[libc::ESRCH, libc::ENOENT])
    }

    fn create_or_set(
        &self,
        create: u8,
        set: u8,
        attributes: &[Nlattr<u16, Buffer>],
    ) -> io::Result<()> {
        match self.ask(create, NlmF::ACK, attributes.to_vec()) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                self.ask(set, NlmF::ACK, attributes.to_vec()).map(drop)
            }
            other => other.map(drop),
        }
    }

    fn ask(
        &self,
        command: u8,
        flags: NlmF,
        attributes: Vec<Nlattr<u16, Buffer>>,
    ) -> io::Result<Vec<Attributes>> {
        exchange(&self.socket, self.family, command, flags, attributes)
    }
}

/// Sends a request and collects the attributes of the answers until the kernel says that it is done.
fn exchange(
    socket: &NlSocketHandle,
    family: u16,
    command: u8,
    flags: NlmF,
    attributes: Vec<Nlattr<u16, Buffer>>,
) -> io::Result<Vec<Attributes>> {
    let attributes: Attributes = attributes.into_iter().collect();
    let payload = GenlmsghdrBuilder::default()
        .cmd(command)
        .version(VERSION)
        .attrs(attributes)
        .build()
        .map_err(io::Error::other)?;
    let request: Message = NlmsghdrBuilder::default()
        .nl_type(family)
        .nl_flags(NlmF::REQUEST | flags)
        .nl_payload(NlPayload::Payload(payload))
        .build()
        .map_err(io::Error::other)?;
    socket.send(&request).map_err(io::Error::other)?;
    let mut answers = Vec::new();
    loop {
        let (messages, _) = socket
            .recv::<u16, Genlmsghdr<u8, u16>>()
            .map_err(io::Error::other)?;
        let mut any = false;
        for message in messages {
            any = true;
            let message = message.map_err(io::Error::other)?;
            match message.nl_payload() {
                NlPayload::Ack(_) => return Ok(answers),
                NlPayload::Err(error) => return Err(errno(*error.error())),
                NlPayload::DumpExtAck(end) if *end.error() != 0 => return Err(errno(*end.error())),
                NlPayload::DumpExtAck(_) => return Ok(answers),
                NlPayload::Payload(payload) => answers.push(payload.attrs().clone()),
                NlPayload::Empty if *message.nl_type() == DONE => return Ok(answers),
                NlPayload::Empty => {}
            }
        }
        if !any {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// `NLMSG_DONE`.
const DONE: u16 = 3;

fn errno(negative: i32) -> io::Error {
    io::Error::from_raw_os_error(negative.saturating_neg())
}

fn attribute(kind: u16, value: Vec<u8>) -> io::Result<Nlattr<u16, Buffer>> {
    let kind = AttrTypeBuilder::default()
        .nla_type(kind)
        .build()
        .map_err(io::Error::other)?;
    NlattrBuilder::default()
        .nla_type(kind)
        .nla_payload(Buffer::from(value))
        .build()
        .map_err(io::Error::other)
}

fn nest(kind: u16, inner: &[Nlattr<u16, Buffer>]) -> io::Result<Nlattr<u16, Buffer>> {
    let outer = attribute(kind, Vec::new())?;
    inner
        .iter()
        .try_fold(outer, |outer, one| outer.nest(one))
        .map_err(io::Error::other)
}

/// The attributes by which the kernel knows a service.
fn identity(key: &IpvsKey) -> io::Result<Vec<Nlattr<u16, Buffer>>> {
    let number = |kind, value: u16| attribute(kind, value.to_ne_bytes().to_vec());
    let mark = |mark: u32| attribute(service::FWMARK, mark.to_ne_bytes().to_vec());
    Ok(match key {
        IpvsKey::Mark(value) => vec![number(service::FAMILY, AF_INET)?, mark(*value)?],
        IpvsKey::Mark6(value) => vec![number(service::FAMILY, AF_INET6)?, mark(*value)?],
        IpvsKey::Address {
            protocol,
            addr,
            port,
        } => vec![
            number(service::FAMILY, family_of(*addr))?,
            number(service::PROTOCOL, *protocol)?,
            attribute(service::ADDR, addr_bytes(*addr))?,
            attribute(service::PORT, port.to_be_bytes().to_vec())?,
        ],
    })
}

fn destination_identity(destination: &IpvsDestination) -> io::Result<Vec<Nlattr<u16, Buffer>>> {
    let family = family_of(destination.addr).to_ne_bytes().to_vec();
    Ok(vec![
        attribute(dest::ADDR, addr_bytes(destination.addr))?,
        attribute(dest::PORT, destination.port.to_be_bytes().to_vec())?,
        attribute(dest::FAMILY, family)?,
    ])
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

fn family_of(addr: IpAddr) -> u16 {
    match addr {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

/// An address as `union nf_inet_addr`: always sixteen bytes.
fn addr_bytes(addr: IpAddr) -> Vec<u8> {
    let mut bytes = match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    bytes.resize(16, 0);
    bytes
}

/// The value of the first attribute of that kind.
fn find(attributes: &Attributes, kind: u16) -> Option<&[u8]> {
    let found = attributes
        .iter()
        .find(|one| *one.nla_type().nla_type() == kind)?;
    Some(found.nla_payload().as_ref())
}

/// The attributes in the value of another, by kind. What does not fit ends the list.
fn nested(mut bytes: &[u8]) -> BTreeMap<u16, &[u8]> {
    let mut found = BTreeMap::new();
    while let Some((header, rest)) = bytes.split_at_checked(4) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let Some(value) = length.checked_sub(4).and_then(|length| rest.get(..length)) else {
            break;
        };
        found.entry(kind).or_insert(value);
        let padded = value.len().next_multiple_of(4);
        bytes = rest.get(padded..).unwrap_or_default();
    }
    found
}

fn parse_service(bytes: &[u8]) -> Option<(IpvsKey, IpvsService)> {
    let attributes = nested(bytes);
    let get = |kind| attributes.get(&kind).copied();
    let family = get(service::FAMILY).and_then(u16_of)?;
    let key = match (get(service::FWMARK).and_then(u32_of), family) {
        (Some(mark), AF_INET) => IpvsKey::Mark(mark),
        (Some(mark), AF_INET6) => IpvsKey::Mark6(mark),
        (Some(_), _) => return None,
        (None, _) => IpvsKey::Address {
            protocol: get(service::PROTOCOL).and_then(u16_of)?,
            addr: addr_of(get(service::ADDR)?, family)?,
            port: get(service::PORT).and_then(be16_of)?,
        },
    };
    let name = get(service::SCHEDULER)?;
    let name = name.split(|byte| *byte == 0).next()?;
    let found = IpvsService {
        scheduler: String::from_utf8_lossy(name).into_owned(),
        flags: get(service::FLAGS).and_then(|bytes| u32_of(bytes.get(..4)?))? & !HASHED,
        destinations: BTreeMap::new(),
    };
    Some((key, found))
}

fn parse_destination(bytes: &[u8], key: &IpvsKey) -> Option<(IpvsDestination, IpvsForward)> {
    let attributes = nested(bytes);
    let get = |kind| attributes.get(&kind).copied();
    let family = match key {
        IpvsKey::Mark(_) => AF_INET,
        IpvsKey::Mark6(_) => AF_INET6,
        IpvsKey::Address { addr, .. } => family_of(*addr),
    };
    let family = get(dest::FAMILY).and_then(u16_of).unwrap_or(family);
    let destination = IpvsDestination {
        addr: addr_of(get(dest::ADDR)?, family)?,
        port: get(dest::PORT).and_then(be16_of)?,
    };
    let forward = IpvsForward {
        masquerade: get(dest::FORWARD).and_then(u32_of)? & FORWARD_MASK == 0,
        weight: get(dest::WEIGHT).and_then(u32_of)?,
    };
    Some((destination, forward))
}

fn addr_of(bytes: &[u8], family: u16) -> Option<IpAddr> {
    if family == AF_INET6 {
        let bytes: [u8; 16] = bytes.try_into().ok()?;
        return Some(IpAddr::V6(Ipv6Addr::from(bytes)));
    }
    let bytes: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    (family == AF_INET).then(|| IpAddr::V4(Ipv4Addr::from(bytes)))
}

fn u16_of(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

fn be16_of(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use neli::{Size, ToBytes};
    use proptest::prelude::*;

    use super::*;

    fn bytes_of(attributes: &[Nlattr<u16, Buffer>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for one in attributes {
            let mut cursor = io::Cursor::new(vec![0; one.padded_size()]);
            one.to_bytes(&mut cursor).unwrap();
            bytes.extend(cursor.into_inner());
        }
        bytes
    }

    /// The layout of linux/ip_vs.h, byte by byte on a little-endian machine.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_mark_is_written_as_the_kernel_wants_it() {
        let written =
            bytes_of(&[nest(top::SERVICE, &identity(&IpvsKey::Mark(256)).unwrap()).unwrap()]);
        let wanted = [
            20, 0, 0x01, 0x80, // SERVICE, nested
            6, 0, 1, 0, 2, 0, 0, 0, // AF: AF_INET
            8, 0, 5, 0, 0, 1, 0, 0, // FWMARK: 0x100
        ];
        assert_eq!(written, wanted);
    }

    fn any_key() -> impl Strategy<Value = IpvsKey> {
        let addr = any::<IpAddr>();
        prop_oneof![
            any::<u32>().prop_map(IpvsKey::Mark),
            any::<u32>().prop_map(IpvsKey::Mark6),
            (any::<u16>(), addr, any::<u16>()).prop_map(|(protocol, addr, port)| {
                IpvsKey::Address {
                    protocol,
                    addr,
                    port,
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_service_reads_as_it_was_written(key in any_key(), flags: u32) {
            let mut attributes = identity(&key).unwrap();
            attributes.push(attribute(service::SCHEDULER, b"rr\0".to_vec()).unwrap());
            let both = [flags.to_ne_bytes(), [0xff; 4]].concat();
            attributes.push(attribute(service::FLAGS, both).unwrap());
            let (read, found) = parse_service(&bytes_of(&attributes)).unwrap();
            prop_assert_eq!(read, key);
            prop_assert_eq!(found.scheduler, "rr");
            prop_assert_eq!(found.flags, flags & !HASHED);
        }

        #[test]
        fn a_destination_reads_as_it_was_written(addr: IpAddr, port: u16, weight: u32, way in 0..8u32) {
            let destination = IpvsDestination { addr, port };
            let mut attributes = destination_identity(&destination).unwrap();
            for (kind, value) in [(dest::FORWARD, way), (dest::WEIGHT, weight)] {
                attributes.push(attribute(kind, value.to_ne_bytes().to_vec()).unwrap());
            }
            let (read, forward) = parse_destination(&bytes_of(&attributes), &IpvsKey::Mark(1)).unwrap();
            prop_assert_eq!(read, destination);
            prop_assert_eq!(forward, IpvsForward { masquerade: way == 0, weight });
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>, key in any_key()) {
            let _ = parse_service(&bytes);
            let _ = parse_destination(&bytes, &key);
        }
    }
}
