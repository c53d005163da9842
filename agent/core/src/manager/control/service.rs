//! Services: create, update, roll back, remove.

use super::{done, invalid, is_empty, names, ports, task, unsupported};
use crate::{
    api::{
        ApiError, ClusterResponse, Endpoint, JobStatus, Meta, ModeKind, Service, ServiceMode,
        ServiceSpec, UpdateConfig, service::Replicated,
    },
    id::Id,
    manager::{Ctx, orchestrator::update, query},
    store::{Change, Proposal, View},
};

/// More replicas of one service than any cluster runs.
const MAX_REPLICAS: u64 = 1_000_000;

type Answer = Result<(Proposal, ClusterResponse), ApiError>;

pub(super) fn create(view: &View, spec: &ServiceSpec, ctx: &mut Ctx) -> Answer {
    let mut spec = spec.clone();
    if spec.name.is_empty() {
        spec.name = names::random_name(view, &mut ctx.rng);
    }
    let spec = checked(view, spec, None)?;
    if let Some(other) = view.service_named(&spec.name) {
        return Err(ApiError::Conflict(format!(
            "name conflicts with an existing object: service {} already exists",
            other.spec.name
        )));
    }
    let id = Id::draw(&mut ctx.rng);
    let job_status = spec.mode.kind().is_job().then_some(JobStatus {
        job_iteration: 0,
        last_execution: ctx.now,
    });
    let service = Service {
        id: id.clone(),
        meta: Meta {
            version: 0,
            created_at: ctx.now,
            updated_at: ctx.now,
        },
        spec,
        previous_spec: None,
        spec_version: 0,
        endpoint: Endpoint::default(),
        update_status: None,
        job_status,
        pending_delete: false,
    };
    let proposal = Proposal::of([Change::put_service(service)]);
    Ok((proposal, ClusterResponse::ServiceCreated(id)))
}

pub(super) fn update(
    view: &View,
    reference: &str,
    version: u64,
    spec: &ServiceSpec,
    rollback: bool,
    ctx: &mut Ctx,
) -> Answer {
    let old = query::find_service(view, reference)?;
    if old.meta.version != version {
        return Err(ApiError::OutOfSequence);
    }
    let mut service = Service::clone(&old);
    service.meta.updated_at = ctx.now;
    // Whatever an update changes, the job runs again.
    if let Some(job) = &mut service.job_status {
        job.job_iteration += 1;
        job.last_execution = ctx.now;
    }
    if rollback {
        let Some(previous) = &service.previous_spec else {
            return Err(ApiError::Precondition(format!(
                "service {} does not have a previous spec",
                old.spec.name
            )));
        };
        // What was free then may be taken now.
        let previous = checked(view, previous.clone(), Some(&old))?;
        service.previous_spec = Some(previous);
        update::roll_back(&mut service, ctx.now, "manually requested rollback");
        if service.job_status.is_some() {
            // A job does not roll: it runs again as a whole.
            service.update_status = None;
        }
        return Ok((Proposal::of([Change::put_service(service)]), done()));
    }
    let mut spec = spec.clone();
    if spec.name.is_empty() {
        spec.name.clone_from(&old.spec.name);
    }
    if spec.name != old.spec.name {
        return Err(unsupported(format!(
            "renaming service {} to {}",
            old.spec.name, spec.name
        )));
    }
    if spec.mode.kind() != old.spec.mode.kind() {
        return Err(ApiError::Precondition(format!(
            "service mode change is not allowed: {} is {}; remove it and create it anew",
            old.spec.name,
            old.spec.mode.kind().as_str()
        )));
    }
    let spec = checked(view, spec, Some(&old))?;
    let same_tasks = spec.task_template == old.spec.task_template
        && spec.endpoint_spec == old.spec.endpoint_spec;
    if !same_tasks {
        // Larger than at any earlier change, since the object's version grew with each of them.
        service.spec_version = old.meta.version;
    }
    service.previous_spec = Some(std::mem::replace(&mut service.spec, spec));
    service.update_status = None;
    Ok((Proposal::of([Change::put_service(service)]), done()))
}

pub(super) fn remove(view: &View, reference: &str, ctx: &mut Ctx) -> Answer {
    let service = query::find_service(view, reference)?;
    let mut service = Service::clone(&service);
    service.pending_delete = true;
    service.meta.updated_at = ctx.now;
    Ok((Proposal::of([Change::put_service(service)]), done()))
}

