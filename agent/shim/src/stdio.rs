//! The shim's ends of the container's standard input and output.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{read, write};

use crate::container::set_nonblocking;
use crate::log::Lines;
use crate::protocol::{MAX_FRAME, STREAM_STDERR, STREAM_STDOUT};
use crate::{Result, Trying};

/// Input that waits for the container to read; no more is taken from clients beyond this.
const MAX_INPUT: usize = 64 * 1024;

/// All of it.
pub(crate) struct Stdio {
    /// Standard input, if it is kept open.
    pub(crate) input: Option<Input>,
    /// Standard output and error, or the terminal alone.
    pub(crate) outputs: Vec<Output>,
    /// The master side of the terminal.
    terminal: Option<OwnedFd>,
}

impl Stdio {
    /// Three pipes.
    pub(crate) fn pipes(stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd) -> Result<Self> {
        for fd in [stdin.as_ref(), Some(&stdout), Some(&stderr)] {
            fd.map_or(Ok(()), set_nonblocking)?;
        }
        Ok(Self {
            input: stdin.map(|fd| Input::new(fd, EndOfInput::Close)),
            outputs: vec![
                Output::new(stdout, STREAM_STDOUT, "stdout"),
                Output::new(stderr, STREAM_STDERR, "stderr"),
            ],
            terminal: None,
        })
    }

    /// One terminal.
    pub(crate) fn terminal(master: OwnedFd) -> Result<Self> {
        set_nonblocking(&master)?;
        let copy = || master.try_clone().trying("copy the terminal");
        Ok(Self {
            input: Some(Input::new(copy()?, EndOfInput::Ignore)),
            outputs: vec![Output::new(copy()?, STREAM_STDOUT, "stdout")],
            terminal: Some(master),
        })
    }

    /// Sets the terminal's size in characters.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let terminal = self.terminal.as_ref().ok_or("it has no terminal")?;
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the descriptor is open and the structure is the one that TIOCSWINSZ reads.
        let status =
            unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        Errno::result(status).trying("set the terminal's size")?;
        Ok(())
    }
}

/// What happens when the client has no more input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EndOfInput {
    /// The program reads the end of its input.
    Close,
    /// Nothing: closing a terminal would end the program.
    Ignore,
}

/// Standard input.
pub(crate) struct Input {
    fd: OwnedFd,
    queue: VecDeque<u8>,
    at_end: EndOfInput,
    ended: bool,
}

impl Input {
    fn new(fd: OwnedFd, at_end: EndOfInput) -> Self {
        Self {
            fd,
            queue: VecDeque::new(),
            at_end,
            ended: false,
        }
    }

    /// To poll for writing, if there is anything to write.
    pub(crate) fn wants_to_write(&self) -> Option<RawFd> {
        (!self.queue.is_empty()).then(|| self.fd.as_raw_fd())
    }

    /// Whether another frame may be taken from a client.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() < MAX_INPUT
    }

    /// Takes a client's frame; an empty one is the end.
    pub(crate) fn push(&mut self, data: &[u8]) {
        if data.is_empty() {
            self.ended = self.at_end == EndOfInput::Close;
        } else if !self.ended {
            self.queue.extend(data);
        }
    }

    /// Writes what the container takes. True when the input is over and is to be dropped.
    pub(crate) fn flush(&mut self) -> bool {
        while !self.queue.is_empty() {
            let (front, _) = self.queue.as_slices();
            match write(&self.fd, front) {
                Ok(count) => drop(self.queue.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return false,
                // Nobody reads any more.
                Err(_) => return true,
            }
        }
        self.ended
    }
}

/// Standard output or error.
pub(crate) struct Output {
    fd: Option<OwnedFd>,
    /// `STREAM_STDOUT` or `STREAM_STDERR`.
    pub(crate) stream: u8,
    /// Its lines on the way to the log.
    pub(crate) lines: Lines,
}

impl Output {
    fn new(fd: OwnedFd, stream: u8, name: &'static str) -> Self {
        Self {
            fd: Some(fd),
            stream,
            lines: Lines::new(name),
        }
    }

    /// To poll for reading; `None` after the end.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        self.fd.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Reads what is there, at most a frame. Nothing if there is nothing yet or it has just ended.
    pub(crate) fn read(&mut self) -> Option<Vec<u8>> {
        let mut data = vec![0; MAX_FRAME];
        match read(self.fd()?, &mut data) {
            Ok(count) if count > 0 => {
                data.truncate(count);
                Some(data)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            // End of a pipe is 0, end of a terminal is EIO.
            Ok(_) | Err(_) => {
                self.fd = None;
                None
            }
        }
    }
}

/// Takes the terminal that libcontainer sent while it created the container.
pub(crate) fn receive_terminal(listener: &UnixListener) -> Result<OwnedFd> {
    // It has connected by now, or never will.
    listener
        .set_nonblocking(true)
        .trying("wait for the terminal")?;
    let (stream, _) = listener.accept().trying("take the terminal")?;
    let mut name = [0; 256];
    let mut buffers = [IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut buffers,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .trying("take the terminal")?;
    for control in message.cmsgs().trying("take the terminal")? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let [fd] = fds[..]
        {
            // SAFETY: the kernel has just made this descriptor for us.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err("no terminal was sent".to_owned())
}
