//! The container images that the walk-through and the tests use, made from Debian packages and one program of ours.
//!
//! Nodes have the lab's registry as their mirror of Docker Hub, so `library/whoami` is what `whoami` means to them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::archive::{Archive, Blob, Run};
use crate::packages::{IMAGE_SUITE, Suite};
use crate::paths::Paths;
use crate::process::run;
use crate::progress::Step;
use crate::registry::Registry;

/// The image for looking into a node: `skep debug NODE tools -- CMD`.
pub const TOOLS: &str = "tools";

/// The packages it is made of.
pub const TOOLS_PACKAGES: &[&str] = &[
    "base-files",
    "bind9-dnsutils",
    "coreutils",
    "curl",
    "dash",
    "dbus-bin",
    "findutils",
    "grep",
    "iproute2",
    "iputils-ping",
    "ipvsadm",
    "mawk",
    "mount",
    "netbase",
    "nftables",
    "procps",
    "sed",
    "socat",
    "systemd",
    "tcpdump",
    "util-linux",
];

/// Parts of Debian packages that no command needs.
const TOOLS_WITHOUT: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/perl5",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "var/lib/systemd",
];

/// An image of the lab's own.
struct Recipe {
    /// The name it is known by here.
    name: &'static str,
    /// Every name it is pushed as.
    pushed_as: &'static [&'static str],
    /// What its content depends on.
    inputs: String,
    run: Run<'static>,
    fill: fn(&Paths, &Path) -> Result<()>,
}

fn recipes() -> Vec<Recipe> {
    let whoami = |name, pushed_as, labels| Recipe {
        name,
        pushed_as,
        inputs: include_str!("../whoami/main.rs").to_owned(),
        run: Run {
            entrypoint: &["/whoami"],
            labels,
            ports: &["8000/tcp", "8000/udp"],
            ..Run::default()
        },
        fill: fill_whoami,
    };
    vec![
        whoami(
            "whoami",
            &[
                "library/whoami:latest",
                "library/whoami:1",
                "jwilder/whoami:latest",
            ],
            &[("version", "1")],
        ),
        whoami("whoami-2", &["library/whoami:2"], &[("version", "2")]),
        Recipe {
            name: "busybox",
            pushed_as: &["library/busybox:latest"],
            inputs: "busybox-static".to_owned(),
            run: Run {
                command: &["sh"],
                ..Run::default()
            },
            fill: fill_busybox,
        },
        Recipe {
            name: TOOLS,
            pushed_as: &["library/tools:latest"],
            inputs: format!("{TOOLS_PACKAGES:?} without {TOOLS_WITHOUT:?}"),
            run: Run {
                command: &["sh"],
                ..Run::default()
            },
            fill: fill_tools,
        },
    ]
}

/// Makes and pushes every image that the registry does not have yet.
pub fn ensure_pushed(paths: &Paths, registry: &Registry) -> Result<()> {
    for recipe in recipes() {
        ensure_one(paths, registry, &recipe)
            .with_context(|| format!("cannot make the image {}", recipe.name))?;
    }
    Ok(())
}

fn ensure_one(paths: &Paths, registry: &Registry, recipe: &Recipe) -> Result<()> {
    let folder = paths.folder("images")?;
    let stamp = folder.join(format!("{}.stamp", recipe.name));
    let inputs = Blob::new(format!("{} {:?}", recipe.inputs, recipe.run).into_bytes()).digest;
    let made = fs::read_to_string(&stamp).is_ok_and(|text| text == inputs);
    let names = recipe.pushed_as;
    if made && names.iter().all(|name| is_there(registry, name)) {
        return Ok(());
    }
    let step = Step::begin(format!("making the image {}", recipe.name));
    let root = folder.join(recipe.name);
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root)?;
    (recipe.fill)(paths, &root)?;
    let archive = Archive::of_folder(&root, &recipe.run)?;
    for name in names {
        registry.push(&archive, name)?;
    }
    fs::remove_dir_all(&root)?;
    fs::write(stamp, inputs)?;
    step.done();
    Ok(())
}

fn is_there(registry: &Registry, name: &str) -> bool {
    name.rsplit_once(':')
        .is_some_and(|(repository, tag)| registry.digest(repository, tag).is_some())
}

/// Compiles the whoami of this crate once more, static, with no library but std.
fn fill_whoami(paths: &Paths, root: &Path) -> Result<()> {
    let source = paths.repository.join("tests/qemu/whoami/main.rs");
    run(Command::new("rustc")
        .args(["--edition", "2024", "--crate-name", "whoami"])
        .args([
            "--target",
            "x86_64-unknown-linux-gnu",
            "-C",
            "target-feature=+crt-static",
        ])
        .args([
            "-C",
            "opt-level=s",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
        ])
        .arg("-o")
        .arg(root.join("whoami"))
        .arg(source))?;
    Ok(())
}

fn fill_busybox(paths: &Paths, root: &Path) -> Result<()> {
    let unpacked = root.with_extension("unpacked");
    Suite::open(paths, IMAGE_SUITE)?.unpack(&["busybox-static"], &unpacked)?;
    let program = find_below(&unpacked, &["usr/bin/busybox", "bin/busybox"])?;
    for folder in ["bin", "etc", "tmp", "root", "dev", "proc", "sys"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(&program, root.join("bin/busybox"))?;
    for applet in run(Command::new(&program).arg("--list"))?.lines() {
        if applet != "busybox" {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
        }
    }
    write_accounts(root)?;
    fs::remove_dir_all(unpacked)?;
    Ok(())
}

fn fill_tools(paths: &Paths, root: &Path) -> Result<()> {
    Suite::open(paths, IMAGE_SUITE)?.unpack_with_dependencies(TOOLS_PACKAGES, root)?;
    for part in TOOLS_WITHOUT {
        let _ = fs::remove_dir_all(root.join(part));
    }
    // What the packages' own scripts would have made.
    if !root.join("usr/bin/awk").exists() {
        std::os::unix::fs::symlink("mawk", root.join("usr/bin/awk"))?;
    }
    write_accounts(root)
}

fn write_accounts(root: &Path) -> Result<()> {
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}

fn find_below(root: &Path, candidates: &[&str]) -> Result<PathBuf> {
    match candidates
        .iter()
        .map(|c| root.join(c))
        .find(|path| path.exists())
    {
        Some(path) => Ok(path),
        None => bail!("the package has none of {}", candidates.join(", ")),
    }
}
