//! A process added to a running container: the container's own process with what was asked for in its place.

use std::path::PathBuf;

use oci_spec::runtime::{Process, Spec, UserBuilder};

use super::defaults::{all_capabilities, within};
use super::user::User;

/// A process to run inside a running container.
#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Environment entries that win over the container's own.
    pub env: Vec<String>,
    /// The working directory; the container's own if `None`.
    pub cwd: Option<String>,
    /// The user in Docker's form; the container's own if `None`.
    pub user: Option<String>,
    /// A terminal instead of pipes.
    pub tty: bool,
    /// Whether standard input is wanted; `/dev/null` otherwise.
    pub stdin: bool,
    /// All capabilities and no seccomp filter.
    pub privileged: bool,
}

/// The OCI process to add to a container made with `spec`; `user` is the looked-up one that the request names.
///
/// Unless it is privileged it may not gain privileges (`no_new_privileges`): only then may the filter be installed after
/// the capabilities are gone, and libcontainer installs none before.
pub fn process(spec: &Spec, request: &ExecRequest, user: Option<&User>) -> Process {
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_terminal(Some(request.tty));
    process.set_console_size(None);
    process.set_args(Some(request.args.clone()));
    let env = process.env().clone().unwrap_or_default();
    let home = user.map(|user| format!("HOME={}", user.home));
    let terminal = request.tty.then(|| "TERM=xterm".to_owned());
    let mut env = merge_env(env, home.into_iter().chain(terminal));
    env = merge_env(env, request.env.iter().cloned());
    process.set_env(Some(env));
    if let Some(cwd) = &request.cwd {
        process.set_cwd(PathBuf::from(cwd));
    }
    if let Some(user) = user {
        let numbers = UserBuilder::default()
            .uid(user.uid)
            .gid(user.gid)
            .additional_gids(user.groups.clone())
            .build();
        if let Ok(numbers) = numbers {
            process.set_user(numbers);
        }
    }
    let filtered = spec
        .linux()
        .as_ref()
        .is_some_and(|linux| linux.seccomp().is_some());
    if request.privileged {
        process.set_capabilities(Some(all_capabilities()));
        process.set_no_new_privileges(None);
    } else if filtered {
        process.set_no_new_privileges(Some(true));
    }
    process
}

/// Takes from a process the capabilities that the node does not have itself; `bounding` is `CapBnd` of `/proc/self/status`.
pub fn limit_capabilities(process: &mut Process, bounding: u64) {
    let limited = process
        .capabilities()
        .as_ref()
        .map(|capabilities| within(capabilities, bounding));
    process.set_capabilities(limited);
}

/// `base` with the entries of `over` in place of those of the same name, new ones at the end.
pub(super) fn merge_env(
    mut base: Vec<String>,
    over: impl IntoIterator<Item = String>,
) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    for entry in over {
        match base.iter_mut().find(|old| name(old) == name(&entry)) {
            Some(old) => *old = entry,
            None => base.push(entry),
        }
    }
    base
}
