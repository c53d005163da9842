//! Documents of a node's own containers and images.

use std::time::Duration;

use serde_json::{Map, Value, json};
use skep_core::time::Timestamp;

use super::moment;
use crate::management::port::{ContainerState, LocalContainer, LocalImage};

/// One row of `GET /containers/json`.
pub fn summary(container: &LocalContainer, now: Timestamp) -> Value {
    json!({
        "Id": container.id,
        "Names": [format!("/{}", container.name)],
        "Image": container.image,
        "ImageID": container.image_id,
        "Command": container.args.join(" "),
        "Created": container.created.unix_seconds(),
        "Ports": [],
        "Labels": container.labels,
        "State": state(container.state),
        "Status": status_text(container, now),
        "HostConfig": { "NetworkMode": "default" },
        "NetworkSettings": { "Networks": networks(container) },
        "Mounts": [],
    })
}

/// The document of `GET /containers/{id}/json`.
pub fn inspection(container: &LocalContainer) -> Value {
    let (path, args) = match container.args.split_first() {
        Some((path, args)) => (path.as_str(), args),
        None => ("", [].as_slice()),
    };
    json!({
        "Id": container.id,
        "Name": format!("/{}", container.name),
        "Created": container.created.to_string(),
        "Path": path,
        "Args": args,
        "State": {
            "Status": state(container.state),
            "Running": container.state == ContainerState::Running,
            "Paused": false,
            "Restarting": false,
            "OOMKilled": false,
            "Dead": false,
            "Pid": container.pid,
            "ExitCode": container.exit_code,
            "Error": "",
            "StartedAt": moment(container.started),
            "FinishedAt": moment(container.finished),
        },
        "Image": container.image_id,
        "RestartCount": 0,
        "Driver": "overlay",
        "Platform": "linux",
        "Config": {
            "Hostname": container.id.get(..12).unwrap_or(&container.id),
            "Tty": false,
            "OpenStdin": false,
            "Env": container.env,
            "Cmd": container.args,
            "Entrypoint": null,
            "Image": container.image,
            "Labels": container.labels,
        },
        "HostConfig": {
            "LogConfig": { "Type": "json-file", "Config": {} },
            "NetworkMode": "default",
            "AutoRemove": false,
        },
        "Mounts": [],
        "NetworkSettings": { "Ports": {}, "Networks": networks(container) },
    })
}

fn networks(container: &LocalContainer) -> Value {
    let entries: Map<String, Value> = container
        .networks
        .iter()
        .map(|(name, id, address)| {
            let (ip, prefix) = address.split_once('/').unwrap_or((address, "0"));
            let prefix: u8 = prefix.parse().unwrap_or(0);
            let entry = json!({ "NetworkID": id, "IPAddress": ip, "IPPrefixLen": prefix });
            (name.clone(), entry)
        })
        .collect();
    Value::Object(entries)
}

/// Docker's word for a state.
pub fn state(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
    }
}

fn status_text(container: &LocalContainer, now: Timestamp) -> String {
    match container.state {
        ContainerState::Created => "Created".to_owned(),
        ContainerState::Running => {
            let since = container.started.unwrap_or(container.created);
            format!("Up {}", duration_in_words(now.since(since)))
        }
        ContainerState::Exited => {
            let since = container.finished.unwrap_or(container.created);
            let age = duration_in_words(now.since(since));
            format!("Exited ({}) {age} ago", container.exit_code)
        }
    }
}

/// A length of time in Docker's words: `Less than a second`, `About a minute`, `3 weeks`.
pub fn duration_in_words(length: Duration) -> String {
    let seconds = length.as_secs();
    let minutes = seconds / 60;
    // Docker rounds hours to the nearest and cuts the rest.
    let hours = (seconds + 1_800) / 3_600;
    match (seconds, minutes, hours) {
        (0, _, _) => "Less than a second".to_owned(),
        (1, _, _) => "1 second".to_owned(),
        (2..60, _, _) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, 2..48) => format!("{hours} hours"),
        (_, _, 48..336) => format!("{} days", hours / 24),
        (_, _, 336..1_440) => format!("{} weeks", hours / 24 / 7),
        (_, _, 1_440..17_520) => format!("{} months", hours / 24 / 30),
        (_, _, _) => format!("{} years", hours / 24 / 365),
    }
}

/// One row of `GET /images/json`.
pub fn image(image: &LocalImage) -> Value {
    json!({
        "Id": image.id,
        "ParentId": "",
        "RepoTags": familiar_names(&image.tags),
        "RepoDigests": familiar_names(&image.digests),
        "Created": image.created.unix_seconds(),
        "Size": image.size,
        "VirtualSize": image.size,
        "SharedSize": -1,
        "Labels": null,
        "Containers": -1,
    })
}

fn familiar_names(names: &[String]) -> Vec<&str> {
    names.iter().map(|name| familiar(name)).collect()
}

/// A full image name in the short form that Docker shows.
pub fn familiar(name: &str) -> &str {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    short.strip_prefix("library/").unwrap_or(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_dockers() {
        let cases = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3_599, "59 minutes"),
            (3_600, "About an hour"),
            (2 * 3_600, "2 hours"),
            (47 * 3_600, "47 hours"),
            (48 * 3_600, "2 days"),
            (14 * 86_400, "2 weeks"),
            (60 * 86_400, "2 months"),
            (800 * 86_400, "2 years"),
        ];
        for (seconds, words) in cases {
            assert_eq!(duration_in_words(Duration::from_secs(seconds)), words);
        }
    }
}
