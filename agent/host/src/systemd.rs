//! The service manager: notifications (`sd_notify(3)`), the watchdog, and the descriptor store, in which
//! sockets outlive a restart of skepd (`sd_pid_notify_with_fds(3)`, `sd_listen_fds_with_names(3)`).

use std::{
    io::{self, IoSlice},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::io::FdFlags;

use crate::error::{Context, HostError, Result};

/// The first inherited descriptor.
const FIRST: RawFd = 3;
/// More descriptors than any unit of ours stores; a larger count in the environment is a mistake.
const MAX_INHERITED: usize = 65_536;
/// Longest name of a stored descriptor.
const MAX_NAME: usize = 255;

/// The way to the service manager. Without one (a process started by hand) everything is accepted and does nothing.
#[derive(Debug)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
}

impl ServiceManager {
    /// The manager at `address`, the value of `NOTIFY_SOCKET`: a path, or `@` and an abstract name.
    ///
    /// # Errors
    /// When the address is malformed or nobody is there.
    pub fn connect(address: Option<&str>) -> Result<Self> {
        let Some(address) = address else {
            return Ok(Self { socket: None });
        };
        let open = || -> io::Result<UnixDatagram> {
            let to = match address.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(address)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&to)?;
            Ok(socket)
        };
        let socket = open().context("connect to the service manager at", address)?;
        Ok(Self {
            socket: Some(socket),
        })
    }

    /// Startup has finished (`READY=1`).
    ///
    /// # Errors
    /// When the manager cannot be reached.
    pub fn ready(&self) -> Result<()> {
        self.notify("READY=1", &[])
    }

    /// Shutdown has begun (`STOPPING=1`).
    ///
    /// # Errors
    /// When the manager cannot be reached.
    pub fn stopping(&self) -> Result<()> {
        self.notify("STOPPING=1", &[])
    }

    /// The process is well (`WATCHDOG=1`).
    ///
    /// # Errors
    /// When the manager cannot be reached.
    pub fn alive(&self) -> Result<()> {
        self.notify("WATCHDOG=1", &[])
    }

    /// One line for people, shown by the manager (`STATUS=`). Line breaks become spaces.
    ///
    /// # Errors
    /// When the manager cannot be reached.
    pub fn status(&self, line: &str) -> Result<()> {
        self.notify(&format!("STATUS={}", line.replace(['\n', '\r'], " ")), &[])
    }

    /// Puts a descriptor into the store under a name. Several may have the same name. The manager does not
    /// watch it for errors: an error that an ICMP message left on a UDP socket is no reason to close it.
    ///
    /// # Errors
    /// When the name is not 1 to 255 printable ASCII characters without a colon, or the manager cannot be reached.
    pub fn store(&self, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
        check_name(name)?;
        let message = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
        self.notify(&message, &[descriptor.as_raw_fd()])
    }

    /// Takes every descriptor of that name out of the store.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub fn remove(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.notify(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    fn notify(&self, message: &str, descriptors: &[RawFd]) -> Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let data = [IoSlice::new(message.as_bytes())];
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() {
            &rights[..0]
        } else {
            &rights[..]
        };
        sendmsg::<()>(
            socket.as_raw_fd(),
            &data,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map(drop)
        .map_err(io::Error::from)
        .context(
            "notify the service manager:",
            message.lines().next().unwrap_or_default(),
        )
        .map_err(HostError::temporary)
    }
}

fn check_name(name: &str) -> Result<()> {
    let printable = name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b':');
    if name.is_empty() || name.len() > MAX_NAME || !printable {
        return Err(HostError::new(
            "name a stored descriptor",
            format!("{name:?}"),
            "want 1 to 255 printable ASCII characters without a colon",
        ));
    }
    Ok(())
}

/// What the manager passed to this process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inherited {
    /// Name of each descriptor, the first one being descriptor 3. Unnamed ones are `unknown`.
    pub names: Vec<String>,
}

impl Inherited {
    /// Reads `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`. Nothing is inherited when they are for
    /// another process or make no sense.
    #[must_use]
    pub fn parse(
        own_pid: u32,
        pid: Option<&str>,
        count: Option<&str>,
        names: Option<&str>,
    ) -> Self {
        let mine = pid.and_then(|text| text.parse().ok()) == Some(own_pid);
        let count: usize = count.and_then(|text| text.parse().ok()).unwrap_or(0);
        if !mine || count > MAX_INHERITED {
            return Self::default();
        }
        let mut names = names
            .unwrap_or_default()
            .split(':')
            .filter(|name| !name.is_empty());
        Self {
            names: (0..count)
                .map(|_| names.next().unwrap_or("unknown").to_owned())
                .collect(),
        }
    }

