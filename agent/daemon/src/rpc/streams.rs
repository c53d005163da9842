//! What goes on inside a session, each stream for itself: the first one that ends, ends the session.

use std::{sync::Arc, time::Duration};

use skep_core::{
    api::{DependencyId, NodeDescription, Task, TaskState, TaskStatus, protobuf},
    id::Id,
    manager::mesh::MeshDelta,
    network::MeshMap,
    node::Input,
    wire::{
        skep::{self, mesh_request, mesh_response},
        swarmkit as pb,
    },
    worker::assignments::{AssignmentChange, Assignments},
};
use skep_host::clock;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

use super::{
    MAX_CLIENT_MESSAGE,
    services::{skep::mesh_client::MeshClient, swarmkit::dispatcher_client::DispatcherClient},
    session::{CALL, End, Report},
};

/// Pause before a stream is opened again inside a session.
const REOPEN: Duration = Duration::from_millis(200);
/// How often the node looks whether its description has changed.
const DESCRIBE: Duration = Duration::from_secs(20);

/// The first heartbeat at once, each next one when the manager says. A changed description begins a new
/// session.
pub(super) async fn heartbeats(
    mut client: DispatcherClient<Channel>,
    session: &str,
    describe: Arc<dyn Fn() -> NodeDescription + Send + Sync>,
    description: NodeDescription,
) -> End {
    let mut described = clock::now();
    loop {
        let request = pb::HeartbeatRequest {
            session_id: session.to_owned(),
        };
        let answer = match timeout(CALL, client.heartbeat(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return status.into(),
            Err(_) => return End::Failed("the manager does not answer heartbeats".to_owned()),
        };
        let period = answer.period.unwrap_or_default();
        let period = protobuf::read_duration(&period, "period").unwrap_or(CALL);
        sleep(period.max(Duration::from_millis(10))).await;
        if clock::now().since(described) >= DESCRIBE {
            described = clock::now();
            if describe() != description {
                return End::Failed("this node's description has changed".to_owned());
            }
        }
    }
}

pub(super) async fn follow_assignments(
    mut client: DispatcherClient<Channel>,
    session: &str,
    inputs: &mpsc::Sender<Input>,
    reopen: &Notify,
) -> End {
    loop {
        let request = pb::AssignmentsRequest {
            session_id: session.to_owned(),
        };
        let mut stream = match client.assignments(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return status.into(),
        };
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                () = reopen.notified() => break,
            };
            match message {
                Ok(Some(message)) => {
                    let (assignments, refused) = read_assignments(message);
                    if inputs.send(Input::Assignments(assignments)).await.is_err() {
                        return End::Stopped;
                    }
                    if !refused.is_empty() {
                        let updates = refused;
                        let session_id = session.to_owned();
                        let request = pb::UpdateTaskStatusRequest {
                            session_id,
                            updates,
                        };
                        if let Err(status) = client.update_task_status(request).await {
                            return status.into();
                        }
                    }
                }
                Ok(None) => return End::Failed("the manager ended the assignments".to_owned()),
                Err(status) => return status.into(),
            }
        }
        sleep(REOPEN).await;
    }
}

type Refused = Vec<pb::update_task_status_request::TaskStatusUpdate>;

