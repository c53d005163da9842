//! The mounts of a container: Docker's own, the files of `/etc`, and the user's binds, volumes and memory.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount as OciMount;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::defaults;
use super::plan::{ContainerId, PROVIDED, ProvidedFile, VolumeUse};
use super::{DebugRequest, Surroundings};
use crate::api::dependency::{Kind, Reference};
use crate::api::{ApiError, ContainerSpec, Mount, MountType};

/// All mounts in the order in which they are made, and the volumes among them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Mounts {
    /// Parents before children.
    pub(super) all: Vec<OciMount>,
    /// Volumes to make first.
    pub(super) volumes: Vec<VolumeUse>,
    /// Secrets and configs among them.
    pub(super) provided: Vec<ProvidedFile>,
}

/// The mounts of a container.
pub(super) fn of(spec: &ContainerSpec, around: &Surroundings<'_>) -> Result<Mounts, ApiError> {
    let mut user = Mounts::default();
    for (index, mount) in spec.mounts.iter().enumerate() {
        add_mount(mount, index, around, &mut user)?;
    }
    for reference in spec.references() {
        add_provided(&reference, around, &mut user)?;
    }
    for path in around.image.volumes.keys() {
        let Some(target) = clean(path).filter(|target| target != Path::new("/")) else {
            continue;
        };
        if !user.all.iter().any(|mount| mount.destination() == &target) {
            add_volume("", &target, Copy::Yes, Access::Write, around, &mut user);
        }
    }
    // A user's mount at a place takes the place of ours, and one at /dev of all below it.
    let mut all = defaults::mounts();
    all.extend(etc_files(around));
    all.retain(|ours| {
        !user.all.iter().any(|theirs| {
            let target = theirs.destination();
            target == ours.destination()
                || (target == Path::new("/dev") && ours.destination().starts_with("/dev"))
        })
    });
    all.extend(user.all);
    all.sort_by_key(|mount| mount.destination().components().count());
    Ok(Mounts {
        all,
        volumes: user.volumes,
        provided: user.provided,
    })
}

/// The mounts of an operator's container: fresh file systems, and the node's own sockets and devices' tree.
pub(super) fn debug(request: &DebugRequest, around: &Surroundings<'_>) -> Vec<OciMount> {
    let shared = ["rbind", "rw", "rslave"];
    let mut mounts = defaults::mounts();
    mounts.retain(|mount| !mount.destination().starts_with("/sys"));
    let node = ["/sys", "/run/skep", "/run/dbus"];
    mounts.extend(node.map(|path| defaults::mount(path, "bind", path, &shared)));
    if request.resolv_conf.is_some() {
        let resolver = Path::new("/etc/resolv.conf");
        mounts.extend(etc_files(around).filter(|mount| mount.destination() == resolver));
    }
    mounts.sort_by_key(|mount| mount.destination().components().count());
    mounts
}

fn etc_files<'a>(around: &'a Surroundings<'_>) -> impl Iterator<Item = OciMount> + 'a {
    let dir = around.layout.state.join(around.id.as_str());
    ["hosts", "hostname", "resolv.conf"]
        .into_iter()
        .map(move |name| {
            let source = dir.join(name);
            let target = format!("/etc/{name}");
            defaults::mount(
                &target,
                "bind",
                &source.to_string_lossy(),
                &["rbind", "rprivate"],
            )
        })
}

/// Whether an empty volume takes a copy of the image's content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copy {
    Yes,
    No,
}

/// Whether a mount can be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl Access {
    fn of(mount: &Mount) -> Self {
        if mount.read_only {
            Self::Read
        } else {
            Self::Write
        }
    }

    fn option(self) -> &'static str {
        match self {
            Self::Read => "ro",
            Self::Write => "rw",
        }
    }
}

