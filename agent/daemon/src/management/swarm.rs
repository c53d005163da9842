//! The swarm itself: init, join, leave, inspection, settings and tokens.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::{Value, json};
use skep_core::{
    api::{ApiError, Availability, ClusterRequest, ClusterResponse, ClusterSpec, Node},
    id::Id,
    wire::unlock::UnlockKey,
};

use skep_host::entropy;
use zeroize::Zeroizing;

use super::{Management, document, params::Params, render};
use crate::cluster::{InitParams, JoinParams};

/// The body of `POST /swarm/init`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
struct InitBody {
    listen_addr: String,
    advertise_addr: String,
    data_path_addr: String,
    data_path_port: u16,
    default_addr_pool: Option<Vec<String>>,
    subnet_size: u8,
    force_new_cluster: bool,
    auto_lock_managers: bool,
    availability: Option<Availability>,
    spec: ClusterSpec,
}

/// The body of `POST /swarm/unlock`. Without `Debug`: the key stays out of logs.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
struct UnlockBody {
    unlock_key: String,
}

/// The body of `POST /swarm/join`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
struct JoinBody {
    listen_addr: String,
    advertise_addr: String,
    data_path_addr: String,
    remote_addrs: Option<Vec<String>>,
    join_token: String,
    availability: Option<Availability>,
}

impl Management {
    /// Makes a new swarm; answers this node's id.
    ///
    /// # Errors
    /// `Invalid` and `Unsupported` by field, `Unavailable` if the node is in a swarm.
    pub async fn swarm_init(&self, body: &[u8]) -> Result<Value, ApiError> {
        let mut body: InitBody = document::parse(body)?;
        if body.auto_lock_managers {
            let encryption = body.spec.encryption_config.get_or_insert_default();
            encryption.auto_lock_managers = true;
        }
        check_listen_addr(&body.listen_addr)?;
        let advertise_addr = address("AdvertiseAddr", &body.advertise_addr)?;
        check_data_path_addr(&body.data_path_addr, advertise_addr)?;
        check_spec(&body.spec)?;
        let params = InitParams {
            advertise_addr,
            spec: body.spec,
            default_addr_pool: body.default_addr_pool.unwrap_or_default(),
            subnet_size: body.subnet_size,
            data_path_port: body.data_path_port,
            availability: body.availability.unwrap_or_default(),
            force_new_cluster: body.force_new_cluster,
        };
        let node = self.cluster.init(params).await?;
        Ok(json!(node))
    }

    /// Joins a swarm.
    ///
    /// # Errors
    /// `Invalid` and `Unsupported` by field, `Unavailable` if the node is in a swarm or reaches no manager.
    pub async fn swarm_join(&self, body: &[u8]) -> Result<Value, ApiError> {
        let body: JoinBody = document::parse(body)?;
        check_listen_addr(&body.listen_addr)?;
        let advertise_addr = address("AdvertiseAddr", &body.advertise_addr)?;
        check_data_path_addr(&body.data_path_addr, advertise_addr)?;
        let params = JoinParams {
            remote_addrs: body.remote_addrs.unwrap_or_default(),
            join_token: body.join_token,
            advertise_addr,
            availability: body.availability.unwrap_or_default(),
        };
        self.cluster.join(params).await?;
        Ok(Value::Null)
    }

    /// Leaves the swarm.
    ///
    /// # Errors
    /// `Unavailable` on a manager without `force`, and in no swarm.
    pub async fn swarm_leave(&self, params: &Params) -> Result<Value, ApiError> {
        self.cluster.leave(params.flag("force")).await?;
        Ok(Value::Null)
    }

    /// The cluster with its join tokens.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager.
    pub fn swarm_inspect(&self) -> Result<Value, ApiError> {
        let view = self.view()?;
        let cluster = view.cluster().ok_or_else(|| self.not_a_manager())?;
        Ok(render::swarm::swarm(cluster))
    }