/// What a message assigns, and reports for the tasks that this node cannot honour.
fn read_assignments(message: pb::AssignmentsMessage) -> (Assignments, Refused) {
    let complete = message.r#type() == pb::assignments_message::Type::Complete;
    let mut refused = Vec::new();
    let mut changes = Vec::new();
    for change in message.changes {
        let update = change.action() == pb::assignment_change::AssignmentAction::Update;
        match change.assignment.and_then(|assignment| assignment.item) {
            Some(pb::assignment::Item::Task(task)) if update => match read_task(task) {
                Ok(change) => changes.push(change),
                Err(report) => refused.push(*report),
            },
            Some(pb::assignment::Item::Task(task)) => {
                changes.extend(task.id.parse().map(AssignmentChange::Remove));
            }
            Some(pb::assignment::Item::Secret(secret)) if update => {
                changes.extend(read_secret(secret));
            }
            Some(pb::assignment::Item::Secret(secret)) => {
                let id = secret.id.parse().map(DependencyId::Secret);
                changes.extend(id.map(AssignmentChange::Withdraw));
            }
            Some(pb::assignment::Item::Config(config)) if update => {
                changes.extend(read_config(config));
            }
            Some(pb::assignment::Item::Config(config)) => {
                let id = config.id.parse().map(DependencyId::Config);
                changes.extend(id.map(AssignmentChange::Withdraw));
            }
            // Volumes are not supported: tasks that need them are refused by name.
            Some(pb::assignment::Item::Volume(_)) | None => {}
        }
    }
    let assignments = match complete {
        true => whole(message.results_in, changes),
        false => Assignments::Incremental {
            applies_to: message.applies_to,
            results_in: message.results_in,
            changes,
        },
    };
    (assignments, refused)
}

/// A complete set: what is removed in it is not there anyway.
fn whole(results_in: String, changes: Vec<AssignmentChange>) -> Assignments {
    let (mut tasks, mut dependencies) = (Vec::new(), Vec::new());
    for change in changes {
        match change {
            AssignmentChange::Update(task) => tasks.push(*task),
            AssignmentChange::Provide(id, content) => dependencies.push((id, content)),
            AssignmentChange::Remove(_) | AssignmentChange::Withdraw(_) => {}
        }
    }
    Assignments::Complete {
        results_in,
        tasks,
        dependencies,
    }
}

fn read_task(
    task: pb::Task,
) -> Result<AssignmentChange, Box<pb::update_task_status_request::TaskStatusUpdate>> {
    let id = task.id.clone();
    match protobuf::read_task(task) {
        Ok(task) => Ok(AssignmentChange::Update(Box::new(task))),
        Err(error) => {
            tracing::error!(task.id = %id, %error, "a task cannot be honoured: {error}");
            Err(Box::new(rejection(id, &error)))
        }
    }
}

/// One that cannot be read is as good as one that was not sent: the tasks that need it say so.
fn read_secret(secret: pb::Secret) -> Option<AssignmentChange> {
    match protobuf::read_secret(secret) {
        Ok(secret) => Some(AssignmentChange::Provide(
            DependencyId::Secret(secret.id),
            secret.spec.data,
        )),
        Err(error) => {
            tracing::error!(%error, "a secret of a manager is refused: {error}");
            None
        }
    }
}

fn read_config(config: pb::Config) -> Option<AssignmentChange> {
    match protobuf::read_config(config) {
        Ok(config) => Some(AssignmentChange::Provide(
            DependencyId::Config(config.id),
            config.spec.data,
        )),
        Err(error) => {
            tracing::error!(%error, "a config of a manager is refused: {error}");
            None
        }
    }
}

fn rejection(
    task_id: String,
    error: &protobuf::MessageError,
) -> pb::update_task_status_request::TaskStatusUpdate {
    let status = TaskStatus {
        timestamp: clock::timestamp(),
        state: TaskState::Rejected,
        message: "rejected".to_owned(),
        err: error.to_string(),
        ..TaskStatus::default()
    };
    pb::update_task_status_request::TaskStatusUpdate {
        task_id,
        status: Some(protobuf::status(&status)),
    }
}

