//! Certificate authorities: the cluster's, which signs nodes, and the operators'.

use std::{net::IpAddr, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType,
};
use skep_core::{
    api::{Cluster, Node, Role},
    id::Id,
    time::Timestamp,
};
use time::OffsetDateTime;

use super::{IdentityError, certificate};

/// Certificates are valid from an hour before they are signed: clocks differ.
pub(super) const BACKDATE: Duration = Duration::from_secs(3600);
/// Life of a root certificate.
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Life of a node certificate when the cluster says nothing else.
pub const DEFAULT_NODE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// No node certificate lives shorter than this.
pub const MIN_NODE_LIFE: Duration = Duration::from_secs(3600);
/// Life of an operator's certificate: renewing it is an operator's work.
const OPERATOR_LIFE: Duration = Duration::from_secs(825 * 24 * 3600);
/// Organisational unit of the certificates of 2376.
pub const API_UNIT: &str = "skep-api";
/// Names that a node's API certificate can have at most.
const MAX_NAMES: usize = 64;

/// The unit of a node certificate, which is also the name under which the peer checks it.
#[must_use]
pub fn unit(role: Role) -> &'static str {
    match role {
        Role::Worker => "swarm-worker",
        Role::Manager => "swarm-manager",
    }
}

/// A certificate authority with its key.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Whom a node certificate is for.
#[derive(Debug, Clone)]
pub struct NodeSubject {
    /// Common name.
    pub node_id: Id<Node>,
    /// Organisational unit.
    pub role: Role,
    /// Organisation.
    pub cluster_id: Id<Cluster>,
}

/// A fresh key and the request that asks for its certificate.
pub struct KeyAndRequest {
    /// PEM of the private key.
    pub key: String,
    /// PEM of the request, with an empty subject: the authority decides it.
    pub request: String,
}

impl KeyAndRequest {
    /// Draws a P-256 key.
    ///
    /// # Errors
    /// When the library cannot.
    pub fn draw() -> Result<Self, IdentityError> {
        let what = "certificate request";
        let signing = |source| IdentityError::Signing { what, source };
        let key = KeyPair::generate().map_err(signing)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(signing)?;
        Ok(Self {
            key: key.serialize_pem(),
            request: request.pem().map_err(signing)?,
        })
    }
}

impl Authority {
    /// Makes a new authority with a self-signed P-256 root.
    ///
    /// # Errors
    /// When the library cannot.
    pub fn generate(common_name: &str, now: Timestamp) -> Result<Self, IdentityError> {
        let what = "root certificate";
        let signing = |source| IdentityError::Signing { what, source };
        let key = KeyPair::generate().map_err(signing)?;
        let mut params = params(now, ROOT_LIFE);
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).map_err(signing)?;
        Self::from_pem(&root.pem(), &key.serialize_pem())
    }

    /// Takes up an authority.
    ///
    /// # Errors
    /// When certificate and key are damaged or do not belong together.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, IdentityError> {
        let damaged = |what| move |error| IdentityError::malformed(what, error);
        let key = KeyPair::from_pem(key).map_err(damaged("authority key"))?;
        let public = certificate::public_key(certificate)?;
        if public != key.der_bytes() {
            let why = "does not belong to the certificate";
            return Err(IdentityError::malformed("authority key", why));
        }
        certificate::check_root(certificate.as_bytes())?;
        let issuer =
            Issuer::from_ca_cert_pem(certificate, key).map_err(damaged("root certificate"))?;
        Ok(Self {
            certificate: certificate.to_owned(),
            issuer,
        })
    }

    /// PEM of the root certificate, exactly the bytes that tokens pin.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// PEM of the key.
    #[must_use]
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs a node's request. Only its public key is taken; the rest is ours to say.
    ///
    /// # Errors
    /// When the request is damaged or its key is of a kind that is not allowed.
    pub fn sign_node(
        &self,
        request: &str,
        subject: &NodeSubject,
        life: Duration,
        now: Timestamp,
    ) -> Result<String, IdentityError> {
        let unit = unit(subject.role);
        let mut params = params(now, life.max(MIN_NODE_LIFE));
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, subject.node_id.as_str());
        name.push(DnType::OrganizationalUnitName, unit);
        name.push(DnType::OrganizationName, subject.cluster_id.as_str());
        let mut names = vec![unit, subject.node_id.as_str()];
        if subject.role == Role::Manager {
            names.push("swarm-ca");
        }
        params.subject_alt_names = names.into_iter().map(dns).collect::<Result<_, _>>()?;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.sign(params, request, "node certificate")
    }

    /// Signs the request of a node's management endpoint for the given names and addresses.
    ///
    /// # Errors
    /// When the request is damaged, or a name is no name or one that nodes are known by.
    pub fn sign_api(
        &self,
        request: &str,
        subject: &NodeSubject,
        names: &[String],
        life: Duration,
        now: Timestamp,
    ) -> Result<String, IdentityError> {
        let mut params = params(now, life.max(MIN_NODE_LIFE));
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, subject.node_id.as_str());
        name.push(DnType::OrganizationalUnitName, API_UNIT);
        name.push(DnType::OrganizationName, subject.cluster_id.as_str());
        params.subject_alt_names = api_names(names, Some(subject.role))?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, request, "API certificate")
    }

    /// Issues an operator's certificate and its key, both PEM.
    ///
    /// # Errors
    /// When the library cannot.
    pub fn issue_operator(
        &self,
        name: &str,
        now: Timestamp,
    ) -> Result<(String, String), IdentityError> {
        let KeyAndRequest { key, request } = KeyAndRequest::draw()?;
        let mut params = params(now, OPERATOR_LIFE);
        let subject = &mut params.distinguished_name;
        subject.push(DnType::CommonName, name);
        subject.push(DnType::OrganizationalUnitName, "admin");
        subject.push(DnType::OrganizationName, "skep-operators");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok((self.sign(params, &request, "operator certificate")?, key))
    }

    fn sign(
        &self,
        params: CertificateParams,
        request: &str,
        what: &'static str,
    ) -> Result<String, IdentityError> {
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|error| IdentityError::malformed("certificate request", error))?;
        let algorithm = PublicKeyData::algorithm(&request.public_key);
        let allowed = [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
        ];
        if !allowed.contains(&algorithm) {
            let why = "its key must be ECDSA P-256 or P-384";
            return Err(IdentityError::malformed("certificate request", why));
        }
        params
            .signed_by(&request.public_key, &self.issuer)
            .map(|certificate| certificate.pem())
            .map_err(|source| IdentityError::Signing { what, source })
    }
}

