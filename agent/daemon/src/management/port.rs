//! The seams to the cluster and to this node. The daemon's handles implement them; the tests of the
//! front doors run them over a store in memory.

use std::{collections::BTreeMap, pin::Pin};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use skep_core::{
    api::{ApiError, ClusterRequest, ClusterResponse, Node, Platform},
    id::Id,
    manager::logs::Selection,
    store::View,
    time::Timestamp,
    wire::unlock::UnlockKey,
};
use tokio::sync::{mpsc, watch};

use crate::cluster::{InitParams, JoinParams, SwarmStatus};

/// The cluster as this node reaches it.
#[async_trait]
pub trait ClusterPort: Send + Sync + 'static {
    /// Membership of this node.
    fn status(&self) -> SwarmStatus;
    /// The cluster's objects; `None` unless this node is a manager.
    fn view(&self) -> Option<View>;
    /// Changes whenever [`ClusterPort::view`] would.
    fn changes(&self) -> watch::Receiver<u64>;
    /// Has the leader carry out a change; returns once it shows in [`ClusterPort::view`].
    async fn request(&self, request: ClusterRequest) -> Result<ClusterResponse, ApiError>;
    /// Makes a new swarm.
    async fn init(&self, params: InitParams) -> Result<Id<Node>, ApiError>;
    /// Joins one.
    async fn join(&self, params: JoinParams) -> Result<Id<Node>, ApiError>;
    /// Leaves it.
    async fn leave(&self, force: bool) -> Result<(), ApiError>;
    /// The lines of the tasks of a selection, wherever they run.
    async fn logs(
        &self,
        selection: Selection,
        request: LogsRequest,
    ) -> Result<TaskLogStream, ApiError>;
    /// Unlocks this manager.
    async fn unlock(&self, key: UnlockKey) -> Result<(), ApiError>;
}

/// Facts about this node for `info` and `version`.
#[derive(Debug, Clone, Default)]
pub struct LocalInfo {
    /// Host name.
    pub name: String,
    /// Machine id; the engine's id.
    pub machine_id: String,
    /// Machine kind.
    pub platform: Platform,
    /// Release of the running kernel.
    pub kernel: String,
    /// `PRETTY_NAME` of the image.
    pub operating_system: String,
    /// Number of CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Number of images in the store.
    pub images: usize,
    /// Registries reached without TLS, `host:port` or `a.b.c.d/n`.
    pub insecure_registries: Vec<String>,
    /// Mirrors of docker.io.
    pub registry_mirrors: Vec<String>,
    /// Where the node's state lives.
    pub root: String,
}

/// How a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ContainerState {
    /// Made, not started.
    #[default]
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited,
}

/// A container of this node.
#[derive(Debug, Clone, Default)]
pub struct LocalContainer {
    /// 64 hexadecimal digits.
    pub id: String,
    /// `<service>.<slot>.<task id>`.
    pub name: String,
    /// Image reference.
    pub image: String,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<String>,
    /// Labels, those of Docker's executor included.
    pub labels: BTreeMap<String, String>,
    /// How it is.
    pub state: ContainerState,
    /// Process id; 0 when it does not run.
    pub pid: i32,
    /// Exit code, once it has ended.
    pub exit_code: i32,
    /// When it was made.
    pub created: Timestamp,
    /// When it was started, if it was.
    pub started: Option<Timestamp>,
    /// When it ended, if it did.
    pub finished: Option<Timestamp>,
    /// Its networks: name, network id, address with prefix length.
    pub networks: Vec<(String, String, String)>,
}

/// One of a process's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a container's log.
#[derive(Debug, Clone)]
pub struct LogLine {
    /// Where it came from.
    pub stream: OutputStream,
    /// When it was written.
    pub time: Timestamp,
    /// The line with its line feed.
    pub line: Bytes,
}

/// Which lines of a log.
#[derive(Debug, Clone, Default)]
pub struct LogsRequest {
    /// Only the last so many; all when absent.
    pub tail: Option<u64>,
    /// Go on with new lines until the container ends.
    pub follow: bool,
    /// Only lines from this moment on.
    pub since: Option<Timestamp>,
    /// Only lines up to this moment.
    pub until: Option<Timestamp>,
}

/// Lines of a log as they come. The reader's pace holds the writer back.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<LogLine, ApiError>> + Send>>;

/// A line of a task's log.
#[derive(Debug, Clone)]
pub struct TaskLogLine {
    /// The node that the task is on.
    pub node: String,
    /// Its service.
    pub service: String,
    /// The task.
    pub task: String,
    /// The line itself.
    pub line: LogLine,
}

/// Lines of many tasks as they come.
pub type TaskLogStream = Pin<Box<dyn Stream<Item = Result<TaskLogLine, ApiError>> + Send>>;

/// `skep debug`: an operator's throw-away privileged container on this node.
#[derive(Debug, Clone, Default)]
pub struct DebugParams {
    /// Image reference.
    pub image: String,
    /// Program and arguments; the image's own when empty.
    pub command: Vec<String>,
    /// `KEY=value` texts over the image's.
    pub env: Vec<String>,
    /// Who asks, for the audit log: `uid 0`, or the subject of the certificate.
    pub operator: String,
}

/// What comes out of a debug container.
#[derive(Debug, Clone)]
pub enum DebugOutput {
    /// Bytes of an output.
    Bytes(OutputStream, Bytes),
    /// It ended with this exit status; nothing follows.
    Exit(i32),
    /// It could not be run, or was lost; nothing follows.
    Failed(String),
}

/// A running debug container. Dropping either end stops it.
pub struct DebugSession {
    /// Standard input; closed when dropped.
    pub input: mpsc::Sender<Bytes>,
    /// What it writes, then how it ended.
    pub output: mpsc::Receiver<DebugOutput>,
}

/// An image of this node.
#[derive(Debug, Clone, Default)]
pub struct LocalImage {
    /// Digest of its configuration.
    pub id: String,
    /// References by tag.
    pub tags: Vec<String>,
    /// References by digest.
    pub digests: Vec<String>,
    /// When it was pulled.
    pub created: Timestamp,
    /// Bytes on disk.
    pub size: u64,
}

/// What a registry says of an image reference.
#[derive(Debug, Clone, Default)]
pub struct ResolvedImage {
    /// Media type of the manifest or index.
    pub media_type: String,
    /// `sha256:…` of it.
    pub digest: String,
    /// Its size in bytes.
    pub size: u64,
    /// Platforms that it is for.
    pub platforms: Vec<Platform>,
}

/// This node's own matters.
#[async_trait]
pub trait LocalPort: Send + Sync + 'static {
    /// Facts.
    fn info(&self) -> LocalInfo;
    /// Every container, ended ones included.
    async fn containers(&self) -> Result<Vec<LocalContainer>, ApiError>;
    /// The log of a container, by its full id.
    async fn logs(&self, id: &str, request: LogsRequest) -> Result<LogStream, ApiError>;
    /// Every image.
    async fn images(&self) -> Result<Vec<LocalImage>, ApiError>;
    /// Asks the image's registry (or the mirror) what a reference stands for.
    async fn resolve_image(&self, reference: &str) -> Result<ResolvedImage, ApiError>;
    /// Runs a debug container.
    async fn debug(&self, params: DebugParams) -> Result<DebugSession, ApiError>;
}
