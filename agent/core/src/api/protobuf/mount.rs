//! The mounts of a container with their options.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{MessageError, refuse};
use crate::{
    api::{Mount, MountType, container::TmpfsOptions},
    wire::swarmkit::{self as pb, mount::bind_options::MountPropagation},
};

const PROPAGATIONS: [(&str, MountPropagation); 6] = [
    ("rprivate", MountPropagation::Rprivate),
    ("private", MountPropagation::Private),
    ("rshared", MountPropagation::Rshared),
    ("shared", MountPropagation::Shared),
    ("rslave", MountPropagation::Rslave),
    ("slave", MountPropagation::Slave),
];

/// What is not written here is refused by validation before it gets here.
pub(super) fn mount(mount: &Mount) -> pb::Mount {
    let kind = match mount.kind {
        MountType::Bind => pb::mount::MountType::Bind,
        MountType::Volume => pb::mount::MountType::Volume,
        MountType::Tmpfs => pb::mount::MountType::Tmpfs,
        MountType::Npipe => pb::mount::MountType::Npipe,
        // swarmkit has no image mounts; validation refuses them before they get here.
        MountType::Cluster | MountType::Image => pb::mount::MountType::Cluster,
    };
    // A Docker node refuses options of another kind than the mount's, be they empty.
    let is = |kind| mount.kind == kind;
    let bind_options = mount.bind_options.as_ref();
    let bind_options = bind_options.filter(|_| is(MountType::Bind));
    let volume_options = mount.volume_options.as_ref();
    let volume_options = volume_options.filter(|_| is(MountType::Volume));
    let tmpfs_options = mount.tmpfs_options.as_ref();
    let tmpfs_options = tmpfs_options.filter(|_| is(MountType::Tmpfs));
    pb::Mount {
        r#type: kind.into(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        readonly: mount.read_only,
        bind_options: bind_options.map(bind),
        volume_options: volume_options.map(volume),
        tmpfs_options: tmpfs_options.map(|options| pb::mount::TmpfsOptions {
            size_bytes: options.size_bytes,
            mode: options.mode,
            options: String::new(),
        }),
        ..pb::Mount::default()
    }
}

fn bind(options: &Value) -> pb::mount::BindOptions {
    let wanted = options["Propagation"].as_str().unwrap_or_default();
    let known = PROPAGATIONS.iter().find(|(name, _)| *name == wanted);
    pb::mount::BindOptions {
        propagation: known
            .map_or(MountPropagation::Rprivate, |(_, value)| *value)
            .into(),
        ..pb::mount::BindOptions::default()
    }
}

fn volume(options: &Value) -> pb::mount::VolumeOptions {
    pb::mount::VolumeOptions {
        nocopy: options["NoCopy"].as_bool().unwrap_or_default(),
        labels: texts(&options["Labels"]),
        driver_config: driver(&options["DriverConfig"]),
        subpath: options["Subpath"].as_str().unwrap_or_default().to_owned(),
    }
}

fn driver(config: &Value) -> Option<pb::Driver> {
    config.is_object().then(|| pb::Driver {
        name: config["Name"].as_str().unwrap_or_default().to_owned(),
        options: texts(&config["Options"]),
    })
}

fn texts(object: &Value) -> BTreeMap<String, String> {
    let fields = object.as_object().into_iter().flatten();
    fields
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// # Errors
/// When the mount asks for what no node of ours does.
pub(super) fn read_mount(message: pb::Mount) -> Result<Mount, MessageError> {
    let kind = match pb::mount::MountType::try_from(message.r#type) {
        Ok(pb::mount::MountType::Bind) => MountType::Bind,
        Ok(pb::mount::MountType::Volume) => MountType::Volume,
        Ok(pb::mount::MountType::Tmpfs) => MountType::Tmpfs,
        Ok(pb::mount::MountType::Npipe | pb::mount::MountType::Cluster) | Err(_) => {
            return Err(MessageError::unsupported("spec.container.mounts.type"));
        }
    };
    Ok(Mount {
        kind,
        source: message.source,
        target: message.target,
        read_only: message.readonly,
        bind_options: message.bind_options.map(read_bind).transpose()?,
        volume_options: message.volume_options.map(read_volume),
        tmpfs_options: message.tmpfs_options.map(read_tmpfs).transpose()?,
        ..Mount::default()
    })
}

fn read_bind(message: pb::mount::BindOptions) -> Result<Value, MessageError> {
    let chosen = MountPropagation::try_from(message.propagation).ok();
    let name = PROPAGATIONS
        .iter()
        .find(|(_, value)| Some(*value) == chosen)
        .map(|(name, _)| *name);
    let Some(name) = name else {
        return Err(MessageError::unsupported(
            "spec.container.mounts.bind_options.propagation",
        ));
    };
    let others = pb::mount::BindOptions {
        propagation: message.propagation,
        ..pb::mount::BindOptions::default()
    };
    refuse(message != others, "spec.container.mounts.bind_options")?;
    Ok(json!({ "Propagation": name }))
}

/// A field that says nothing is left out, as Docker's API does. What the node can't do of the rest it
/// refuses by name when it plans the container.
fn read_volume(message: pb::mount::VolumeOptions) -> Value {
    let mut options = Map::new();
    if message.nocopy {
        options.insert("NoCopy".to_owned(), json!(true));
    }
    if !message.labels.is_empty() {
        options.insert("Labels".to_owned(), json!(message.labels));
    }
    if let Some(driver) = message.driver_config {
        let mut config = Map::new();
        if !driver.name.is_empty() {
            config.insert("Name".to_owned(), json!(driver.name));
        }
        if !driver.options.is_empty() {
            config.insert("Options".to_owned(), json!(driver.options));
        }
        options.insert("DriverConfig".to_owned(), Value::Object(config));
    }
    if !message.subpath.is_empty() {
        options.insert("Subpath".to_owned(), json!(message.subpath));
    }
    Value::Object(options)
}

fn read_tmpfs(message: pb::mount::TmpfsOptions) -> Result<TmpfsOptions, MessageError> {
    refuse(
        !message.options.is_empty(),
        "spec.container.mounts.tmpfs_options.options",
    )?;
    Ok(TmpfsOptions {
        size_bytes: message.size_bytes,
        mode: message.mode,
    })
}
