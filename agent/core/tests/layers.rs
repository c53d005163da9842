//! The may-use table of `agent/README.md`, held against the sources: modules of this crate by the paths that
//! they name, the other crates by what they depend on.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each module and the other modules of this crate that it may name.
const MODULES: [(&str, &[&str]); 13] = [
    ("id", &["rng"]),
    ("time", &[]),
    ("rng", &[]),
    ("wire", &["id", "rng", "time"]),
    ("api", &["id", "rng", "time", "wire"]),
    ("store", &["api", "id", "rng", "time"]),
    // Of the network only the map that managers and nodes share, see `SHARED`.
    (
        "manager",
        &["api", "id", "network", "rng", "store", "time", "wire"],
    ),
    ("worker", &["api", "id", "rng", "time", "wire"]),
    ("gossip", &["api", "id", "rng", "time", "wire"]),
    ("network", &["api", "id", "rng", "time", "wire"]),
    ("system", &["api", "id", "rng", "time", "wire"]),
    (
        "node",
        &[
            "api", "id", "network", "rng", "system", "time", "wire", "worker",
        ],
    ),
    (
        "testing",
        &[
            "api", "id", "manager", "network", "node", "rng", "store", "system", "time", "wire",
            "worker",
        ],
    ),
];

/// What the manager may name of the network: types of the seam, no decision.
const SHARED: [&str; 2] = ["network::address", "network::mesh"];

/// The manager's loops meet only in the store.
const LOOPS: [&str; 5] = ["allocator", "orchestrator", "reaper", "retire", "scheduler"];

