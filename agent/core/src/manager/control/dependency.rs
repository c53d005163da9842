//! Secrets and configs: create, update of labels, remove.

use serde_json::Value;

use super::{done, invalid, is_empty, names, unsupported};
use crate::{
    api::{
        ApiError, ClusterResponse, Config, ConfigSpec, DependencyId, Labels, Meta, Payload, Secret,
        SecretSpec,
        dependency::{Kind, MAX_CONFIG, MAX_SECRET},
    },
    id::Id,
    manager::{Ctx, query},
    store::{Change, ObjectId, Proposal, View, in_use},
};

/// The longest name of a secret or config.
const MAX_NAME: usize = 64;

type Answer = Result<(Proposal, ClusterResponse), ApiError>;

pub(super) fn create_secret(view: &View, spec: &SecretSpec, ctx: &mut Ctx) -> Answer {
    let kind = Kind::Secret;
    refuse("Driver (--driver)", spec.driver.as_ref())?;
    check(kind, &spec.name, &spec.data, spec.templating.as_ref())?;
    names::check_labels("Labels", &spec.labels)?;
    if view.secret_named(&spec.name).is_some() {
        return Err(taken(kind, &spec.name));
    }
    let id = Id::draw(&mut ctx.rng);
    let secret = Secret {
        id: id.clone(),
        meta: fresh(ctx),
        spec: SecretSpec {
            driver: None,
            templating: None,
            ..spec.clone()
        },
    };
    let proposal = Proposal::of([Change::put_secret(secret)]);
    Ok((proposal, ClusterResponse::SecretCreated(id)))
}

pub(super) fn create_config(view: &View, spec: &ConfigSpec, ctx: &mut Ctx) -> Answer {
    let kind = Kind::Config;
    check(kind, &spec.name, &spec.data, spec.templating.as_ref())?;
    names::check_labels("Labels", &spec.labels)?;
    if view.config_named(&spec.name).is_some() {
        return Err(taken(kind, &spec.name));
    }
    let id = Id::draw(&mut ctx.rng);
    let config = Config {
        id: id.clone(),
        meta: fresh(ctx),
        spec: ConfigSpec {
            templating: None,
            ..spec.clone()
        },
    };
    let proposal = Proposal::of([Change::put_config(config)]);
    Ok((proposal, ClusterResponse::ConfigCreated(id)))
}

pub(super) fn update_secret(
    view: &View,
    reference: &str,
    version: u64,
    spec: &SecretSpec,
    ctx: &mut Ctx,
) -> Answer {
    let mut secret = Secret::clone(&*query::find_secret(view, reference)?);
    let same = spec.name == secret.spec.name
        && is_unchanged(&spec.data, &secret.spec.data)
        && says_nothing(spec.driver.as_ref())
        && says_nothing(spec.templating.as_ref());
    check_update(secret.meta.version, version, same, &spec.labels)?;
    secret.spec.labels.clone_from(&spec.labels);
    secret.meta.updated_at = ctx.now;
    Ok((Proposal::of([Change::put_secret(secret)]), done()))
}

pub(super) fn update_config(
    view: &View,
    reference: &str,
    version: u64,
    spec: &ConfigSpec,
    ctx: &mut Ctx,
) -> Answer {
    let mut config = Config::clone(&*query::find_config(view, reference)?);
    let same = spec.name == config.spec.name
        && is_unchanged(&spec.data, &config.spec.data)
        && says_nothing(spec.templating.as_ref());
    check_update(config.meta.version, version, same, &spec.labels)?;
    config.spec.labels.clone_from(&spec.labels);
    config.meta.updated_at = ctx.now;
    Ok((Proposal::of([Change::put_config(config)]), done()))
}

pub(super) fn remove_secret(view: &View, reference: &str) -> Answer {
    let secret = query::find_secret(view, reference)?;
    let dependency = DependencyId::Secret(secret.id.clone());
    check_unused(view, Kind::Secret, &dependency, &secret.spec.name)?;
    let proposal = Proposal::of([Change::Delete {
        object: ObjectId::Secret(secret.id.clone()),
        version: secret.meta.version,
    }]);
    Ok((proposal, done()))
}

pub(super) fn remove_config(view: &View, reference: &str) -> Answer {
    let config = query::find_config(view, reference)?;
    let dependency = DependencyId::Config(config.id.clone());
    check_unused(view, Kind::Config, &dependency, &config.spec.name)?;
    let proposal = Proposal::of([Change::Delete {
        object: ObjectId::Config(config.id.clone()),
        version: config.meta.version,
    }]);
    Ok((proposal, done()))
}

fn fresh(ctx: &Ctx) -> Meta {
    Meta {
        version: 0,
        created_at: ctx.now,
        updated_at: ctx.now,
    }
}

fn taken(kind: Kind, name: &str) -> ApiError {
    ApiError::Conflict(format!("{} {name} already exists", kind.as_str()))
}

fn says_nothing(value: Option<&Value>) -> bool {
    value.is_none_or(is_empty)
}

fn refuse(field: &str, value: Option<&Value>) -> Result<(), ApiError> {
    match says_nothing(value) {
        true => Ok(()),
        false => Err(unsupported(field)),
    }
}

fn check(
    kind: Kind,
    name: &str,
    data: &Payload,
    templating: Option<&Value>,
) -> Result<(), ApiError> {
    refuse("Templating (--template-driver)", templating)?;
    if !is_name(name) {
        let shown: String = name.chars().take(80).collect();
        return Err(invalid(
            "Name",
            format!(
                "{shown:?}: use at most {MAX_NAME} of [a-zA-Z0-9-_.], with a letter or digit at both ends"
            ),
        ));
    }
    let limit = match kind {
        Kind::Secret => MAX_SECRET,
        Kind::Config => MAX_CONFIG,
    };
    if data.is_empty() || data.len() >= limit {
        return Err(invalid(
            "Data",
            format!(
                "{} data must be larger than 0 and less than {limit} bytes, not {}",
                kind.as_str(),
                data.len()
            ),
        ));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    bytes.len() <= MAX_NAME && ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(inner)
}

/// Whether an update leaves the content alone: clients that have read a secret have no content to send.
fn is_unchanged(new: &Payload, old: &Payload) -> bool {
    new.is_empty() || new.is_same(old)
}

fn check_update(found: u64, read: u64, same: bool, labels: &Labels) -> Result<(), ApiError> {
    if found != read {
        return Err(ApiError::OutOfSequence);
    }
    if !same {
        return Err(invalid(
            "Spec",
            "only updates to Labels are allowed: make another one under another name",
        ));
    }
    names::check_labels("Labels", labels)
}

fn check_unused(
    view: &View,
    kind: Kind,
    dependency: &DependencyId,
    name: &str,
) -> Result<(), ApiError> {
    let services = view.users_of(dependency);
    match services.is_empty() {
        true => Ok(()),
        false => Err(ApiError::Precondition(in_use(
            kind.as_str(),
            name,
            &services,
        ))),
    }
}
