//! The segment 192.168.77.0/24: a learning Ethernet switch between VMs in user space, without any privilege.
//!
//! QEMU's `-netdev stream` sends each frame over a Unix socket, its length before it as four bytes in network order.
//! Each port of the switch is a listening socket `<port>.sock` in the switch's folder; a second connection to a port
//! takes the place of the first. `control.sock` takes one line per connection: `cut PORT`, `heal PORT` or `ports`.
//! Every buffer has a bound: what a slow receiver does not take in time is dropped, as by a real switch.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};

use crate::paths::connect;
use crate::process::{Background, ourselves};

const CONTROL: &str = "control.sock";
/// Longest frame that a virtio NIC of QEMU sends.
const FRAME_MAX: usize = 128 * 1024;
/// What waits for one receiver, at most.
const OUTPUT_MAX: usize = 4 << 20;
/// Addresses known at most; a full table is forgotten and learned anew.
const ADDRESSES_MAX: usize = 4096;
const CONTROL_PATIENCE: Duration = Duration::from_millis(200);

type Address = [u8; 6];

/// One port as `ports` tells about it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct PortStatus {
    /// The port's name.
    pub name: String,
    /// Whether a VM is connected.
    pub connected: bool,
    /// Whether the link is cut.
    pub cut: bool,
    /// Frames taken from the VM.
    pub frames: u64,
    /// Frames dropped: the link was cut, or the VM did not take them.
    pub dropped: u64,
}

/// Asks the switch in `folder` for something; gives its answer.
///
/// # Errors
/// When no switch runs there, or it refuses.
pub fn control(folder: &Path, request: &str) -> Result<String> {
    let mut stream = connect(folder, CONTROL).context("the switch does not run")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    writeln!(stream, "{request}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.strip_prefix("error: ") {
        Some(why) => bail!("the switch refuses `{request}`: {}", why.trim()),
        None => Ok(answer),
    }
}

