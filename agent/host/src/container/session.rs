//! Input and output of a process in this process's hands: an attached main process or an added one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rustix::fs::{Gid, OFlags, Uid};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::protocol::{
    Exit, MAX_FRAME, Reply, Request, STREAM_STDERR, STREAM_STDIN, STREAM_STDOUT,
};
use super::shim::{Connection, Packet, receive_descriptor, registered};
use super::{Session, Stream};
use crate::error::{Context, HostError, Result};

/// Chunks of output on the way to the reader; when it is full the process waits.
const BACKLOG: usize = 16;

/// Sets the size of a process's terminal.
#[derive(Clone, Debug)]
pub struct Terminal {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// There is none.
    None,
    /// The shim has it.
    Shim(PathBuf),
    /// It is here.
    Master(Arc<OwnedFd>),
}

impl Terminal {
    /// Sets the size in characters. Without effect where there is no terminal.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        match &self.kind {
            Kind::None => Ok(()),
            Kind::Shim(dir) => {
                let request = Request::Resize { rows, columns };
                let answer = Connection::ask(dir, &request).await;
                answer
                    .map(|_| ())
                    .context("resize the terminal in", dir.display())
            }
            Kind::Master(master) => {
                let size = Winsize {
                    ws_row: rows,
                    ws_col: columns,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                };
                tcsetwinsize(master, size).context("resize", "the terminal")
            }
        }
    }
}

type Output = mpsc::Sender<(Stream, Bytes)>;

/// Joins the main process of the container in `dir`.
pub(super) async fn attach(
    dir: &Path,
    pid: i32,
    tty: bool,
    request: Request,
) -> io::Result<Session> {
    let with_stdin = matches!(request, Request::Attach { stdin: true, .. });
    let connection = Connection::open(dir).await?;
    connection.request(&request, &[]).await?;
    connection.answer().await?;
    let connection = Arc::new(connection);
    let (output, received) = mpsc::channel(BACKLOG);
    let (ended, exit) = oneshot::channel();
    tokio::spawn({
        let connection = connection.clone();
        async move {
            let end = pump_frames(&connection, &output).await;
            // Whoever asked may have gone.
            let _ = ended.send(end);
        }
    });
    let stdin = with_stdin.then(|| {
        let (ours, theirs) = tokio::io::duplex(MAX_FRAME);
        tokio::spawn(pump_input(theirs, connection));
        Box::pin(ours) as _
    });
    let kind = if tty {
        Kind::Shim(dir.to_owned())
    } else {
        Kind::None
    };
    Ok(Session {
        pid,
        stdin,
        output: received,
        exit: Box::pin(wait_for(exit)),
        terminal: Terminal { kind },
    })
}

async fn wait_for(exit: oneshot::Receiver<io::Result<Exit>>) -> Result<Exit> {
    let exit = exit.await.map_err(HostError::from_gone)?;
    exit.context("wait for", "the process")
}

impl HostError {
    fn from_gone(error: oneshot::error::RecvError) -> Self {
        Self::new("wait for", "the process", error)
    }
}

