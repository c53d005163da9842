//! The flags of `service create` and `service update` for secrets and configs.

use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde_json::Value;
use skep_core::api::{
    ConfigReference, ContainerSpec, FileTarget, SecretReference, dependency::Kind,
};

use super::{
    filters, items, text,
    transport::{CONFIG_LIST, Call, SECRET_LIST, Transport},
};

/// Those of `create`.
#[derive(Debug, Default, Args)]
pub(super) struct Dependencies {
    /// Secret, NAME or source=…,target=…,uid=…,gid=…,mode=…
    #[arg(long)]
    secret: Vec<String>,
    /// Config, NAME or source=…,target=…,uid=…,gid=…,mode=…
    #[arg(long)]
    config: Vec<String>,
}

impl Dependencies {
    /// Puts what was given into a spec.
    pub(super) async fn apply(
        self,
        transport: &dyn Transport,
        container: &mut ContainerSpec,
    ) -> Result<()> {
        add(transport, container, &self.secret, &self.config).await
    }
}

/// Those of `update`.
#[derive(Debug, Default, Args)]
pub(super) struct Changes {
    /// Give it a secret
    #[arg(long)]
    secret_add: Vec<String>,
    /// Take one away, by its name
    #[arg(long)]
    secret_rm: Vec<String>,
    /// Give it a config
    #[arg(long)]
    config_add: Vec<String>,
    /// Take one away, by its name
    #[arg(long)]
    config_rm: Vec<String>,
}

impl Changes {
    /// Makes the changes that were asked for; what is taken away first makes room for what is given.
    pub(super) async fn apply(
        self,
        transport: &dyn Transport,
        container: &mut ContainerSpec,
    ) -> Result<()> {
        let secrets = &mut container.secrets;
        secrets.retain(|have| !self.secret_rm.contains(&have.secret_name));
        let configs = &mut container.configs;
        configs.retain(|have| !self.config_rm.contains(&have.config_name));
        add(transport, container, &self.secret_add, &self.config_add).await
    }
}

async fn add(
    transport: &dyn Transport,
    container: &mut ContainerSpec,
    secrets: &[String],
    configs: &[String],
) -> Result<()> {
    for text in secrets {
        let (secret_name, file) = parse(Kind::Secret, text)?;
        container.secrets.push(SecretReference {
            file: Some(file),
            secret_id: id_of(transport, Kind::Secret, &secret_name).await?,
            secret_name,
        });
    }
    for text in configs {
        let (config_name, file) = parse(Kind::Config, text)?;
        container.configs.push(ConfigReference {
            file: Some(file),
            runtime: None,
            config_id: id_of(transport, Kind::Config, &config_name).await?,
            config_name,
        });
    }
    Ok(())
}

/// `NAME`, or `source=…,target=…,uid=…,gid=…,mode=…`: the name, and the file that it becomes.
fn parse(kind: Kind, text: &str) -> Result<(String, FileTarget)> {
    let flag = format!("--{} {text:?}", kind.as_str());
    let (mut name, mut file) = (String::new(), FileTarget::default());
    if text.contains('=') {
        for part in text.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key {
                "source" | "src" => value.clone_into(&mut name),
                "target" => value.clone_into(&mut file.name),
                "uid" => value.clone_into(&mut file.uid),
                "gid" => value.clone_into(&mut file.gid),
                "mode" => {
                    let mode = u32::from_str_radix(value.trim_start_matches("0o"), 8);
                    file.mode = mode.map_err(|_| {
                        anyhow!("{flag}: invalid mode {value:?}: give it in octal, such as 0440")
                    })?;
                }
                _ => bail!("{flag}: {part:?} is not source=, target=, uid=, gid= or mode="),
            }
        }
    } else {
        text.clone_into(&mut name);
    }
    if name.is_empty() {
        bail!("{flag} names no source");
    }
    if file.name.is_empty() {
        file.name.clone_from(&name);
    }
    Ok((name, file))
}

/// The id of the one with this name.
async fn id_of(transport: &dyn Transport, kind: Kind, name: &str) -> Result<String> {
    let list = match kind {
        Kind::Secret => SECRET_LIST,
        Kind::Config => CONFIG_LIST,
    };
    let wanted = filters(&[format!("names={name}")])?;
    let call = Call::new(list).with([("filters", wanted)]);
    let found = transport.call(call).await?;
    let named = |one: &&Value| text(one, "/Spec/Name") == name;
    match items(&found).find(named) {
        Some(one) => Ok(text(one, "/ID").to_owned()),
        None => bail!("{} not found: {name}", kind.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_in_both_forms() {
        let (name, file) = parse(Kind::Secret, "db").unwrap();
        assert_eq!((name.as_str(), file.name.as_str()), ("db", "db"));
        assert_eq!((file.uid.as_str(), file.mode), ("0", 0o444));
        let text = "src=site,target=/etc/site.conf,uid=33,gid=34,mode=0440";
        let (name, file) = parse(Kind::Config, text).unwrap();
        assert_eq!(
            (name.as_str(), file.name.as_str()),
            ("site", "/etc/site.conf")
        );
        assert_eq!(
            (file.uid.as_str(), file.gid.as_str(), file.mode),
            ("33", "34", 0o440)
        );
        assert_eq!(
            parse(Kind::Config, "source=x,mode=440").unwrap().1.mode,
            0o440
        );
        for wrong in [
            "",
            "target=x",
            "source=x,mode=9",
            "source=x,colour=red",
            "source=x,mode",
        ] {
            let error = parse(Kind::Secret, wrong).unwrap_err().to_string();
            assert!(error.starts_with("--secret \""), "{error}");
        }
    }
}
