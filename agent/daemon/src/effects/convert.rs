//! Between the host's words and the machine's.

use std::sync::Arc;

use skep_core::worker::{
    container::image::Reference,
    effect::{Container, EffectError, Exit, Phase},
};
use skep_host::{
    HostError,
    container::{self as host, Status},
};

pub(super) fn container(status: Status) -> Container {
    let phase = match status.phase {
        host::Phase::Created => Phase::Created,
        host::Phase::Running => Phase::Running,
        host::Phase::Exited(exit) => Phase::Exited(Exit {
            code: exit.code,
            oom_killed: exit.oom_killed,
            error: exit.error,
        }),
    };
    Container {
        plan: Arc::new(status.plan),
        phase,
        pid: status.pid,
    }
}

pub(super) fn failure(error: &HostError) -> EffectError {
    EffectError {
        temporary: error.temporary,
        message: error.chain(),
    }
}

/// Docker says `No such image` of one that a registry does not have.
pub(super) fn pull_failure(reference: &Reference, error: &HostError) -> EffectError {
    let missing = !error.temporary && error.source.to_string().ends_with("not found");
    EffectError {
        temporary: error.temporary,
        message: match missing {
            true => format!("No such image: {}", familiar(reference)),
            false => error.chain(),
        },
    }
}

fn familiar(reference: &Reference) -> String {
    let mut name = reference.familiar_name();
    if let Some(tag) = reference.tag() {
        name.push(':');
        name.push_str(tag);
    }
    if let Some(digest) = reference.digest() {
        name.push('@');
        name.push_str(digest);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_image_is_worded_as_docker_words_it() {
        let error = |temporary, why: &str| HostError {
            op: "pull image",
            object: "docker.io/library/nope:latest".to_owned(),
            temporary,
            source: why.into(),
        };
        let reference: Reference = "nope".parse().unwrap();
        let message = |error| pull_failure(&reference, &error).message;
        assert_eq!(
            message(error(false, "https://registry/v2/library/nope: not found")),
            "No such image: nope:latest"
        );
        assert_eq!(
            message(error(true, "registry: connection refused")),
            "cannot pull image docker.io/library/nope:latest: registry: connection refused"
        );
    }
}