pub(super) async fn send_reports(
    mut client: DispatcherClient<Channel>,
    session: &str,
    inputs: &mpsc::Sender<Input>,
    reports: &mut mpsc::Receiver<Report>,
) -> End {
    while let Some((batch, statuses)) = reports.recv().await {
        let update = |(task, status): (Id<Task>, TaskStatus)| {
            pb::update_task_status_request::TaskStatusUpdate {
                task_id: task.to_string(),
                status: Some(protobuf::status(&status)),
            }
        };
        let request = pb::UpdateTaskStatusRequest {
            session_id: session.to_owned(),
            updates: statuses.into_iter().map(update).collect(),
        };
        let answer = timeout(CALL, client.update_task_status(request)).await;
        let accepted = matches!(answer, Ok(Ok(_)));
        if inputs
            .send(Input::StatusDone { batch, accepted })
            .await
            .is_err()
        {
            return End::Stopped;
        }
        match answer {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => return status.into(),
            Err(_) => return End::Failed("the manager does not take reports".to_owned()),
        }
    }
    End::Stopped
}

/// The map of this node's networks: the stream is opened again whenever it breaks, as long as the
/// session stands.
pub(super) async fn follow_mesh(
    channel: Channel,
    inputs: &mpsc::Sender<Input>,
    applied: &mut watch::Receiver<u64>,
) -> End {
    let mut client = MeshClient::new(channel).max_decoding_message_size(MAX_CLIENT_MESSAGE);
    loop {
        match watch_mesh(&mut client, inputs, applied).await {
            Ok(()) => {}
            // A Docker manager has no mesh to tell of; the session is of use all the same.
            Err(status) if status.code() == Code::Unimplemented => {
                std::future::pending::<()>().await;
            }
            // What does not fit is sent anew, complete.
            Err(status) if status.code() == Code::DataLoss => {
                tracing::warn!(error = status.message(), "the mesh is asked for again");
            }
            Err(status) => return status.into(),
        }
        sleep(REOPEN).await;
    }
}

