//! Secrets and configs, and how a container refers to them.

use super::{MessageError, id, meta, read_meta, refuse};
use crate::{
    api::{
        Config, ConfigReference, ConfigSpec, FileTarget, Labels, Payload, Secret, SecretReference,
        SecretSpec,
        dependency::{MAX_CONFIG, MAX_SECRET},
    },
    wire::swarmkit as pb,
};

/// A secret for a node that needs it.
#[must_use]
pub fn secret(secret: &Secret) -> pb::Secret {
    pb::Secret {
        id: secret.id.to_string(),
        meta: Some(meta(&secret.meta)),
        spec: Some(pb::SecretSpec {
            annotations: annotations(&secret.spec.name, &secret.spec.labels),
            data: secret.spec.data.bytes().to_vec(),
            templating: None,
            driver: None,
        }),
        internal: false,
    }
}

/// A secret from a manager.
///
/// # Errors
/// The field that is damaged or not supported.
pub fn read_secret(message: pb::Secret) -> Result<Secret, MessageError> {
    let spec = message.spec.unwrap_or_default();
    refuse(spec.driver.is_some(), "secret.driver")?;
    refuse(spec.templating.is_some(), "secret.templating")?;
    let annotations = spec.annotations.unwrap_or_default();
    Ok(Secret {
        id: id(&message.id, "secret.id")?,
        meta: read_meta(message.meta.as_ref()),
        spec: SecretSpec {
            name: annotations.name,
            labels: annotations.labels,
            data: payload(spec.data, MAX_SECRET, "secret.data")?,
            ..SecretSpec::default()
        },
    })
}

/// A config for a node that needs it.
#[must_use]
pub fn config(config: &Config) -> pb::Config {
    pb::Config {
        id: config.id.to_string(),
        meta: Some(meta(&config.meta)),
        spec: Some(pb::ConfigSpec {
            annotations: annotations(&config.spec.name, &config.spec.labels),
            data: config.spec.data.bytes().to_vec(),
            templating: None,
        }),
    }
}

/// A config from a manager.
///
/// # Errors
/// The field that is damaged or not supported.
pub fn read_config(message: pb::Config) -> Result<Config, MessageError> {
    let spec = message.spec.unwrap_or_default();
    refuse(spec.templating.is_some(), "config.templating")?;
    let annotations = spec.annotations.unwrap_or_default();
    Ok(Config {
        id: id(&message.id, "config.id")?,
        meta: read_meta(message.meta.as_ref()),
        spec: ConfigSpec {
            name: annotations.name,
            labels: annotations.labels,
            data: payload(spec.data, MAX_CONFIG, "config.data")?,
            ..ConfigSpec::default()
        },
    })
}

fn annotations(name: &str, labels: &Labels) -> Option<pb::Annotations> {
    Some(pb::Annotations {
        name: name.to_owned(),
        labels: labels.clone(),
        indices: Vec::new(),
    })
}

fn payload(data: Vec<u8>, limit: usize, field: &'static str) -> Result<Payload, MessageError> {
    match data.len() < limit {
        true => Ok(data.into()),
        false => Err(MessageError::new(
            field,
            format!("has {} bytes, {limit} or more", data.len()),
        )),
    }
}

pub(super) fn secret_reference(reference: &SecretReference) -> pb::SecretReference {
    let file = reference.file.as_ref().map(file_target);
    pb::SecretReference {
        secret_id: reference.secret_id.clone(),
        secret_name: reference.secret_name.clone(),
        target: file.map(pb::secret_reference::Target::File),
    }
}

pub(super) fn read_secret_reference(
    message: pb::SecretReference,
) -> Result<SecretReference, MessageError> {
    let Some(pb::secret_reference::Target::File(file)) = message.target else {
        return Err(MessageError::new(
            "spec.container.secrets.target",
            "is missing",
        ));
    };
    Ok(SecretReference {
        file: Some(read_file_target(file)),
        secret_id: message.secret_id,
        secret_name: message.secret_name,
    })
}

pub(super) fn config_reference(reference: &ConfigReference) -> pb::ConfigReference {
    let file = reference.file.as_ref().map(file_target);
    pb::ConfigReference {
        config_id: reference.config_id.clone(),
        config_name: reference.config_name.clone(),
        target: file.map(pb::config_reference::Target::File),
    }
}

pub(super) fn read_config_reference(
    message: pb::ConfigReference,
) -> Result<ConfigReference, MessageError> {
    let field = "spec.container.configs.target";
    match message.target {
        Some(pb::config_reference::Target::File(file)) => Ok(ConfigReference {
            file: Some(read_file_target(file)),
            runtime: None,
            config_id: message.config_id,
            config_name: message.config_name,
        }),
        Some(pb::config_reference::Target::Runtime(_)) => {
            Err(MessageError::unsupported("spec.container.configs.runtime"))
        }
        None => Err(MessageError::new(field, "is missing")),
    }
}

fn file_target(file: &FileTarget) -> pb::FileTarget {
    pb::FileTarget {
        name: file.name.clone(),
        uid: file.uid.clone(),
        gid: file.gid.clone(),
        mode: file.mode,
    }
}

fn read_file_target(message: pb::FileTarget) -> FileTarget {
    FileTarget {
        name: message.name,
        uid: message.uid,
        gid: message.gid,
        mode: message.mode,
    }
}
