//! This node's own containers and images, for the front doors.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use skep_core::{
    api::{ApiError, Platform},
    node::Names,
    system::config::Config,
    time::Timestamp,
    worker::{
        container::image::{InvalidReference, Reference},
        container::plan::{ContainerId, ContainerPlan},
        container::{self, DebugRequest, Layout, Surroundings},
        dependencies::Contents,
    },
};
use skep_host::{
    HostError, clock,
    container::{Containers, LogEntry, LogQuery, Phase, Session, Status, Stream},
    entropy,
    image::Image,
    machine, resolver,
};
use tokio::{
    io::AsyncWriteExt,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use crate::management::port::{
    ContainerState, DebugOutput, DebugParams, DebugSession, LocalContainer, LocalImage, LocalInfo,
    LocalPort, LogLine, LogStream, LogsRequest, OutputStream, ResolvedImage,
};

/// Label of debug containers.
pub const DEBUG_LABEL: &str = "skep.debug";
/// Debug containers at a time.
const DEBUG_SESSIONS: usize = 16;
/// Pieces of input or output that wait between a client and a debug container.
const DEBUG_PIECES: usize = 16;

/// What the handle needs.
pub struct LocalParts {
    /// Containers and images.
    pub containers: Containers,
    /// Networks and sandboxes, as names are answered from.
    pub names: watch::Receiver<Option<Names>>,
    /// The node's configuration.
    pub config: Arc<Config>,
    /// Its name.
    pub hostname: String,
    /// Where its state lives.
    pub state: PathBuf,
}

/// This node, from any front door. Cheap to clone.
#[derive(Clone)]
pub struct LocalHandle {
    parts: Arc<LocalParts>,
    debugs: Arc<Semaphore>,
}

impl LocalHandle {
    /// A handle on these parts.
    #[must_use]
    pub fn new(parts: LocalParts) -> Self {
        Self {
            parts: Arc::new(parts),
            debugs: Arc::new(Semaphore::new(DEBUG_SESSIONS)),
        }
    }

    fn containers(&self) -> &Containers {
        &self.parts.containers
    }

    /// Name, id and address of each overlay network that a container is on.
    fn networks_of(&self, id: &str) -> Vec<(String, String, String)> {
        let names = self.parts.names.borrow();
        let Some((names, sandbox)) = names
            .as_ref()
            .and_then(|names| Some((names, names.sandboxes.get(id)?)))
        else {
            return Vec::new();
        };
        let attached = sandbox.attachments.iter().filter_map(|one| {
            let network = names.mesh.networks.get(&one.network_id)?;
            let address = network.subnet.with_addr(one.address);
            Some((
                network.name.clone(),
                one.network_id.to_string(),
                address.to_string(),
            ))
        });
        attached.collect()
    }

    async fn image(&self, reference: &str) -> Result<Image, ApiError> {
        let images = self.containers().images();
        let reference: Reference = parse(reference)?;
        if let Some(image) = images.get(&reference.to_string()) {
            return Ok(image);
        }
        images
            .pull(&reference, None, &|_| {})
            .await
            .map_err(|error| unavailable(&error))
    }

    async fn debug_container(
        &self,
        params: &DebugParams,
    ) -> Result<(ContainerPlan, Session), ApiError> {
        let image = self.image(&params.image).await?;
        let request = DebugRequest {
            image: params.image.clone(),
            command: params.command.clone(),
            tty: false,
            stdin: true,
            resolv_conf: Some(resolv_conf()),
        };
        let mut plan = container::debug(
            &request,
            &Surroundings {
                id: draw_id()?,
                now: clock::timestamp(),
                layout: &Layout::default(),
                image_id: &image.id,
                image: &image.config,
                network: None,
                addresses: &[],
            },
        )?;
        add_env(&mut plan, &params.env);
        let containers = self.containers();
        containers
            .create(&plan, &Contents::new())
            .await
            .map_err(|error| unavailable(&error))?;
        let begin = async {
            let session = containers.attach(&plan.id, true, true).await?;
            containers.start(&plan.id).await?;
            Ok(session)
        };
        match begin.await {
            Ok(session) => Ok((plan, session)),
            Err(error) => {
                self.remove(&plan.id).await;
                Err(unavailable(&error))
            }
        }
    }

    /// Makes a debug container and sees it to its end. In a task of its own: a client that goes away while the
    /// container is made leaves nobody else to remove it.
    async fn begin_debug(
        self,
        params: DebugParams,
        permit: OwnedSemaphorePermit,
    ) -> Result<DebugSession, ApiError> {
        let operator = params.operator.as_str();
        let (plan, session) = match self.debug_container(&params).await {
            Ok(begun) => begun,
            Err(error) => {
                tracing::info!(target: "audit", operator, %error, "debug container ends before it runs");
                return Err(error);
            }
        };
        tracing::info!(target: "audit", operator, container = plan.id.short(), "debug container runs");
        let (input, given) = mpsc::channel(DEBUG_PIECES);
        let (sender, output) = mpsc::channel(DEBUG_PIECES);
        tokio::spawn(self.run_debug(plan.id, session, given, sender, permit));
        Ok(DebugSession { input, output })
    }

    async fn remove(&self, id: &ContainerId) {
        if let Err(error) = self.containers().delete(id).await {
            tracing::error!(container = id.short(), error = %error.chain(), "a debug container stays: {}", error.chain());
        }
    }

    /// Carries input and output until the container ends or the client goes away; then nothing of it is left.
    async fn run_debug(
        self,
        id: ContainerId,
        session: Session,
        mut input: mpsc::Receiver<Bytes>,
        output: mpsc::Sender<DebugOutput>,
        permit: OwnedSemaphorePermit,
    ) {
        let Session {
            stdin,
            output: mut said,
            exit,
            ..
        } = session;
        let feed = async {
            if let Some(mut stdin) = stdin {
                while let Some(bytes) = input.recv().await {
                    if stdin.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            }
            // The program may go on without input.
            std::future::pending::<()>().await;
        };
        let listen = async {
            while let Some((stream, bytes)) = said.recv().await {
                let piece = DebugOutput::Bytes(stream_of(stream), bytes);
                if output.send(piece).await.is_err() {
                    return None;
                }
            }
            Some(exit.await)
        };
        let ended = tokio::select! {
            () = feed => None,
            ended = listen => ended,
            () = output.closed() => None,
        };
        let last = match ended {
            Some(Ok(exit)) => DebugOutput::Exit(exit.code),
            Some(Err(error)) => DebugOutput::Failed(error.chain()),
            None => DebugOutput::Failed("the client went away".to_owned()),
        };
        tracing::info!(target: "audit", container = id.short(), ended = ?last, "debug container ends");
        self.remove(&id).await;
        // The client may be gone.
        let _ = output.send(last).await;
        drop(permit);
    }
}

#[async_trait]
impl LocalPort for LocalHandle {
    fn info(&self) -> LocalInfo {
        let resources = machine::resources();
        let config = &self.parts.config;
        LocalInfo {
            name: self.parts.hostname.clone(),
            machine_id: machine::machine_id(),
            platform: machine::platform(),
            kernel: machine::kernel_version(),
            operating_system: machine::operating_system(),
            cpus: u32::try_from(resources.nano_cpus / 1_000_000_000).unwrap_or(1),
            memory: u64::try_from(resources.memory_bytes).unwrap_or(0),
            images: self.containers().images().count(),
            insecure_registries: config.insecure_registries.clone(),
            registry_mirrors: config.registry_mirrors.clone(),
            root: self.parts.state.display().to_string(),
        }
    }

    async fn containers(&self) -> Result<Vec<LocalContainer>, ApiError> {
        let list = self
            .parts
            .containers
            .list()
            .await
            .map_err(|error| unavailable(&error))?;
        let describe = |status: Status| {
            let networks = self.networks_of(status.plan.id.as_str());
            local_container(status, networks)
        };
        Ok(list.into_iter().map(describe).collect())
    }

    async fn logs(&self, id: &str, request: LogsRequest) -> Result<LogStream, ApiError> {
        let missing = || ApiError::NotFound {
            kind: "container",
            reference: id.to_owned(),
        };
        let id = ContainerId::parse(id).ok_or_else(missing)?;
        let query = LogQuery {
            tail: request
                .tail
                .map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
            since: request.since.map_or(0, nanos),
            until: request.until.map_or(0, nanos),
            follow: request.follow,
        };
        let lines = self
            .parts
            .containers
            .logs(&id, query)
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(Box::pin(
            ReceiverStream::new(lines).map(|entry| Ok(log_line(entry))),
        ))
    }

    async fn images(&self) -> Result<Vec<LocalImage>, ApiError> {
        let list = self.parts.containers.images().list();
        Ok(list.into_iter().map(local_image).collect())
    }

    async fn resolve_image(&self, reference: &str) -> Result<ResolvedImage, ApiError> {
        let reference = parse(reference)?;
        let images = self.parts.containers.images();
        let found = images
            .resolve(&reference, None)
            .await
            .map_err(|error| unavailable(&error))?;
        let platform = |(os, architecture)| Platform { architecture, os };
        Ok(ResolvedImage {
            media_type: found.media_type,
            digest: found.digest,
            size: found.size,
            platforms: found.platforms.into_iter().map(platform).collect(),
        })
    }

    async fn debug(&self, params: DebugParams) -> Result<DebugSession, ApiError> {
        let permit = Arc::clone(&self.debugs).try_acquire_owned().map_err(|_| {
            ApiError::Unavailable(format!(
                "{DEBUG_SESSIONS} debug containers run on this node: end one first"
            ))
        })?;
        tracing::info!(
            target: "audit",
            operator = params.operator,
            image = params.image,
            command = ?params.command,
            "debug container asked for"
        );
        let begun = tokio::spawn(self.clone().begin_debug(params, permit)).await;
        begun.unwrap_or_else(|error| Err(ApiError::Unavailable(error.to_string())))
    }
}

/// The node's own name servers: a debug container is on the node's network.
fn resolv_conf() -> String {
    let lines = resolver::name_servers().into_iter();
    lines
        .map(|server| format!("nameserver {server}\n"))
        .collect()
}

fn draw_id() -> Result<ContainerId, ApiError> {
    let mut bytes = [0; 32];
    for half in bytes.chunks_mut(16) {
        let bits = entropy::bits128().map_err(|error| unavailable(&error))?;
        half.copy_from_slice(&bits.to_be_bytes());
    }
    Ok(ContainerId::from_entropy(bytes))
}

/// Sets variables over those of the image.
fn add_env(plan: &mut ContainerPlan, variables: &[String]) {
    let Some(process) = plan.spec.process_mut() else {
        return;
    };
    let mut env = process.env().clone().unwrap_or_default();
    for variable in variables {
        let key = variable.split('=').next().unwrap_or_default();
        env.retain(|other| other.split('=').next() != Some(key));
        env.push(variable.clone());
    }
    process.set_env(Some(env));
}

fn local_container(status: Status, networks: Vec<(String, String, String)>) -> LocalContainer {
    let (state, exit_code, finished) = match &status.phase {
        Phase::Created => (ContainerState::Created, 0, None),
        Phase::Running => (ContainerState::Running, 0, None),
        Phase::Exited(exit) => (
            ContainerState::Exited,
            exit.code,
            Some(moment(exit.finished_at)),
        ),
    };
    let process = status.plan.spec.process().as_ref();
    LocalContainer {
        id: status.plan.id.to_string(),
        args: process
            .and_then(|process| process.args().clone())
            .unwrap_or_default(),
        env: process
            .and_then(|process| process.env().clone())
            .unwrap_or_default(),
        name: status.plan.name,
        image: status.plan.image,
        image_id: status.plan.image_id,
        labels: status.plan.labels,
        state,
        pid: status.pid,
        exit_code,
        created: moment(status.plan.created_at),
        started: (status.started_at > 0).then(|| moment(status.started_at)),
        finished,
        networks,
    }
}

fn local_image(image: Image) -> LocalImage {
    LocalImage {
        id: image.id,
        tags: image.tags,
        digests: image.digests,
        created: moment(image.created),
        size: image.size,
    }
}

fn log_line(entry: LogEntry) -> LogLine {
    LogLine {
        stream: stream_of(entry.stream),
        time: moment(entry.time),
        line: entry.line,
    }
}

fn stream_of(stream: Stream) -> OutputStream {
    match stream {
        Stream::Stdout => OutputStream::Stdout,
        Stream::Stderr => OutputStream::Stderr,
    }
}

fn moment(nanos: u64) -> Timestamp {
    Timestamp(i128::from(nanos))
}

fn nanos(moment: Timestamp) -> u64 {
    u64::try_from(moment.0.max(0)).unwrap_or(u64::MAX)
}

fn parse(reference: &str) -> Result<Reference, ApiError> {
    reference
        .parse()
        .map_err(|error: InvalidReference| ApiError::Invalid {
            field: "Image".to_owned(),
            why: error.to_string(),
        })
}

fn unavailable(error: &HostError) -> ApiError {
    ApiError::Unavailable(error.chain())
}