fn add_mount(
    mount: &Mount,
    index: usize,
    around: &Surroundings<'_>,
    mounts: &mut Mounts,
) -> Result<(), ApiError> {
    let field = |name: &str| format!("ContainerSpec.Mounts[{index}].{name}");
    let invalid = |name: &str, why: String| ApiError::Invalid {
        field: field(name),
        why,
    };
    let target = clean(&mount.target).filter(|target| target != Path::new("/"));
    let target = target.ok_or_else(|| {
        let why = format!("{:?}: want an absolute path other than /", mount.target);
        invalid("Target", why)
    })?;
    if mounts
        .all
        .iter()
        .any(|other| other.destination() == &target)
    {
        return Err(invalid(
            "Target",
            format!("duplicate mount point: {}", target.display()),
        ));
    }
    match mount.kind {
        MountType::Bind => {
            let source = clean(&mount.source);
            let why = || {
                invalid(
                    "Source",
                    format!("{:?}: want an absolute path", mount.source),
                )
            };
            let source = source.ok_or_else(why)?;
            let propagation = propagation(mount.bind_options.as_ref(), &field("BindOptions"))?;
            let options = ["rbind", Access::of(mount).option(), propagation];
            let (source, target) = (source.to_string_lossy(), target.to_string_lossy());
            mounts
                .all
                .push(defaults::mount(&target, "bind", &source, &options));
        }
        MountType::Volume => {
            if !mount.source.is_empty() && !is_volume_name(&mount.source) {
                let why = format!("{:?}: want letters, digits, '_', '.', '-'", mount.source);
                return Err(invalid("Source", why));
            }
            let copy = volume_copy(mount.volume_options.as_ref(), &field("VolumeOptions"))?;
            add_volume(
                &mount.source,
                &target,
                copy,
                Access::of(mount),
                around,
                mounts,
            );
        }
        MountType::Tmpfs => mounts.all.push(tmpfs(mount, &target)),
        MountType::Npipe | MountType::Cluster | MountType::Image => {
            return Err(ApiError::Unsupported(field("Type")));
        }
    }
    Ok(())
}

fn add_volume(
    name: &str,
    target: &Path,
    copy: Copy,
    access: Access,
    around: &Surroundings<'_>,
    mounts: &mut Mounts,
) {
    let anonymous = name.is_empty();
    let name = if anonymous {
        anonymous_name(&around.id, target)
    } else {
        name.to_owned()
    };
    let source = around.layout.volumes.join(&name).join("_data");
    let options = ["rbind", access.option(), "rprivate"];
    let (from, to) = (source.to_string_lossy(), target.to_string_lossy());
    mounts
        .all
        .push(defaults::mount(&to, "bind", &from, &options));
    mounts.volumes.push(VolumeUse {
        name,
        destination: target.to_owned(),
        copy: copy == Copy::Yes,
        anonymous,
    });
}

/// A secret or config: a file of a tmpfs that only this container has, bound to its place, and read-only there.
fn add_provided(
    reference: &Reference<'_>,
    around: &Surroundings<'_>,
    mounts: &mut Mounts,
) -> Result<(), ApiError> {
    let list = match reference.kind {
        Kind::Secret => "Secrets",
        Kind::Config => "Configs",
    };
    let invalid = |why: String| ApiError::Invalid {
        field: format!("ContainerSpec.{list} {:?}", reference.name),
        why,
    };
    let (Some(file), Some(dependency)) = (reference.file, reference.dependency()) else {
        return Err(invalid("it has no file or no id".to_owned()));
    };
    let target = reference.path().map_err(&invalid)?;
    let number = |text: &str| match text {
        "" => Ok(0),
        text => text
            .parse()
            .map_err(|_| invalid(format!("{text:?} is not the number of a user or group"))),
    };
    let (uid, gid) = (number(&file.uid)?, number(&file.gid)?);
    let mut others = mounts.all.iter();
    if others.any(|other| other.destination() == &target) {
        let why = format!("duplicate mount point: {}", target.display());
        return Err(invalid(why));
    }
    let name = mounts.provided.len().to_string();
    let dir = around.layout.run.join(around.id.as_str()).join(PROVIDED);
    let (source, target) = (dir.join(&name), target.to_string_lossy());
    let options = ["bind", "ro", "nosuid", "nodev", "noexec", "rprivate"];
    let source = source.to_string_lossy();
    mounts
        .all
        .push(defaults::mount(&target, "bind", &source, &options));
    mounts.provided.push(ProvidedFile {
        name,
        dependency,
        uid,
        gid,
        mode: file.mode & 0o7777,
    });
    Ok(())
}