    /// Changes settings and rotates tokens.
    ///
    /// # Errors
    /// `Invalid` and `Unsupported` by field, `OutOfSequence` if the cluster has changed since.
    pub async fn swarm_update(&self, params: &Params, body: &[u8]) -> Result<Value, ApiError> {
        let version = params.version()?;
        let spec: ClusterSpec = document::parse(body)?;
        check_spec(&spec)?;
        let view = self.view()?;
        let cluster = view.cluster().ok_or_else(|| self.not_a_manager())?;
        let tokens = &cluster.root_ca.join_tokens;
        let rotated = |key: &str, token: &str| -> Result<Option<String>, ApiError> {
            params.flag(key).then(|| with_new_secret(token)).transpose()
        };
        let request = ClusterRequest::ClusterUpdate {
            version,
            spec: Box::new(spec),
            new_worker_token: rotated("rotateWorkerToken", &tokens.worker)?,
            new_manager_token: rotated("rotateManagerToken", &tokens.manager)?,
            drawn_unlock_key: draw_unlock_key()?,
            rotate_unlock_key: params.flag("rotateManagerUnlockKey"),
        };
        self.done(request).await
    }

    /// The key that unlocks managers, `{"UnlockKey":"SWMKEY-1-…"}`; empty without autolock.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager.
    pub fn swarm_unlock_key(&self) -> Result<Value, ApiError> {
        let view = self.view()?;
        let cluster = view.cluster().ok_or_else(|| self.not_a_manager())?;
        let key = cluster.unlock_key.as_ref().map(UnlockKey::text);
        Ok(json!({ "UnlockKey": key.as_deref().map_or("", String::as_str) }))
    }

    /// Unlocks this manager.
    ///
    /// # Errors
    /// `Invalid` for a text that is no key, `Unauthorized` for another key, `Conflict` when it is not locked.
    pub async fn swarm_unlock(&self, body: &[u8]) -> Result<Value, ApiError> {
        let body: UnlockBody = document::parse(body)?;
        let key = UnlockKey::parse(&Zeroizing::new(body.unlock_key));
        let key = key.map_err(|error| ApiError::Invalid {
            field: "UnlockKey".to_owned(),
            why: error.to_string(),
        })?;
        self.cluster.unlock(key).await?;
        Ok(Value::Null)
    }

    /// Carries out a request that makes something; its id.
    pub(super) async fn made(&self, request: ClusterRequest) -> Result<String, ApiError> {
        let answer = self.cluster.request(request).await?;
        let id = answer.created().map(str::to_owned);
        id.ok_or_else(|| {
            ApiError::Unavailable("the leader gave no id: look at the list".to_owned())
        })
    }

    /// Carries out a change that has no answer but warnings: Docker's `{"Warnings":null}`.
    pub(super) async fn done(&self, request: ClusterRequest) -> Result<Value, ApiError> {
        let warnings = match self.cluster.request(request).await? {
            ClusterResponse::Done { warnings } => warnings,
            ClusterResponse::ServiceCreated(_)
            | ClusterResponse::NetworkCreated(_)
            | ClusterResponse::SecretCreated(_)
            | ClusterResponse::ConfigCreated(_) => Vec::new(),
        };
        let list = (!warnings.is_empty()).then_some(warnings);
        Ok(json!({ "Warnings": list }))
    }
}

fn refuse(given: bool, field: &str) -> Result<(), ApiError> {
    if given {
        Err(ApiError::Unsupported(field.to_owned()))
    } else {
        Ok(())
    }
}

/// Managers listen on every address, port 2377.
fn check_listen_addr(text: &str) -> Result<(), ApiError> {
    let every = matches!(
        text,
        "" | "0.0.0.0" | "0.0.0.0:2377" | "[::]:2377" | ":2377"
    );
    if every {
        return Ok(());
    }
    Err(ApiError::Unsupported(format!(
        "ListenAddr {text:?} (managers listen on 0.0.0.0:2377)"
    )))
}

/// The data path uses the advertised address.
fn check_data_path_addr(text: &str, advertise: Option<IpAddr>) -> Result<(), ApiError> {
    if text.is_empty() || address("DataPathAddr", text)? == advertise {
        return Ok(());
    }
    Err(ApiError::Unsupported(format!(
        "DataPathAddr {text:?} (the data path uses AdvertiseAddr)"
    )))
}

/// `address[:2377]`; absent when empty.
fn address(field: &str, text: &str) -> Result<Option<IpAddr>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(addr) = text.parse::<IpAddr>() {
        return Ok(Some(addr));
    }
    match text.parse::<SocketAddr>() {
        Ok(addr) if addr.port() == 2377 => Ok(Some(addr.ip())),
        Ok(addr) => Err(ApiError::Unsupported(format!(
            "{field} with port {} (managers listen on 2377)",
            addr.port()
        ))),
        Err(_) => Err(ApiError::Invalid {
            field: field.to_owned(),
            why: format!("{text:?} is not an IP address: give an address of this node"),
        }),
    }
}