/// Passes frames on until the shim tells of the end.
async fn pump_frames(connection: &Connection, output: &Output) -> io::Result<Exit> {
    let mut reader_left = false;
    loop {
        match connection.receive().await? {
            Packet::Frame(stream, data) => {
                let stream = match stream {
                    STREAM_STDOUT => Stream::Stdout,
                    STREAM_STDERR => Stream::Stderr,
                    other => return Err(io::Error::other(format!("unknown stream {other}"))),
                };
                if !reader_left {
                    reader_left = output.send((stream, Bytes::from(data))).await.is_err();
                }
            }
            Packet::Reply(Reply::Exit(exit)) => return Ok(exit),
            Packet::Reply(Reply::Error { why }) => return Err(io::Error::other(why)),
            Packet::Reply(other) => {
                return Err(io::Error::other(format!("unexpected reply {other:?}")));
            }
            Packet::End => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Sends what is written as frames, and an empty one at the end.
async fn pump_input(mut input: impl AsyncRead + Unpin, connection: Arc<Connection>) {
    let mut data = vec![0; MAX_FRAME];
    loop {
        // A reader that failed has ended too.
        let count = input.read(&mut data).await.unwrap_or(0);
        let sent = connection.frame(STREAM_STDIN, &data[..count]).await;
        if count == 0 || sent.is_err() {
            return;
        }
    }
}

/// What an added process needs besides its description.
pub(super) struct ExecStdio {
    /// A terminal.
    pub(super) tty: bool,
    /// Standard input is wanted.
    pub(super) stdin: bool,
    /// To whom the pipes belong.
    pub(super) owner: (u32, u32),
}

/// Adds a process, an OCI `process` object, to the container in `dir`.
pub(super) async fn exec(
    dir: &Path,
    process: serde_json::Value,
    stdio: ExecStdio,
) -> io::Result<Session> {
    if stdio.tty {
        exec_on_terminal(dir, process).await
    } else {
        exec_on_pipes(dir, process, stdio).await
    }
}

async fn exec_on_pipes(
    dir: &Path,
    process: serde_json::Value,
    stdio: ExecStdio,
) -> io::Result<Session> {
    let (stdin, stdin_ours) = if stdio.stdin {
        let (read, write) = std::io::pipe()?;
        give(&read, stdio.owner)?;
        (OwnedFd::from(read), Some(nonblocking(write.into())?))
    } else {
        (std::fs::File::open("/dev/null")?.into(), None)
    };
    let (stdout_ours, stdout) = std::io::pipe()?;
    let (stderr_ours, stderr) = std::io::pipe()?;
    give(&stdout, stdio.owner)?;
    give(&stderr, stdio.owner)?;
    let request = Request::Exec {
        process,
        console: None,
    };
    let connection = Connection::open(dir).await?;
    let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    connection.request(&request, &fds).await?;
    // Only the process may hold these, or its output would never end.
    drop((stdin, stdout, stderr));
    let pid = exec_started(&connection).await?;
    let (output, received) = mpsc::channel(BACKLOG);
    for (fd, stream) in [(stdout_ours, Stream::Stdout), (stderr_ours, Stream::Stderr)] {
        let receiver = pipe::Receiver::from_owned_fd(nonblocking(fd.into())?)?;
        tokio::spawn(pump_output(receiver, stream, output.clone()));
    }
    let stdin = match stdin_ours {
        Some(fd) => Some(Box::pin(pipe::Sender::from_owned_fd(fd)?) as _),
        None => None,
    };
    Ok(Session {
        pid,
        stdin,
        output: received,
        exit: Box::pin(exec_exit(connection)),
        terminal: Terminal { kind: Kind::None },
    })
}

async fn exec_on_terminal(dir: &Path, process: serde_json::Value) -> io::Result<Session> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("tty-{}-{number}.sock", std::process::id());
    let path = dir.join(&name);
    let listener = UnixListener::bind(&path)?;
    let request = Request::Exec {
        process,
        console: Some(name),
    };
    let connection = Connection::open(dir).await?;
    connection.request(&request, &[]).await?;
    let started = exec_started(&connection).await;
    let master = started.as_ref().ok().map(|_| {
        // The terminal was sent before the process was said to run.
        listener.set_nonblocking(true)?;
        let (stream, _) = listener.accept()?;
        receive_descriptor(&stream)
    });
    // It has served; the directory goes with the container anyway.
    let _ = std::fs::remove_file(&path);
    let pid = started?;
    let master = master.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))?;
    let (output, received) = mpsc::channel(BACKLOG);
    let (ours, theirs) = tokio::io::duplex(MAX_FRAME);
    let reader = registered(nonblocking(master.try_clone()?)?)?;
    let writer = registered(master.try_clone()?)?;
    tokio::spawn(pump_from_terminal(reader, output));
    tokio::spawn(pump_to_terminal(theirs, writer));
    Ok(Session {
        pid,
        stdin: Some(Box::pin(ours)),
        output: received,
        exit: Box::pin(exec_exit(connection)),
        terminal: Terminal {
            kind: Kind::Master(Arc::new(master)),
        },
    })
}

async fn exec_started(connection: &Connection) -> io::Result<i32> {
    match connection.answer().await? {
        Reply::Exec { pid } => Ok(pid),
        other @ (Reply::Done | Reply::State { .. } | Reply::Exit(_) | Reply::Error { .. }) => {
            Err(io::Error::other(format!("unexpected reply {other:?}")))
        }
    }
}

async fn exec_exit(connection: Connection) -> Result<Exit> {
    let exit = match connection.receive().await {
        Ok(Packet::Reply(Reply::Exit(exit))) => Ok(exit),
        Ok(Packet::End) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(other) => Err(io::Error::other(format!("unexpected packet {other:?}"))),
        Err(error) => Err(error),
    };
    exit.context("wait for", "the process")
}

async fn pump_output(mut input: impl AsyncRead + Unpin, stream: Stream, output: Output) {
    let mut data = vec![0; MAX_FRAME];
    while let Ok(count) = input.read(&mut data).await {
        let chunk = Bytes::copy_from_slice(&data[..count]);
        if count == 0 || output.send((stream, chunk)).await.is_err() {
            return;
        }
    }
}

async fn pump_from_terminal(master: AsyncFd<OwnedFd>, output: Output) {
    let mut data = vec![0; MAX_FRAME];
    loop {
        let Ok(mut ready) = master.readable().await else {
            return;
        };
        let result = ready.try_io(|fd| Ok(rustix::io::read(fd, &mut data)?));
        match result {
            Ok(Ok(count)) if count > 0 => {
                let chunk = Bytes::copy_from_slice(&data[..count]);
                if output.send((Stream::Stdout, chunk)).await.is_err() {
                    return;
                }
            }
            // The end of a terminal is EIO.
            Ok(_) => return,
            Err(_would_block) => {}
        }
    }
}

async fn pump_to_terminal(mut input: impl AsyncRead + Unpin, master: AsyncFd<OwnedFd>) {
    let mut data = vec![0; MAX_FRAME];
    while let Ok(count) = input.read(&mut data).await {
        let mut rest = &data[..count];
        if rest.is_empty() {
            return;
        }
        while !rest.is_empty() {
            let Ok(mut ready) = master.writable().await else {
                return;
            };
            match ready.try_io(|fd| Ok(rustix::io::write(fd, rest)?)) {
                Ok(Ok(written)) => rest = &rest[written..],
                Ok(Err(_)) => return,
                Err(_would_block) => {}
            }
        }
    }
}

/// Gives a pipe to the process's user, who could otherwise not open `/dev/stdout`.
fn give(fd: impl AsFd, owner: (u32, u32)) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    Ok(rustix::fs::fchown(fd, Some(uid), Some(gid))?)
}

fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    Ok(fd)
}