/// Starts a switch in `folder` as a process of its own, unless it runs, and waits until it answers.
///
/// # Errors
/// When it does not start, with its words.
pub fn start(folder: &Path, process: &Background, ports: &[String]) -> Result<()> {
    let log = folder.join("log");
    process.start(
        ourselves()
            .arg("internal-switch")
            .args(ports)
            .current_dir(folder),
        &log,
    )?;
    let begun = Instant::now();
    while control(folder, "ports").is_err() {
        if begun.elapsed() > Duration::from_secs(10) {
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("the switch does not start: {}", said.trim());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Runs the switch in the current folder until it is killed.
///
/// # Errors
/// When a socket cannot be made.
pub fn serve(ports: &[String]) -> Result<()> {
    let listen = |name: &str| -> Result<UnixListener> {
        let _ = fs::remove_file(name);
        let listener = UnixListener::bind(name).with_context(|| format!("cannot bind {name}"))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let mut switch = Switch {
        ports: Vec::new(),
        addresses: HashMap::new(),
    };
    for name in ports {
        switch.ports.push(Port {
            listener: listen(&format!("{name}.sock"))?,
            name: name.clone(),
            link: None,
            cut: false,
            frames: 0,
            dropped: 0,
        });
    }
    let control = listen(CONTROL)?;
    loop {
        switch.turn(&control)?;
    }
}

struct Switch {
    ports: Vec<Port>,
    addresses: HashMap<Address, usize>,
}

struct Port {
    name: String,
    listener: UnixListener,
    link: Option<Link>,
    cut: bool,
    frames: u64,
    dropped: u64,
}

/// A connected VM.
struct Link {
    stream: UnixStream,
    input: Vec<u8>,
    output: VecDeque<u8>,
}

impl Switch {
    /// Waits for something to do, and does all of it once.
    fn turn(&mut self, control: &UnixListener) -> Result<()> {
        let ready = self.wait(control)?;
        if ready.control
            && let Ok((client, _)) = control.accept()
        {
            // A client that is slow or gone is its own loss.
            let _ = self.answer(&client);
        }
        for index in ready.listeners {
            self.accept(index);
        }
        for index in ready.links {
            self.receive(index);
        }
        for port in &mut self.ports {
            port.flush();
        }
        Ok(())
    }

    fn wait(&self, control: &UnixListener) -> Result<Ready> {
        let mut fds = vec![PollFd::new(control, PollFlags::IN)];
        let mut owners = vec![None];
        for (index, port) in self.ports.iter().enumerate() {
            fds.push(PollFd::new(&port.listener, PollFlags::IN));
            owners.push(Some((index, false)));
            if let Some(link) = &port.link {
                let mut flags = PollFlags::IN;
                if !link.output.is_empty() {
                    flags |= PollFlags::OUT;
                }
                fds.push(PollFd::from_borrowed_fd(link.stream.as_fd(), flags));
                owners.push(Some((index, true)));
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot poll"),
        }
        let mut ready = Ready::default();
        for (fd, owner) in fds.iter().zip(owners) {
            if (fd.revents() & !PollFlags::OUT).is_empty() {
                continue;
            }
            match owner {
                None => ready.control = true,
                Some((index, false)) => ready.listeners.push(index),
                Some((index, true)) => ready.links.push(index),
            }
        }
        Ok(ready)
    }

    fn accept(&mut self, index: usize) {
        let port = &mut self.ports[index];
        if let Ok((stream, _)) = port.listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            port.link = Some(Link {
                stream,
                input: Vec::new(),
                output: VecDeque::new(),
            });
        }
    }

    /// Takes what a VM sent and passes each whole frame on.
    fn receive(&mut self, index: usize) {
        let Some(link) = &mut self.ports[index].link else {
            return;
        };
        if !link.fill() {
            self.ports[index].link = None;
            return;
        }
        let mut input = std::mem::take(&mut link.input);
        let mut begin = 0;
        let sound = loop {
            match next_frame(&input[begin..]) {
                Next::Frame(frame) => {
                    begin += 4 + frame.len();
                    self.forward(index, frame);
                }
                Next::Incomplete => break true,
                Next::TooLong => break false,
            }
        };
        input.drain(..begin);
        let port = &mut self.ports[index];
        match (&mut port.link, sound) {
            (Some(link), true) => link.input = input,
            _ => port.link = None,
        }
    }

    fn forward(&mut self, from: usize, frame: &[u8]) {
        self.ports[from].frames += 1;
        let Some((destination, source)) = addresses(frame) else {
            return;
        };
        if self.ports[from].cut {
            self.ports[from].dropped += 1;
            return;
        }
        if self.addresses.len() >= ADDRESSES_MAX {
            self.addresses.clear();
        }
        self.addresses.insert(source, from);
        let group = destination[0] & 1 == 1;
        match self.addresses.get(&destination) {
            Some(to) if !group => {
                if *to != from {
                    self.ports[*to].send(frame);
                }
            }
            Some(_) | None => {
                for (index, port) in self.ports.iter_mut().enumerate() {
                    if index != from {
                        port.send(frame);
                    }
                }
            }
        }
    }

    fn answer(&mut self, client: &UnixStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_read_timeout(Some(CONTROL_PATIENCE))?;
        client.set_write_timeout(Some(CONTROL_PATIENCE))?;
        let mut line = String::new();
        BufReader::new(client.take(256)).read_line(&mut line)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["ports"] => serde_json::to_string(&self.status())?,
            ["cut", name] => self.set_cut(name, true),
            ["heal", name] => self.set_cut(name, false),
            _ => "error: unknown request".to_owned(),
        };
        (&mut &*client).write_all(answer.as_bytes())
    }

    fn set_cut(&mut self, name: &str, cut: bool) -> String {
        match self.ports.iter_mut().find(|port| port.name == name) {
            Some(port) => {
                port.cut = cut;
                String::new()
            }
            None => format!("error: no port {name}"),
        }
    }

    fn status(&self) -> Vec<PortStatus> {
        self.ports
            .iter()
            .map(|port| PortStatus {
                name: port.name.clone(),
                connected: port.link.is_some(),
                cut: port.cut,
                frames: port.frames,
                dropped: port.dropped,
            })
            .collect()
    }
}

#[derive(Default)]
struct Ready {
    control: bool,
    listeners: Vec<usize>,
    links: Vec<usize>,
}

impl Port {
    fn send(&mut self, frame: &[u8]) {
        let Some(link) = &mut self.link else {
            return;
        };
        let Ok(length) = u32::try_from(frame.len()) else {
            return;
        };
        if self.cut || link.output.len() + frame.len() > OUTPUT_MAX {
            self.dropped += 1;
            return;
        }
        link.output.extend(length.to_be_bytes());
        link.output.extend(frame);
    }

    fn flush(&mut self) {
        if let Some(link) = &mut self.link
            && link.flush().is_err()
        {
            self.link = None;
        }
    }
}

impl Link {
    /// Reads what is there; false when the VM is gone.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(length) => {
                self.input.extend_from_slice(&chunk[..length]);
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            let (first, second) = self.output.as_slices();
            match self
                .stream
                .write_vectored(&[IoSlice::new(first), IoSlice::new(second)])
            {
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next<'a> {
    Frame(&'a [u8]),
    Incomplete,
    TooLong,
}

fn next_frame(input: &[u8]) -> Next<'_> {
    let Some((head, rest)) = input.split_first_chunk::<4>() else {
        return Next::Incomplete;
    };
    match usize::try_from(u32::from_be_bytes(*head)) {
        Ok(length) if length <= FRAME_MAX => {
            rest.get(..length).map_or(Next::Incomplete, Next::Frame)
        }
        Ok(_) | Err(_) => Next::TooLong,
    }
}

/// Destination and source of an Ethernet frame.
fn addresses(frame: &[u8]) -> Option<(Address, Address)> {
    let (destination, rest) = frame.split_first_chunk()?;
    let (source, _) = rest.split_first_chunk()?;
    Some((*destination, *source))
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    use super::*;

    fn frame(to: u8, from: u8) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from];
        frame.extend([8, 0, 42]);
        frame
    }

    fn switch(ports: usize) -> (Switch, Vec<UnixStream>) {
        let mut switch = Switch {
            ports: Vec::new(),
            addresses: HashMap::new(),
        };
        let mut ends = Vec::new();
        for index in 0..ports {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            ends.push(theirs);
            // A listener nobody connects to: abstract, so that it leaves no file.
            let name = format!("lab-switch-test-{}-{:?}", std::process::id(), ours);
            let address = SocketAddr::from_abstract_name(name).unwrap();
            switch.ports.push(Port {
                name: index.to_string(),
                listener: UnixListener::bind_addr(&address).unwrap(),
                link: Some(Link {
                    stream: ours,
                    input: Vec::new(),
                    output: VecDeque::new(),
                }),
                cut: false,
                frames: 0,
                dropped: 0,
            });
        }
        (switch, ends)
    }

    fn waiting(switch: &Switch) -> Vec<usize> {
        let length = |p: &Port| p.link.as_ref().map_or(0, |l| l.output.len());
        switch.ports.iter().map(length).collect()
    }

    #[test]
    fn an_unknown_address_goes_everywhere_and_a_known_one_to_its_port() {
        let (mut switch, _ends) = switch(3);
        switch.forward(0, &frame(9, 1));
        assert_eq!(waiting(&switch), [0, 19, 19]);
        switch.forward(2, &frame(1, 3));
        assert_eq!(waiting(&switch), [19, 19, 19]);
    }

    #[test]
    fn a_cut_port_neither_sends_nor_receives_until_it_is_healed() {
        let (mut switch, _ends) = switch(2);
        switch.set_cut("1", true);
        switch.forward(0, &frame(9, 1));
        switch.forward(1, &frame(9, 2));
        assert_eq!(waiting(&switch), [0, 0]);
        switch.set_cut("1", false);
        switch.forward(0, &frame(9, 1));
        assert_eq!(waiting(&switch), [0, 19]);
    }

    #[test]
    fn a_receiver_that_takes_nothing_costs_a_bounded_buffer() {
        let (mut switch, _ends) = switch(2);
        let mut long = frame(9, 1);
        long.resize(60_000, 0);
        for _ in 0..200 {
            switch.forward(0, &long);
        }
        assert!(waiting(&switch)[1] <= OUTPUT_MAX + 4);
        assert!(switch.ports[1].dropped > 0);
    }

    #[test]
    fn frames_arrive_whole_however_they_were_cut_into_pieces() {
        let (mut switch, mut ends) = switch(2);
        let mut bytes = Vec::new();
        for from in 1..4 {
            bytes.extend([0, 0, 0, 15]);
            bytes.extend(frame(9, from));
        }
        for piece in bytes.chunks(7) {
            ends[0].write_all(piece).unwrap();
            switch.receive(0);
        }
        switch.ports[1].flush();
        let mut got = vec![0; bytes.len()];
        ends[1].read_exact(&mut got).unwrap();
        assert_eq!(got, bytes);
    }

    #[test]
    fn a_length_out_of_all_proportion_ends_the_link() {
        let (mut switch, mut ends) = switch(2);
        ends[0].write_all(&[0xff; 8]).unwrap();
        switch.receive(0);
        assert!(switch.ports[0].link.is_none());
    }
}
