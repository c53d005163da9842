//! `skep gen swarm`: all that lets machines boot at the same moment into one swarm, made off line.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use skep_core::wire::token::JoinToken;
use skep_host::{clock, entropy};

use crate::{identity::Authority, rpc::with_port};

/// Makes things off line.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make the certificates, tokens, command lines and credentials of a new swarm
    Swarm(Arguments),
}

/// Arguments of `skep gen swarm`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The folder to make; it must not exist or be empty
    folder: PathBuf,
    /// Address at which the machines that join reach the first manager; several for more managers
    #[arg(long = "manager", value_name = "ADDRESS", required = true)]
    managers: Vec<String>,
    /// Name in the operator's certificate
    #[arg(long, default_value = "admin")]
    operator: String,
}

/// Carries a command out; what to say to the user is returned.
///
/// # Errors
/// When the folder is in use or cannot be written.
pub(super) fn run(verb: &Verb) -> Result<String> {
    match verb {
        Verb::Swarm(arguments) => swarm(arguments),
    }
}

fn swarm(arguments: &Arguments) -> Result<String> {
    let folder = Folder::make(&arguments.folder)?;
    let now = clock::timestamp();
    let cluster = Authority::generate("swarm-ca", now)?;
    let operators = Authority::generate("skep-operator-ca", now)?;
    let token = || -> Result<String> {
        let secret = entropy::bits128()?;
        Ok(JoinToken::new(cluster.certificate().as_bytes(), secret).to_string())
    };
    let (worker, manager) = (token()?, token()?);
    let addresses: Vec<String> = arguments.managers.iter().map(|it| with_port(it)).collect();
    let addresses = addresses.join(",");
    let operator_ca = ("skep.operator-ca", operators.certificate().to_owned());
    let tokens = json!({ "worker": worker, "manager": manager });

    let (certificate, key) = operators.issue_operator(&arguments.operator, now)?;
    folder.write("operator/ca.pem", cluster.certificate())?;
    folder.write("operator/cert.pem", &certificate)?;
    folder.write("operator/key.pem", &key)?;
    folder.write("operator/operator-ca.pem", operators.certificate())?;
    folder.write("operator/operator-ca-key.pem", &operators.key())?;

    let both = format!("{}{}", cluster.certificate(), cluster.key());
    let first = [
        ("skep.ca", both),
        ("skep.tokens", tokens.to_string()),
        operator_ca.clone(),
    ];
    folder.role("first-manager", "skep.swarm=init", &first)?;
    for (role, token) in [("manager", &manager), ("worker", &worker)] {
        let join = ("skep.join", format!("{token}@{addresses}"));
        folder.role(role, "", &[join, operator_ca.clone()])?;
    }
    let said = readme(&arguments.folder);
    folder.write("README", &said)?;
    Ok(said)
}

fn readme(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "The swarm in {folder} is ready to boot. Each machine boots the same image with\n\
         \n\
         - its own words on the kernel command line: skep.name=NAME skep.advertise=ADDRESS,\n\
         - the words in the file cmdline of its role, and\n\
         - the files in the folder credentials of its role as systemd credentials of those names\n\
           (SMBIOS type 11 strings io.systemd.credential.binary:NAME=BASE64).\n\
         \n\
         first-manager/  exactly one machine, at the address that was given with --manager\n\
         manager/        further managers\n\
         worker/         all others\n\
         operator/       yours: ca.pem, cert.pem and key.pem for docker --tlsverify and skep --certs\n\
         \n\
         The machines may boot in any order and at the same moment. Keep first-manager/credentials and\n\
         operator/ secret: who has them has the swarm.\n\
         \n\
         docker --tlsverify --tlscacert {folder}/operator/ca.pem --tlscert {folder}/operator/cert.pem \\\n\
         \x20      --tlskey {folder}/operator/key.pem -H tcp://ADDRESS:2376 node ls\n"
    )
}

/// A new folder that only its owner can read.
struct Folder<'a> {
    path: &'a Path,
}

impl<'a> Folder<'a> {
    fn make(path: &'a Path) -> Result<Self> {
        if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            bail!(
                "{} is not empty: give a new folder, so that no swarm's keys are lost",
                path.display()
            );
        }
        let folder = Self { path };
        folder.subfolder(path)?;
        Ok(folder)
    }

    fn subfolder(&self, path: &Path) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make {}", path.display()))
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            self.subfolder(parent)?;
        }
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn role(&self, role: &str, cmdline: &str, credentials: &[(&str, String)]) -> Result<()> {
        self.write(&format!("{role}/cmdline"), &format!("{cmdline}\n"))?;
        for (name, value) in credentials {
            self.write(&format!("{role}/credentials/{name}"), value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use skep_core::system::config::{self, Start};

    use super::*;
    use crate::identity::{certificate, tls};

    fn credentials(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let files = fs::read_dir(folder).unwrap().map(Result::unwrap);
        files
            .map(|file| {
                let name = file.file_name().into_string().unwrap();
                (name, fs::read(file.path()).unwrap())
            })
            .collect()
    }

    #[test]
    fn what_is_made_is_what_nodes_read() {
        let root = std::env::temp_dir().join(format!("skep-gen-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let arguments = Arguments {
            folder: root.clone(),
            managers: vec!["192.168.77.11".to_owned()],
            operator: "admin".to_owned(),
        };
        swarm(&arguments).unwrap();
        assert!(swarm(&arguments).is_err(), "a second time destroys nothing");

        let cmdline = fs::read_to_string(root.join("first-manager/cmdline")).unwrap();
        let (first, complaints) = config::parse(
            &cmdline,
            &credentials(&root.join("first-manager/credentials")),
        );
        assert_eq!(complaints, []);
        assert!(first.start == Start::Init);
        let bundle = first.ca.unwrap();
        let (certificate, key) = certificate::split_bundle(&bundle);
        let authority = Authority::from_pem(&certificate, &key).unwrap();
        let tokens = first.tokens.unwrap();
        let pinned = JoinToken::parse(&tokens.worker).unwrap();
        assert!(pinned.pins(authority.certificate().as_bytes()));

        for (role, token) in [("worker", tokens.worker), ("manager", tokens.manager)] {
            let given = credentials(&root.join(role).join("credentials"));
            let (config, complaints) = config::parse("", &given);
            assert_eq!(complaints, []);
            let managers = vec!["192.168.77.11:2377".to_owned()];
            assert!(config.start == Start::Join { token, managers });
            let operators = config.operator_ca.unwrap();
            tls::api_server(&operators, std::sync::Arc::default()).unwrap();
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