/// Refuses the settings that Skep does not have, by name.
fn check_spec(spec: &ClusterSpec) -> Result<(), ApiError> {
    let ca = &spec.ca_config;
    refuse(!ca.external_cas.is_empty(), "Spec.CAConfig.ExternalCAs")?;
    refuse(
        !ca.signing_ca_cert.is_empty(),
        "Spec.CAConfig.SigningCACert",
    )?;
    refuse(!ca.signing_ca_key.is_empty(), "Spec.CAConfig.SigningCAKey")?;
    refuse(ca.force_rotate != 0, "Spec.CAConfig.ForceRotate")?;
    check_unused(spec.raft.as_ref(), &render::swarm::raft(), "Spec.Raft")?;
    check_unused(spec.task_defaults.as_ref(), &json!({}), "Spec.TaskDefaults")
}

/// Takes a group of settings that Skep does not use only if each is unset or as it is shown.
fn check_unused(given: Option<&Value>, shown: &Value, name: &str) -> Result<(), ApiError> {
    let Some(Value::Object(given)) = given else {
        return Ok(());
    };
    for (key, value) in given {
        let unset = value.is_null() || *value == json!(0);
        if !unset && shown.get(key) != Some(value) {
            return Err(ApiError::Unsupported(format!("{name}.{key} = {value}")));
        }
    }
    Ok(())
}

/// A join token of the same cluster with a secret of its own: 128 bits from the kernel, in the same 25
/// digits of base 36 as an id.
fn with_new_secret(token: &str) -> Result<String, ApiError> {
    let (cluster, _) = token.rsplit_once('-').ok_or_else(|| {
        ApiError::Unavailable("the cluster has no join tokens yet: try again".to_owned())
    })?;
    let bits = entropy::bits128().map_err(|error| ApiError::Unavailable(error.chain()))?;
    let secret = Id::<Node>::from_entropy(bits);
    Ok(format!("{cluster}-{secret}"))
}

fn draw_unlock_key() -> Result<UnlockKey, ApiError> {
    let secret = entropy::bits256().map_err(|error| ApiError::Unavailable(error.chain()))?;
    Ok(UnlockKey::new(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_token_keeps_the_cluster_and_changes_the_secret() {
        let old =
            "SWMTKN-1-2zhp0ef9dsqt2wpgmddv6h6gf5r40gbhj4pzs2nbm2wlq9u4pt-4d6oixrwnl4c45ncvlblzzt0x";
        let new = with_new_secret(old).unwrap();
        assert_eq!(new.len(), old.len());
        assert_eq!(
            new.rsplit_once('-').unwrap().0,
            old.rsplit_once('-').unwrap().0
        );
        assert_ne!(new, old);
    }

    #[test]
    fn addresses_are_taken_with_the_port_of_the_managers_only() {
        let ip = Some("192.168.77.11".parse().unwrap());
        assert_eq!(address("AdvertiseAddr", "192.168.77.11").unwrap(), ip);
        assert_eq!(address("AdvertiseAddr", "192.168.77.11:2377").unwrap(), ip);
        assert_eq!(address("AdvertiseAddr", "").unwrap(), None);
        for wrong in ["192.168.77.11:2378", "eth0", "300.1.1.1"] {
            let error = address("AdvertiseAddr", wrong).unwrap_err().to_string();
            assert!(error.contains("AdvertiseAddr"), "{error}");
        }
    }

    #[test]
    fn settings_that_skep_lacks_are_refused_by_name() {
        let spec = |text: &str| document::parse::<ClusterSpec>(text.as_bytes()).unwrap();
        let sent_by_docker = r#"{"Labels":null,"Orchestration":{},"Raft":{"ElectionTick":0,"HeartbeatTick":0},
            "Dispatcher":{},"CAConfig":{},"TaskDefaults":{},"EncryptionConfig":{"AutoLockManagers":false}}"#;
        assert_eq!(check_spec(&spec(sent_by_docker)), Ok(()));
        let cases = [
            (
                r#"{"Raft":{"SnapshotInterval":5}}"#,
                "Raft.SnapshotInterval",
            ),
            (r#"{"CAConfig":{"ExternalCAs":[{}]}}"#, "ExternalCAs"),
            (
                r#"{"TaskDefaults":{"LogDriver":{"Name":"x"}}}"#,
                "TaskDefaults.LogDriver",
            ),
        ];
        for (text, name) in cases {
            let error = check_spec(&spec(text)).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