    /// Takes the descriptors, close-on-exec.
    ///
    /// # Safety
    /// Descriptors 3 and up, as many as there are names, must belong to nobody in this process. True once,
    /// at the start of `main`, before anything else opens a file.
    #[must_use]
    pub unsafe fn take(self) -> Vec<(String, OwnedFd)> {
        let numbered = self.names.into_iter().zip(FIRST..);
        numbered
            .filter_map(|(name, number)| {
                // SAFETY: only borrowed to ask whether it is open.
                let probe = unsafe { BorrowedFd::borrow_raw(number) };
                rustix::io::fcntl_setfd(probe, FdFlags::CLOEXEC).ok()?;
                // SAFETY: it is open, and by the caller's promise nobody else owns it.
                Some((name, unsafe { OwnedFd::from_raw_fd(number) }))
            })
            .collect()
    }
}

/// How often [`ServiceManager::alive`] must be called: half of `WATCHDOG_USEC`, unless `WATCHDOG_PID` names another process.
#[must_use]
pub fn watchdog_period(own_pid: u32, pid: Option<&str>, usec: Option<&str>) -> Option<Duration> {
    let mine = pid.is_none_or(|text| text.parse() == Ok(own_pid));
    let usec: u64 = usec?.parse().ok()?;
    (mine && usec > 0).then(|| Duration::from_micros(usec / 2))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{IoSliceMut, Read},
        os::fd::AsFd,
    };

    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn descriptors_are_named_in_order() {
        let parse = |pid, count, names| Inherited::parse(7, Some(pid), Some(count), names).names;
        assert_eq!(parse("7", "2", Some("api:dns")), ["api", "dns"]);
        assert_eq!(parse("7", "2", Some("api")), ["api", "unknown"]);
        assert_eq!(parse("7", "1", Some("api:dns")), ["api"]);
        assert_eq!(parse("7", "2", None), ["unknown", "unknown"]);
        for (pid, count) in [
            ("8", "2"),
            ("", "2"),
            ("7", "-1"),
            ("7", "99999999"),
            ("7", "x"),
        ] {
            assert_eq!(parse(pid, count, Some("api:dns")), Vec::<String>::new());
        }
    }

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_asked() {
        let period = |pid, usec| watchdog_period(7, pid, usec);
        assert_eq!(period(None, Some("10000000")), Some(Duration::from_secs(5)));
        assert_eq!(
            period(Some("7"), Some("10")),
            Some(Duration::from_micros(5))
        );
        assert_eq!(period(Some("8"), Some("10")), None);
        assert_eq!(period(None, Some("0")), None);
        assert_eq!(period(None, None), None);
    }

    proptest! {
        #[test]
        fn no_environment_makes_the_parser_panic(pid in ".{0,12}", count in ".{0,12}", names in ".{0,40}") {
            let inherited = Inherited::parse(7, Some(&pid), Some(&count), Some(&names));
            prop_assert!(inherited.names.len() <= MAX_INHERITED);
        }

        #[test]
        fn as_many_names_as_descriptors(count in 0..200usize, names in "[a-z:]{0,60}") {
            let inherited = Inherited::parse(7, Some("7"), Some(&count.to_string()), Some(&names));
            prop_assert_eq!(inherited.names.len(), count);
        }

        #[test]
        fn a_name_that_is_taken_cannot_break_the_message(name in ".{0,300}") {
            if check_name(&name).is_ok() {
                prop_assert!(!name.contains(['\n', ':']));
            }
        }
    }

    #[test]
    fn a_stored_descriptor_arrives_with_its_name() {
        let name = format!("skep-systemd-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let server = UnixDatagram::bind_addr(&address).unwrap();
        let manager = ServiceManager::connect(Some(&format!("@{name}"))).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        manager.store("dns-0123", reader.as_fd()).unwrap();
        drop(reader);

        let (mut data, mut space) = ([0; 256], nix::cmsg_space!([RawFd; 4]));
        let mut parts = [IoSliceMut::new(&mut data)];
        let message = recvmsg::<()>(
            server.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        )
        .unwrap();
        let (length, control) = (message.bytes, message.cmsgs().unwrap().next().unwrap());
        let ControlMessageOwned::ScmRights(received) = control else {
            panic!("no descriptor");
        };
        // SAFETY: the kernel has just made it for us.
        let received = unsafe { OwnedFd::from_raw_fd(received[0]) };
        assert_eq!(&data[..length], b"FDSTORE=1\nFDPOLL=0\nFDNAME=dns-0123");

        std::io::Write::write_all(&mut { writer }, b"through").unwrap();
        let mut text = String::new();
        std::fs::File::from(received)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let nobody = ServiceManager::connect(None).unwrap();
        nobody.ready().unwrap();
        nobody.status("well").unwrap();
        assert!(nobody.remove("a:b").is_err());
        assert!(ServiceManager::connect(Some("/nowhere/at/all")).is_err());
    }
}