/// Dependencies that a crate may not have.
const CRATES: [(&str, &[&str]); 6] = [
    (
        "agent/core",
        &[
            "tokio",
            "rustix",
            "nix",
            "libc",
            "openraft",
            "tonic",
            "axum",
            "skep-host",
            "skepd",
        ],
    ),
    (
        "agent/host",
        &["skepd", "openraft", "axum", "tonic", "libcontainer"],
    ),
    ("agent/shim", &["tokio", "rustls", "skep-core", "skep-host"]),
    (
        "agent/init",
        &[
            "tokio",
            "rustls",
            "nix",
            "libcontainer",
            "skep-core",
            "skep-host",
        ],
    ),
    (
        "agent/daemon",
        &[
            "libcontainer",
            "neli",
            "netlink-packet-route",
            "nix",
            "rtnetlink",
        ],
    ),
    ("tests/qemu", &["skep-host", "skepd"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(name: Option<&std::ffi::OsStr>) -> String {
    let name = name.and_then(std::ffi::OsStr::to_str);
    name.expect("a name in UTF-8").to_owned()
}

/// Every source file of this crate with its module path; files of tests are left out.
fn sources() -> Vec<(Vec<String>, String)> {
    let mut found = Vec::new();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![base.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            let name = text(path.file_stem());
            if path.is_dir() {
                if name != "tests" {
                    folders.push(path);
                }
                continue;
            }
            if name == "tests" || name == "lib" || path.extension().is_none_or(|it| it != "rs") {
                continue;
            }
            let relative = path.strip_prefix(&base).expect("inside").with_extension("");
            let parts = relative.iter().map(|part| text(Some(part)));
            let module = parts.filter(|part| part != "mod").collect();
            found.push((module, fs::read_to_string(&path).expect("a source")));
        }
    }
    found
}

/// The paths from the crate's root that a source file names, as far as two parts deep.
fn named(module: &[String], source: &str) -> BTreeSet<String> {
    let source = source
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let code: String = source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let mut paths = BTreeSet::new();
    for (start, prefix) in prefixes(&code) {
        let ups = prefix.matches("super").count();
        let from: Vec<String> = match ups {
            0 => Vec::new(),
            ups => module[..module.len().saturating_sub(ups)].to_vec(),
        };
        for tail in tails(&code[start + prefix.len()..], 2) {
            let path: Vec<String> = from.iter().cloned().chain(tail).collect();
            paths.insert(path.into_iter().take(2).collect::<Vec<_>>().join("::"));
        }
    }
    paths
}

/// Where `crate::` and chains of `super::` stand.
fn prefixes(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < code.len() {
        let rest = &code[at..];
        let before = code[..at].chars().next_back();
        let fresh =
            before.is_none_or(|it| !(it.is_alphanumeric() || it == '_' || it == ':' || it == '$'));
        if fresh && rest.starts_with("crate::") {
            found.push((at, "crate::".to_owned()));
        } else if fresh && rest.starts_with("super::") {
            let count = rest.split("::").take_while(|part| *part == "super").count();
            found.push((at, "super::".repeat(count)));
        }
        at += rest.chars().next().map_or(1, char::len_utf8);
    }
    found
}

/// The paths, at most `depth` parts long, that begin here: `a::b`, or those of a group `{a::b, c}`.
fn tails(code: &str, depth: usize) -> Vec<Vec<String>> {
    if depth == 0 {
        return vec![Vec::new()];
    }
    let code = code.trim_start();
    if let Some(group) = code.strip_prefix('{') {
        return items(group)
            .iter()
            .flat_map(|item| tails(item, depth))
            .collect();
    }
    let end = code
        .find(|it: char| !(it.is_alphanumeric() || it == '_'))
        .unwrap_or(code.len());
    let (head, rest) = code.split_at(end);
    if head.is_empty() {
        return vec![Vec::new()];
    }
    let below = match rest.strip_prefix("::") {
        Some(rest) => tails(rest, depth - 1),
        None => vec![Vec::new()],
    };
    let with_head = |tail: Vec<String>| [head.to_owned()].into_iter().chain(tail).collect();
    below.into_iter().map(with_head).collect()
}

/// The items of a group whose opening brace is behind us.
fn items(group: &str) -> Vec<&str> {
    let (mut items, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    // A comma may stand behind the last one.
    items.retain(|item| !item.trim().is_empty());
    items
}

/// What a file names and may not.
fn violations(module: &[String], source: &str) -> Vec<String> {
    let own = module[0].as_str();
    let Some((_, allowed)) = MODULES.iter().find(|(name, _)| *name == own) else {
        return vec![format!("module {own} is not in the table")];
    };
    let is_loop = |name: &str| LOOPS.contains(&name);
    let own_loop = module.get(1).filter(|it| own == "manager" && is_loop(it));
    let mut found = Vec::new();
    for path in named(module, source) {
        let mut parts = path.split("::");
        let (first, second) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let known = MODULES.iter().any(|(name, _)| *name == first);
        let foreign = known && first != own && !allowed.contains(&first);
        let unshared = own == "manager" && first == "network" && !SHARED.contains(&path.as_str());
        let other_loop = own_loop
            .is_some_and(|own_loop| first == "manager" && is_loop(second) && own_loop != second);
        if foreign || unshared || other_loop {
            found.push(format!("{} names {path}", module.join("::")));
        }
    }
    found
}

#[test]
fn modules_use_only_what_they_may() {
    let sources = sources();
    assert!(sources.len() > 40, "the sources were not found");
    let found = sources
        .iter()
        .flat_map(|(module, source)| violations(module, source));
    let found: Vec<String> = found.collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn crates_depend_only_on_what_they_may() {
    for (folder, banned) in CRATES {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let mut section = "";
        for line in manifest.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
            }
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            let shipped = ["[dependencies]", "[build-dependencies]"].contains(&section);
            assert!(
                !(shipped && banned.contains(&name)),
                "{folder} depends on {name}"
            );
        }
    }
}

#[test]
fn a_breach_is_seen() {
    let module = |path: &str| path.split("::").map(str::to_owned).collect::<Vec<_>>();
    for (path, source) in [
        ("store::view", "use crate::manager::Ctx;"),
        (
            "store",
            "use crate::{\n    api::{Task, Node},\n    manager::mesh,\n};",
        ),
        (
            "worker::task",
            "fn f() -> crate::network::NetState { todo() }",
        ),
        ("worker", "use super::network::mesh;"),
        ("worker::task", "use super::super::manager::pass;"),
        (
            "manager::scheduler::filter",
            "use crate::manager::allocator;",
        ),
        (
            "manager::retire",
            "use super::{Ctx, orchestrator::restart};",
        ),
        ("manager::mesh", "use crate::network::plan;"),
        ("unheard_of", ""),
    ] {
        assert_eq!(
            violations(&module(path), source).len(),
            1,
            "{path}: {source}"
        );
    }
    for (path, source) in [
        (
            "store::view",
            "// crate::manager is above\nuse crate::api::Task;\nuse super::Change;",
        ),
        (
            "manager::mesh",
            "use crate::network::{address::Ipv4Net, mesh::MeshMap};",
        ),
        (
            "manager::retire",
            "use super::constraint; use crate::manager::{Ctx, constraint};",
        ),
        (
            "store",
            "#[cfg(test)]\nmod tests {\n use crate::manager::Ctx;\n}",
        ),
    ] {
        assert_eq!(
            violations(&module(path), source),
            [""; 0],
            "{path}: {source}"
        );
    }
}
