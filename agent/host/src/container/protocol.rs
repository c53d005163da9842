//! What skepd and a shim say to each other. This file is the whole contract: skepd compiles it as
//! `container::protocol`, and `skep-shim` includes the same file by `#[path]`, because the shim may
//! not depend on a crate of skepd's and a third crate for a hundred lines of data would wall off nothing.
//!
//! The shim is spawned with the container's directory as its first argument, an empty environment and
//! - descriptor 0: the container's root, a detached mount (`fsmount`), which the shim attaches at
//!   `rootfs` in a mount namespace of its own: it disappears with the last process, whoever dies first;
//! - the descriptor whose number is the second argument, if there is one: a tmpfs with the container's secrets and
//!   configs, likewise detached, which the shim attaches at `provided`;
//! - descriptor 1: a pipe on which it writes one [`Ready`] as a line of JSON and then closes;
//! - descriptor 2: where it complains.
//!
//! After that it listens on [`SOCKET`] (`SOCK_SEQPACKET`, so that each message is one packet).
//! A client sends one [`Request`] per connection as JSON, with descriptors as `SCM_RIGHTS` where said, and reads [`Reply`]s:
//!
//! | request | descriptors | replies |
//! |---|---|---|
//! | `state` | | `state` |
//! | `start` | | `done` |
//! | `signal` | | `done` |
//! | `resize` | | `done` |
//! | `wait` | | `exit`, when the main process has ended and its output is in the log |
//! | `exec` | stdin, stdout, stderr, unless on a terminal | `exec` once it runs, then `exit` |
//! | `attach` | | `done`, then frames both ways, then `exit` |
//!
//! Any request may be answered by `error` instead. A frame is a packet whose first byte is one of the `STREAM_*` values
//! and the rest is data; a reply is JSON and begins with `{` or `"`. An empty `STREAM_STDIN` frame ends the input.
//!
//! The exit status is in the file [`EXIT`] before anybody is told. The shim ends by itself once the container has ended,
//! its output is written and every client has been told: from then on the directory alone is the truth.

use serde::{Deserialize, Serialize};

/// The shim's socket, in the container's directory.
pub(crate) const SOCKET: &str = "shim.sock";
/// The shim's [`Settings`], in the container's directory.
pub(crate) const SETTINGS: &str = "shim.json";
/// The [`Exit`] of a container that has ended, in the container's directory.
pub(crate) const EXIT: &str = "exit.json";
/// Where the root is mounted, in the container's directory.
pub(crate) const ROOTFS: &str = "rootfs";

/// Where the secrets and configs are mounted, in the container's directory.
pub(crate) const PROVIDED: &str = "provided";

/// The largest packet either side sends or accepts: a process with a long environment must fit.
pub(crate) const MAX_PACKET: usize = 128 * 1024;
/// The most data in one frame.
pub(crate) const MAX_FRAME: usize = 16 * 1024;

/// Frame to the container's standard input.
pub(crate) const STREAM_STDIN: u8 = 0;
/// Frame from the container's standard output, or from its terminal.
pub(crate) const STREAM_STDOUT: u8 = 1;
/// Frame from the container's standard error.
pub(crate) const STREAM_STDERR: u8 = 2;

/// What the shim must know besides the OCI specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The container's id.
    pub(crate) id: String,
    /// Directory of the shim's own cgroup.
    pub(crate) shim_cgroup: String,
    /// Directory of the container's cgroup.
    pub(crate) container_cgroup: String,
    /// The json-file log; `None` writes none.
    pub(crate) log: Option<Log>,
    /// A terminal instead of pipes.
    pub(crate) tty: bool,
    /// Standard input is kept open for attached clients.
    pub(crate) open_stdin: bool,
}

/// Where the log is written and when it is rotated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    /// The current file; rotated ones are `<path>.1` and so on.
    pub(crate) path: String,
    /// Bytes after which it is rotated.
    pub(crate) max_size: u64,
    /// Files kept, the current one included; at least 1.
    pub(crate) max_files: u32,
}

/// The first thing a shim says, on descriptor 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ready {
    /// The container is created and the shim listens.
    Created {
        /// The main process, as the node counts it.
        pid: i32,
    },
    /// It could not be created; nothing runs.
    Failed {
        /// The reason, in one line.
        why: String,
    },
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// How is it?
    State,
    /// Let the created container run its program.
    Start,
    /// Tell me when it has ended.
    Wait,
    /// Send a signal to the main process.
    Signal {
        /// The signal's number, 1 to 64.
        signal: i32,
    },
    /// Set the size of the terminal.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// Run another process inside.
    Exec {
        /// An OCI `process` object.
        process: serde_json::Value,
        /// For a terminal: the name of a listening socket in the container's directory that takes its master side.
        console: Option<String>,
    },
    /// Stream standard input and output.
    Attach {
        /// Frames of this client go to standard input.
        stdin: bool,
        /// The container waits for this client to read rather than lose it. A client that does not ask for this is
        /// disconnected when it falls behind.
        lossless: bool,
    },
}

/// What the shim answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// Done.
    Done,
    /// How it is.
    State {
        /// Unix nanoseconds at which it was started; 0 if it was not.
        started_at: u64,
        /// The main process, as the node counts it.
        pid: i32,
        /// How it ended, if it has.
        exit: Option<Exit>,
    },
    /// The process of `exec` runs.
    Exec {
        /// The process, as the node counts it.
        pid: i32,
    },
    /// The process has ended.
    Exit(Exit),
    /// It was not done.
    Error {
        /// The reason, in one line.
        why: String,
    },
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 plus the signal's number when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
    /// Unix nanoseconds at which the main process started its program; 0 if it never did.
    pub started_at: u64,
    /// Unix nanoseconds at which it ended.
    pub finished_at: u64,
    /// Why the code may not be the program's own, such as a shim that died.
    pub error: Option<String>,
}
