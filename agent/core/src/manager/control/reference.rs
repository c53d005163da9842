//! `TaskTemplate.ContainerSpec.Secrets` and `.Configs`: how a service refers to secrets and configs.

use std::{collections::BTreeMap, path::PathBuf};

use super::{container::FIELD, invalid, names::check_count, unsupported};
use crate::{
    api::{
        ApiError, ContainerSpec, DependencyId, FileTarget, Payload,
        dependency::{Kind, MAX_TASK_CONTENT, Reference},
    },
    store::View,
};

/// The bits of a mode that a file can have.
const MODE_BITS: u32 = 0o7777;

/// Checks the references against the store, and writes out what they leave to the default.
pub(super) fn check(view: &View, spec: &mut ContainerSpec) -> Result<(), ApiError> {
    check_count(&format!("{FIELD}.Secrets"), spec.secrets.len())?;
    check_count(&format!("{FIELD}.Configs"), spec.configs.len())?;
    for (position, config) in spec.configs.iter_mut().enumerate() {
        if config.runtime.as_ref().is_some_and(|it| !it.is_null()) {
            return Err(unsupported(format!("{FIELD}.Configs[{position}].Runtime")));
        }
        config.runtime = None;
    }
    let secrets = spec.secrets.iter_mut().map(|one| &mut one.file);
    let configs = spec.configs.iter_mut().map(|one| &mut one.file);
    for file in secrets.chain(configs).flatten() {
        for number in [&mut file.uid, &mut file.gid] {
            if number.is_empty() {
                "0".clone_into(number);
            }
        }
    }
    let mounts = spec.mounts.iter();
    let mounts = mounts.map(|mount| {
        let target = mount.target.trim_end_matches('/');
        (PathBuf::from(target), format!("mount {target}"))
    });
    let mut targets: BTreeMap<PathBuf, String> = mounts.collect();
    let mut content = 0;
    let mut positions = [0, 0];
    for reference in spec.references() {
        let (list, position) = match reference.kind {
            Kind::Secret => ("Secrets", &mut positions[0]),
            Kind::Config => ("Configs", &mut positions[1]),
        };
        let field = format!("{FIELD}.{list}[{position}]");
        *position += 1;
        check_target(&field, &reference, &mut targets)?;
        content += find(view, &field, &reference)?.len();
    }
    if content > MAX_TASK_CONTENT {
        return Err(invalid(
            format!("{FIELD}.Secrets"),
            format!(
                "secrets and configs of {content} bytes are too much for a task: give at most {MAX_TASK_CONTENT}"
            ),
        ));
    }
    Ok(())
}

fn check_target(
    field: &str,
    reference: &Reference<'_>,
    targets: &mut BTreeMap<PathBuf, String>,
) -> Result<(), ApiError> {
    let kind = reference.kind.as_str();
    let Some(file) = reference.file else {
        return Err(invalid(
            format!("{field}.File"),
            format!("malformed {kind} reference, no target provided: give File"),
        ));
    };
    let path = reference.path();
    let path = path.map_err(|why| invalid(format!("{field}.File.Name"), why))?;
    check_owner(&format!("{field}.File"), file)?;
    let shown = path.display().to_string();
    let this = format!("{kind} {}", reference.name);
    match targets.insert(path, this.clone()) {
        None => Ok(()),
        Some(other) => Err(invalid(
            format!("{field}.File.Name"),
            format!("{this} and {other} have a conflicting target: {shown}"),
        )),
    }
}

fn check_owner(field: &str, file: &FileTarget) -> Result<(), ApiError> {
    for (name, number) in [("UID", &file.uid), ("GID", &file.gid)] {
        // The highest number stands for «nobody in particular» in system calls.
        let good = number.parse::<u32>().is_ok_and(|it| it != u32::MAX);
        if !good {
            let shown: String = number.chars().take(32).collect();
            return Err(invalid(
                format!("{field}.{name}"),
                format!("{shown:?} is not a number from 0 to {}", u32::MAX - 1),
            ));
        }
    }
    match file.mode & !MODE_BITS {
        0 => Ok(()),
        _ => Err(invalid(
            format!("{field}.Mode"),
            format!("{:#o} is more than {MODE_BITS:#o}", file.mode),
        )),
    }
}

/// The content of what a reference names; id and name must belong to one object.
fn find<'a>(
    view: &'a View,
    field: &str,
    reference: &Reference<'_>,
) -> Result<&'a Payload, ApiError> {
    let kind = reference.kind.as_str();
    if reference.id.is_empty() || reference.name.is_empty() {
        return Err(invalid(
            field,
            format!("malformed {kind} reference: give id and name of the {kind}"),
        ));
    }
    let found = match reference.dependency() {
        Some(DependencyId::Secret(id)) => view
            .secret(&id)
            .map(|secret| (&secret.spec.name, &secret.spec.data)),
        Some(DependencyId::Config(id)) => view
            .config(&id)
            .map(|config| (&config.spec.name, &config.spec.data)),
        None => None,
    };
    match found {
        Some((name, data)) if name == reference.name => Ok(data),
        Some(_) | None => {
            let shown: String = reference.name.chars().take(128).collect();
            Err(invalid(field, format!("{kind} not found: {shown}")))
        }
    }
}
