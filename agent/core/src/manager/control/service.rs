//! Services: create, update, roll back, remove.

use super::{done, invalid, is_empty, names, ports, task, unsupported};
use crate::{
    api::{
        ApiError, ClusterResponse, Endpoint, Meta, Service, ServiceMode, ServiceSpec, UpdateConfig,
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
    check_mode(&spec.mode)?;
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
            check_update_config(field, config)?;
        }
    }
    if let Some(endpoint) = &spec.endpoint_spec {
        ports::check(endpoint)?;
        ports::check_free(view, endpoint, old)?;
    }
    Ok(spec)
}

fn check_mode(mode: &ServiceMode) -> Result<(), ApiError> {
    let others = [
        ("Mode.Global (--mode global)", &mode.global),
        (
            "Mode.ReplicatedJob (--mode replicated-job)",
            &mode.replicated_job,
        ),
        ("Mode.GlobalJob (--mode global-job)", &mode.global_job),
    ];
    for (field, value) in others {
        // An empty object chooses the mode as well: only an absent one says nothing.
        if value.as_ref().is_some_and(|value| !value.is_null()) {
            return Err(unsupported(field));
        }
    }
    let replicas = mode.replicated.as_ref().and_then(|it| it.replicas);
    match replicas {
        Some(many) if many > MAX_REPLICAS => Err(invalid(
            "Mode.Replicated.Replicas",
            format!("{many} is too many: give at most {MAX_REPLICAS}"),
        )),
        Some(_) | None => Ok(()),
    }
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