/// The spec in the form in which it is kept, or why it can't be. `old` is the service that it replaces.
fn checked(
    view: &View,
    mut spec: ServiceSpec,
    old: Option<&Service>,
) -> Result<ServiceSpec, ApiError> {
    names::check_name("Name", &spec.name)?;
    names::check_labels("Labels", &spec.labels)?;
    // Each task carries them too.
    names::check_size("Labels", &spec.labels)?;
    check_mode(&mut spec.mode)?;
    // Clients before API 1.44 name the networks here.
    if spec.task_template.networks.is_empty() {
        spec.task_template.networks = std::mem::take(&mut spec.networks);
    } else {
        spec.networks.clear();
    }
    task::check(view, &mut spec.task_template)?;
    for (field, config) in [
        ("UpdateConfig", &spec.update_config),
        ("RollbackConfig", &spec.rollback_config),
    ] {
        if let Some(config) = config {
            if spec.mode.kind().is_job() {
                let why = "update and rollback configuration is not supported for jobs";
                return Err(invalid(field, format!("{why}: leave it out")));
            }
            check_update_config(field, config)?;
        }
    }
    if let Some(endpoint) = &spec.endpoint_spec {
        ports::check(endpoint)?;
        ports::check_free(view, endpoint, old)?;
    }
    Ok(spec)
}

/// Checks a mode and writes out its numbers, which clients expect in what they read.
fn check_mode(mode: &mut ServiceMode) -> Result<(), ApiError> {
    let given = [
        mode.replicated.is_some(),
        mode.global.is_some(),
        mode.replicated_job.is_some(),
        mode.global_job.is_some(),
    ];
    if given.into_iter().filter(|given| *given).count() > 1 {
        return Err(invalid("Mode", "must specify only one service mode"));
    }
    let kind = mode.kind();
    if kind == ModeKind::Replicated {
        let replicated = mode.replicated.get_or_insert_with(Replicated::default);
        let replicas = replicated.replicas.get_or_insert(1);
        check_number("Mode.Replicated.Replicas", *replicas)?;
    }
    if let Some(job) = &mut mode.replicated_job {
        let (concurrent, total) = (job.concurrent(), job.total());
        check_number("Mode.ReplicatedJob.MaxConcurrent", concurrent)?;
        check_number("Mode.ReplicatedJob.TotalCompletions", total)?;
        if concurrent == 0 && total > 0 {
            return Err(invalid(
                "Mode.ReplicatedJob.MaxConcurrent",
                format!("with 0 none of {total} tasks can ever start: give 1 or more"),
            ));
        }
        (job.max_concurrent, job.total_completions) = (Some(concurrent), Some(total));
    }
    Ok(())
}

fn check_number(field: &str, number: u64) -> Result<(), ApiError> {
    if number > MAX_REPLICAS {
        return Err(invalid(
            field,
            format!("{number} is too many: give at most {MAX_REPLICAS}"),
        ));
    }
    Ok(())
}

fn check_update_config(field: &str, config: &UpdateConfig) -> Result<(), ApiError> {
    let of_rollback = field == "RollbackConfig";
    match config.failure_action.as_str() {
        "" | "pause" | "continue" => {}
        "rollback" if !of_rollback => {}
        other => {
            let choice = if of_rollback {
                "pause or continue"
            } else {
                "pause, continue or rollback"
            };
            return Err(invalid(
                format!("{field}.FailureAction"),
                format!("unrecognized update failure action {other:?}: use {choice}"),
            ));
        }
    }
    if !["", "stop-first", "start-first"].contains(&config.order.as_str()) {
        return Err(invalid(
            format!("{field}.Order"),
            format!(
                "{:?} is no order: use stop-first or start-first",
                config.order
            ),
        ));
    }
    if !(0.0..=1.0).contains(&config.max_failure_ratio) {
        return Err(invalid(
            format!("{field}.MaxFailureRatio"),
            format!("{} is not from 0 to 1", config.max_failure_ratio),
        ));
    }
    Ok(())
}

/// Refuses a JSON value that says anything.
pub(super) fn refuse(field: &str, value: Option<&serde_json::Value>) -> Result<(), ApiError> {
    match value {
        Some(value) if !is_empty(value) => Err(unsupported(field)),
        Some(_) | None => Ok(()),
    }
}