/// 64 digits that only this container has for this place.
fn anonymous_name(id: &ContainerId, target: &Path) -> String {
    let hash = Sha256::new()
        .chain_update(id.as_str())
        .chain_update(target.as_os_str().as_encoded_bytes())
        .finalize();
    data_encoding::HEXLOWER.encode(&hash)
}

fn tmpfs(mount: &Mount, target: &Path) -> OciMount {
    let options = mount.tmpfs_options.clone().unwrap_or_default();
    let mode = match options.mode {
        0 => 0o1777,
        mode => mode & 0o7777,
    };
    let mut words = vec!["noexec".to_owned(), "nosuid".to_owned(), "nodev".to_owned()];
    words.push(format!("mode={mode:o}"));
    if options.size_bytes > 0 {
        words.push(format!("size={}", options.size_bytes));
    }
    words.push(Access::of(mount).option().to_owned());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    defaults::mount(&target.to_string_lossy(), "tmpfs", "tmpfs", &words)
}

/// The mount option for `BindOptions.Propagation`; what else a bind can be told is refused.
fn propagation(options: Option<&Value>, field: &str) -> Result<&'static str, ApiError> {
    let mut chosen = "rprivate";
    for (name, value) in fields(options) {
        match (name.as_str(), value) {
            ("Propagation", Value::String(text)) => {
                let known = [
                    "private", "rprivate", "shared", "rshared", "slave", "rslave",
                ];
                chosen = match known.iter().find(|known| *known == text) {
                    Some(known) => known,
                    None if text.is_empty() => "rprivate",
                    None => {
                        return Err(ApiError::Invalid {
                            field: format!("{field}.Propagation"),
                            why: format!("{text:?}: want one of {}", known.join(", ")),
                        });
                    }
                };
            }
            (_, Value::Null | Value::Bool(false)) => {}
            (name, _) => return Err(ApiError::Unsupported(format!("{field}.{name}"))),
        }
    }
    Ok(chosen)
}

/// Whether `VolumeOptions` wants the copy; drivers other than `local` and options of it are refused.
fn volume_copy(options: Option<&Value>, field: &str) -> Result<Copy, ApiError> {
    let mut copy = Copy::Yes;
    for (name, value) in fields(options) {
        match (name.as_str(), value) {
            ("NoCopy", Value::Bool(true)) => copy = Copy::No,
            // Labels are for `volume ls`, which reads them from the volume's creator.
            ("Labels", _) | (_, Value::Null | Value::Bool(false)) => {}
            ("Subpath", Value::String(text)) if text.is_empty() => {}
            ("DriverConfig", Value::Object(driver)) if is_plain_local(driver) => {}
            (name, _) => return Err(ApiError::Unsupported(format!("{field}.{name}"))),
        }
    }
    Ok(copy)
}

fn is_plain_local(driver: &serde_json::Map<String, Value>) -> bool {
    driver
        .iter()
        .all(|(name, value)| match (name.as_str(), value) {
            ("Name", Value::String(name)) => matches!(name.as_str(), "" | "local"),
            ("Options", Value::Object(options)) => options.is_empty(),
            (_, value) => value.is_null(),
        })
}

fn fields(options: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    options.and_then(Value::as_object).into_iter().flatten()
}

fn is_volume_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && name.len() <= 255
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// An absolute path with `.` and `..` taken out, as Go's `path.Clean`; `None` for any other path.
pub(super) fn clean(path: &str) -> Option<PathBuf> {
    if !path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(clean)
}
