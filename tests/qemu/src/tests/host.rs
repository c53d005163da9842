//! What needs no swarm: the sources, cargo's own tests, the image's content, and one VM with the image's kernel.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::check::{cargo, cargo_aloud, run_all};
use crate::commands::Prepared;
use crate::docker::{self, Release};
use crate::packages::is_root;
use crate::paths::Paths;
use crate::process::run;
use crate::runner::{Run, Test};
use crate::{console, guest, image};

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "check",
        shows: "format, clippy, layers, documentation, licences, duplicate crates",
        slow: false,
        causes: &[],
        run: Run::Host(|paths| run_all(paths, false)),
    },
    Test {
        id: "unit",
        shows: "unit and property tests of every crate",
        slow: false,
        causes: &[],
        run: Run::Host(|paths| {
            cargo_aloud(
                paths,
                &["test", "--quiet", "--workspace", "--lib", "--bins"],
            )
        }),
    },
    Test {
        id: "clients",
        shows: "both stock docker clients drive the Engine API of a manager in memory, and get in by TLS only",
        slow: false,
        causes: &[],
        run: Run::Host(clients),
    },
    Test {
        id: "sim",
        shows: "simulated clusters: node loss, lost and repeated proposals, restarts; 200 seeds",
        slow: false,
        causes: &[],
        run: Run::Host(|paths| {
            cargo_aloud(paths, &["test", "--quiet", "--workspace", "--test", "sim"])
        }),
    },
    Test {
        id: "daemons",
        shows: "real skepds on loopback addresses form a swarm, keep it through kill -9 and the loss of managers, refuse wrong tokens and bytes",
        slow: false,
        causes: &[],
        run: Run::Host(|paths| {
            cargo_aloud(
                paths,
                &[
                    "test",
                    "--quiet",
                    "--workspace",
                    "--test",
                    "swarm",
                    "--test",
                    "recovery",
                ],
            )
        }),
    },
    Test {
        id: "netns",
        shows: "links, VXLAN and nftables in network namespaces of this machine",
        slow: false,
        causes: &[],
        run: Run::Host(netns),
    },
    Test {
        id: "image",
        shows: "every executable and setuid bit of the image is on the allow-list, sizes within budget",
        slow: false,
        causes: &[],
        run: Run::Image(|paths, prepared| {
            image::check_executables(&paths.repository, &prepared.image)
        }),
    },
    Test {
        id: "guest-ipvs",
        shows: "IPVS and the rest of the network's host tests on the image's kernel",
        slow: false,
        causes: &[],
        run: Run::Image(guest_network),
    },
    Test {
        id: "guest-containers",
        shows: "containers on the image's kernel: isolation, limits, exec, logs, pulls; skepd and shims killed",
        slow: false,
        causes: &[],
        run: Run::Image(guest_containers),
    },
];

fn clients(paths: &Paths) -> Result<()> {
    let programs = [
        docker::program(paths, Release::Bookworm)?,
        docker::program(paths, Release::Trixie)?,
    ];
    run(cargo(paths)
        .args(["test", "--quiet", "--workspace", "--lib", "--"])
        .args(["--ignored", "docker_api::tests::client"])
        .env("SKEP_DOCKER", std::env::join_paths(programs)?))
    .map(drop)
}

fn netns(paths: &Paths) -> Result<()> {
    if !is_root() {
        let program = test_program(paths, "netns")?;
        bail!(
            "network namespaces need root: sudo {} --test-threads=1",
            program.display()
        );
    }
    cargo_aloud(
        paths,
        &[
            "test",
            "--quiet",
            "--workspace",
            "--test",
            "netns",
            "--",
            "--test-threads=1",
        ],
    )
}

fn guest_network(paths: &Paths, prepared: &Prepared) -> Result<()> {
    let test = test_program(paths, "netns")?;
    in_guest(paths, prepared, &[test], "--test-threads=1 --nocapture")
}

fn guest_containers(paths: &Paths, prepared: &Prepared) -> Result<()> {
    let test = test_program(paths, "containers")?;
    let shim = compiled(
        paths,
        "build",
        &["--package", "skep-shim", "--bin", "skep-shim"],
    )?;
    let probe = compiled(
        paths,
        "build",
        &["--package", "skep-host", "--example", "probe"],
    )?;
    in_guest(paths, prepared, &[test, shim, probe], "")
}

/// Runs a test program, the first of these, on the image's kernel; it finds the others beside itself.
fn in_guest(
    paths: &Paths,
    prepared: &Prepared,
    programs: &[PathBuf],
    arguments: &str,
) -> Result<()> {
    let test = programs.first().and_then(|path| path.file_name());
    let test = test.context("a test without a name")?.to_string_lossy();
    let script = guest::Script {
        name: test.split('-').next().unwrap_or(&test),
        text: format!("SKEP_TEST_KERNEL=image ./{test} {arguments}\n"),
        programs: programs.to_vec(),
        patience: Duration::from_secs(900),
    };
    let said = guest::run(paths, prepared, &script).inspect_err(|_| {
        let console = format!("guest/{}/nodes/guest/{}", script.name, console::CONSOLE);
        let kept = paths.folder("tests").map(|tests| {
            let name = format!("guest-{}.console.log", script.name);
            fs::copy(paths.lab.join(console), tests.join(name))
        });
        // Without a console, what went wrong is all that there is.
        drop(kept);
    })?;
    // On this kernel nothing may be skipped, and a run in which nothing was tested proves nothing.
    match said.contains("test result: ok.") && !said.contains("ok. 0 passed") {
        true if said.to_lowercase().contains("skipped") => {
            bail!("tests were skipped on the image's kernel")
        }
        true => Ok(()),
        false => bail!("no test ran in the guest"),
    }
}

/// The program of an integration test, compiled. All of the workspace's tests are compiled with the same features of
/// what they use, or much of that is compiled twice.
fn test_program(paths: &Paths, test: &str) -> Result<PathBuf> {
    compiled(paths, "test", &["--workspace", "--no-run", "--test", test])
}

/// The one program that `cargo VERB` makes; the last of `target` is its name.
fn compiled(paths: &Paths, verb: &str, target: &[&str]) -> Result<PathBuf> {
    let name = target.last().copied().unwrap_or_default();
    let messages = run(cargo(paths)
        .args([verb, "--quiet", "--message-format=json"])
        .args(target))?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| {
            message
                .pointer("/target/name")
                .is_some_and(|found| found == name)
        })
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo made no program {name}"))
}