async fn watch_mesh(
    client: &mut MeshClient<Channel>,
    inputs: &mpsc::Sender<Input>,
    applied: &mut watch::Receiver<u64>,
) -> Result<(), Status> {
    let (sender, receiver) = mpsc::channel(16);
    let say = |kind| skep::MeshRequest { kind: Some(kind) };
    let _ = sender.send(say(mesh_request::Kind::Subscribe(0))).await;
    let mut stream = client
        .watch(ReceiverStream::new(receiver))
        .await?
        .into_inner();
    let mut map: Option<MeshMap> = None;
    applied.mark_changed();
    loop {
        tokio::select! {
            message = stream.message() => match message?.and_then(|message| message.kind) {
                Some(mesh_response::Kind::Update(update)) => {
                    let newer = read_update(map.as_ref(), &update)?;
                    map = Some(newer.clone());
                    let _ = inputs.send(Input::Mesh(Arc::new(newer))).await;
                }
                Some(mesh_response::Kind::Settled(version)) => {
                    let _ = inputs.send(Input::MeshSettled(version)).await;
                }
                None => return Ok(()),
            },
            changed = applied.changed() => {
                let version = *applied.borrow_and_update();
                let message = say(mesh_request::Kind::Applied(version));
                if changed.is_err() || sender.send(message).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

fn read_update(known: Option<&MeshMap>, update: &skep::MeshUpdate) -> Result<MeshMap, Status> {
    let malformed = |error: &dyn std::fmt::Display| Status::data_loss(format!("mesh map: {error}"));
    match (update.base, known) {
        (0, _) => serde_json::from_slice(&update.document).map_err(|error| malformed(&error)),
        (_, None) => Err(Status::data_loss("a difference came before the map")),
        (_, Some(known)) => {
            let delta: MeshDelta =
                serde_json::from_slice(&update.document).map_err(|error| malformed(&error))?;
            delta.apply(known).map_err(|error| malformed(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn task(id: u128) -> pb::Task {
        pb::Task {
            id: Id::<Task>::from_entropy(id).to_string(),
            service_id: Id::<Task>::from_entropy(9).to_string(),
            spec: Some(pb::TaskSpec {
                runtime: Some(pb::task_spec::Runtime::Container(
                    pb::ContainerSpec::default(),
                )),
                ..pb::TaskSpec::default()
            }),
            ..pb::Task::default()
        }
    }

    fn change(
        task: pb::Task,
        action: pb::assignment_change::AssignmentAction,
    ) -> pb::AssignmentChange {
        pb::AssignmentChange {
            assignment: Some(pb::Assignment {
                item: Some(pb::assignment::Item::Task(task)),
            }),
            action: action.into(),
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_reported_and_the_rest_goes_on() {
        let update = pb::assignment_change::AssignmentAction::Update;
        let mut foreign = task(2);
        foreign.volumes.push(pb::VolumeAttachment::default());
        let secret = |id: String| pb::AssignmentChange {
            assignment: Some(pb::Assignment {
                item: Some(pb::assignment::Item::Secret(pb::Secret {
                    id,
                    spec: Some(pb::SecretSpec {
                        data: b"x".to_vec(),
                        ..pb::SecretSpec::default()
                    }),
                    ..pb::Secret::default()
                })),
            }),
            action: update.into(),
        };
        let known = Id::from_entropy(5);
        let message = pb::AssignmentsMessage {
            r#type: pb::assignments_message::Type::Complete.into(),
            results_in: "1".to_owned(),
            changes: vec![
                secret(known.to_string()),
                secret("of.a.driver".to_owned()),
                change(task(1), update),
                change(foreign, update),
            ],
            ..pb::AssignmentsMessage::default()
        };
        let (assignments, refused) = read_assignments(message);
        let Assignments::Complete {
            tasks,
            dependencies,
            results_in,
        } = assignments
        else {
            panic!("complete");
        };
        assert_eq!(results_in, "1");
        let provided = (DependencyId::Secret(known), b"x".to_vec().into());
        assert_eq!(dependencies, [provided]);
        assert_eq!(tasks.len(), 1);
        assert_eq!(refused.len(), 1);
        let status = refused[0].status.as_ref().unwrap();
        assert_eq!(status.state(), pb::TaskState::Rejected);
        assert!(status.err.contains("volumes"), "{}", status.err);
    }

    #[test]
    fn secrets_and_configs_come_and_go() {
        let item = |item, action: pb::assignment_change::AssignmentAction| pb::AssignmentChange {
            assignment: Some(pb::Assignment { item: Some(item) }),
            action: action.into(),
        };
        let id = Id::<Task>::from_entropy(5);
        let config = pb::Config {
            id: id.to_string(),
            ..pb::Config::default()
        };
        let secret = pb::Secret {
            id: id.to_string(),
            ..pb::Secret::default()
        };
        let (update, remove) = (
            pb::assignment_change::AssignmentAction::Update,
            pb::assignment_change::AssignmentAction::Remove,
        );
        let message = pb::AssignmentsMessage {
            r#type: pb::assignments_message::Type::Incremental.into(),
            changes: vec![
                item(pb::assignment::Item::Config(config), update),
                item(pb::assignment::Item::Secret(secret), remove),
            ],
            ..pb::AssignmentsMessage::default()
        };
        let (Assignments::Incremental { changes, .. }, _) = read_assignments(message) else {
            panic!("incremental");
        };
        let wanted = [
            AssignmentChange::Provide(DependencyId::Config(Id::from_entropy(5)), Vec::new().into()),
            AssignmentChange::Withdraw(DependencyId::Secret(Id::from_entropy(5))),
        ];
        assert_eq!(changes, wanted);
    }

    #[test]
    fn a_difference_needs_its_map() {
        let update = skep::MeshUpdate {
            version: 2,
            base: 1,
            document: b"{}".to_vec(),
        };
        assert!(read_update(None, &update).is_err());
        let other = MeshMap {
            version: 7,
            ..MeshMap::default()
        };
        assert!(read_update(Some(&other), &update).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_manager_break_the_node(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(message) = pb::AssignmentsMessage::decode(bytes.as_slice()) {
                let _ = read_assignments(message);
            }
            let update = skep::MeshUpdate { version: 1, base: 0, document: bytes };
            let _ = read_update(None, &update);
        }
    }
}
