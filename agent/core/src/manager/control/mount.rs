//! `TaskTemplate.ContainerSpec.Mounts`.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    invalid, is_empty, is_template,
    names::{check_count, check_text},
    unsupported,
};
use crate::api::{ApiError, Mount, MountType, container::TmpfsOptions};

/// The propagations of a bind mount.
const PROPAGATIONS: [&str; 6] = [
    "private", "rprivate", "shared", "rshared", "slave", "rslave",
];

pub(super) fn check_all(field: &str, mounts: &[Mount]) -> Result<(), ApiError> {
    check_count(field, mounts.len())?;
    let mut targets = BTreeSet::new();
    for (position, mount) in mounts.iter().enumerate() {
        let field = format!("{field}[{position}]");
        check(&field, mount)?;
        if !targets.insert(mount.target.trim_end_matches('/')) {
            return Err(invalid(
                format!("{field}.Target"),
                format!("duplicate mount point: {}", mount.target),
            ));
        }
    }
    Ok(())
}

fn check(field: &str, mount: &Mount) -> Result<(), ApiError> {
    match mount.kind {
        MountType::Bind | MountType::Volume | MountType::Tmpfs => {}
        MountType::Npipe => return Err(unsupported(format!("{field}.Type npipe"))),
        MountType::Cluster => return Err(unsupported(format!("{field}.Type cluster"))),
        MountType::Image => return Err(unsupported(format!("{field}.Type image"))),
    }
    for (name, text) in [("Source", &mount.source), ("Target", &mount.target)] {
        check_text(&format!("{field}.{name}"), text)?;
        // Docker fills templates in on the node; here they would become part of the path.
        if is_template(text) {
            return Err(unsupported(format!("{field}.{name} with a template")));
        }
    }
    if !is_clean(&mount.target) || mount.target == "/" {
        return Err(invalid(
            format!("{field}.Target"),
            format!(
                "{:?} is not an absolute path below / without ..",
                mount.target
            ),
        ));
    }
    check_source(field, mount)?;
    // Linux has no use for it, and neither has Docker there; what is not Docker's is a mistake.
    if !["", "default", "consistent", "cached", "delegated"].contains(&mount.consistency.as_str()) {
        return Err(invalid(
            format!("{field}.Consistency"),
            format!(
                "{:?} is unknown: use default, consistent, cached or delegated",
                mount.consistency
            ),
        ));
    }
    check_options(field, mount)
}

fn is_clean(path: &str) -> bool {
    path.starts_with('/') && !path.split('/').any(|part| part == "..")
}

fn check_source(field: &str, mount: &Mount) -> Result<(), ApiError> {
    let source = &mount.source;
    let why = match mount.kind {
        MountType::Bind if !is_clean(source) => {
            format!("{source:?} is not an absolute path of the node without ..")
        }
        MountType::Tmpfs if !source.is_empty() => "a tmpfs has no source: leave it out".to_owned(),
        MountType::Volume if !is_volume_name(source) => format!(
            "{source:?} is not a volume name: use letters, digits, _, . and -, or type bind for a path"
        ),
        MountType::Bind
        | MountType::Volume
        | MountType::Tmpfs
        | MountType::Npipe
        | MountType::Cluster
        | MountType::Image => return Ok(()),
    };
    Err(invalid(format!("{field}.Source"), why))
}

/// Docker's grammar of volume names; an anonymous volume has none.
fn is_volume_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let begins = name
        .bytes()
        .next()
        .is_none_or(|byte| byte.is_ascii_alphanumeric());
    begins && name.len() <= 255 && name.bytes().all(inner)
}

fn check_options(field: &str, mount: &Mount) -> Result<(), ApiError> {
    let bind = object(&format!("{field}.BindOptions"), mount.bind_options.as_ref())?;
    let volume = object(
        &format!("{field}.VolumeOptions"),
        mount.volume_options.as_ref(),
    )?;
    let says = |options: Option<&Map<String, Value>>| {
        options.is_some_and(|options| !options.values().all(is_empty))
    };
    let tmpfs = mount.tmpfs_options.as_ref();
    let tmpfs_says = tmpfs.is_some_and(|options| *options != TmpfsOptions::default());
    // Clients send empty ones with every mount; another kind's would be dropped without a word.
    let kinds = [
        ("BindOptions", "bind", MountType::Bind, says(bind)),
        ("VolumeOptions", "volume", MountType::Volume, says(volume)),
        ("TmpfsOptions", "tmpfs", MountType::Tmpfs, tmpfs_says),
    ];
    for (name, kind, of, says) in kinds {
        if says && of != mount.kind {
            return Err(invalid(
                format!("{field}.{name}"),
                format!("they are for mounts of type {kind}: leave them out"),
            ));
        }
    }
    check_bind(&format!("{field}.BindOptions"), bind)?;
    check_volume(&format!("{field}.VolumeOptions"), volume)?;
    match tmpfs {
        Some(options) if options.size_bytes < 0 => Err(invalid(
            format!("{field}.TmpfsOptions.SizeBytes"),
            format!("{} is negative", options.size_bytes),
        )),
        Some(_) | None => Ok(()),
    }
}

fn object<'a>(
    field: &str,
    value: Option<&'a Value>,
) -> Result<Option<&'a Map<String, Value>>, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(fields)),
        Some(_) => Err(invalid(field, "it is not an object: give its fields in {}")),
    }
}

fn check_bind(field: &str, options: Option<&Map<String, Value>>) -> Result<(), ApiError> {
    for (key, value) in options.into_iter().flatten() {
        if key != "Propagation" {
            if is_empty(value) {
                continue;
            }
            return Err(unsupported(format!("{field}.{key}")));
        }
        let known = |text: &str| text.is_empty() || PROPAGATIONS.contains(&text);
        if !value.is_null() && !value.as_str().is_some_and(known) {
            return Err(invalid(
                format!("{field}.Propagation"),
                format!("{value} is unknown: use one of {}", PROPAGATIONS.join(", ")),
            ));
        }
    }
    Ok(())
}

fn check_volume(field: &str, options: Option<&Map<String, Value>>) -> Result<(), ApiError> {
    for (key, value) in options.into_iter().flatten() {
        let field = format!("{field}.{key}");
        match key.as_str() {
            "NoCopy" if !value.is_null() && !value.is_boolean() => {
                return Err(invalid(field, format!("{value} is neither true nor false")));
            }
            "NoCopy" => {}
            "Labels" => check_volume_labels(&field, value)?,
            "DriverConfig" => check_driver(&field, value)?,
            _ if is_empty(value) => {}
            _ => return Err(unsupported(field)),
        }
    }
    Ok(())
}

fn check_volume_labels(field: &str, value: &Value) -> Result<(), ApiError> {
    let labels = object(field, Some(value))?;
    check_count(field, labels.map_or(0, Map::len))?;
    for (key, value) in labels.into_iter().flatten() {
        let Some(text) = value.as_str() else {
            return Err(invalid(field, format!("{value} of {key:?} is not a text")));
        };
        check_text(field, key)?;
        check_text(field, text)?;
    }
    Ok(())
}

/// Nodes have the driver `local` without options.
fn check_driver(field: &str, value: &Value) -> Result<(), ApiError> {
    for (key, value) in object(field, Some(value))?.into_iter().flatten() {
        let local = key == "Name" && value.as_str() == Some("local");
        if !local && !is_empty(value) {
            return Err(unsupported(format!("{field}.{key}")));
        }
    }
    Ok(())
}