/// Makes the self-signed API certificate of a node that is in no swarm yet, and its key, both PEM.
///
/// # Errors
/// When a name is no name.
pub fn self_signed_api(
    names: &[String],
    now: Timestamp,
) -> Result<(String, String), IdentityError> {
    let what = "API certificate";
    let signing = |source| IdentityError::Signing { what, source };
    let key = KeyPair::generate().map_err(signing)?;
    let mut params = params(now, ROOT_LIFE);
    params
        .distinguished_name
        .push(DnType::CommonName, "skep node in no swarm");
    params
        .distinguished_name
        .push(DnType::OrganizationalUnitName, API_UNIT);
    params.subject_alt_names = api_names(names, None)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.self_signed(&key).map_err(signing)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn params(now: Timestamp, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // Both ends are set: the library's own default begins in 1975.
    params.not_before = moment(now) - BACKDATE;
    params.not_after = moment(now) + life;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params
}

fn moment(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.unix_seconds()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn dns(name: &str) -> Result<SanType, IdentityError> {
    name.try_into()
        .map(SanType::DnsName)
        .map_err(|error| IdentityError::malformed("certificate name", error))
}

/// The name under which nodes know every manager.
const MANAGER: &str = "swarm-manager";

/// Whether an API certificate of a node with this role, none outside a swarm, may have the name. A manager may be
/// called `swarm-manager`: it is one.
pub(crate) fn may_be_named(name: &str, role: Option<Role>) -> bool {
    let manages = role == Some(Role::Manager) && name.eq_ignore_ascii_case(MANAGER);
    is_dns_name(name) && (manages || !is_reserved(name))
}

/// Whether a node could be taken for a manager under this name.
fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [MANAGER, "swarm-worker", "swarm-ca"].contains(&name.as_str())
        || name.parse::<Id<Node>>().is_ok()
}

fn api_names(names: &[String], role: Option<Role>) -> Result<Vec<SanType>, IdentityError> {
    let refuse = |why: String| Err(IdentityError::malformed("certificate name", why));
    if names.len() > MAX_NAMES {
        return refuse(format!("more than {MAX_NAMES} names"));
    }
    let mut all = Vec::new();
    for name in names {
        let entry = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if may_be_named(name, role) => dns(name)?,
            Err(_) if is_reserved(name) => {
                return refuse(format!("{name:?} is a name that nodes are known by"));
            }
            Err(_) => {
                return refuse(format!("{name:?} is neither a DNS name nor an address"));
            }
        };
        if !all.contains(&entry) {
            all.push(entry);
        }
    }
    Ok(all)
}

/// Letters, digits, hyphens and dots, in labels of 1 to 63 characters.
#[must_use]
pub fn is_dns_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}
