//! Reading certificates: whose they are, how long they live, what may be a root.

use rustls_pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};
use skep_core::{
    api::{Cluster, Node, Role},
    id::Id,
    time::Timestamp,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{IdentityError, authority};

/// Certificates in one file or answer at most.
const MAX_BUNDLE: usize = 16;

/// What a verified node certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The common name.
    pub node_id: Id<Node>,
    /// The organisational unit.
    pub role: Role,
    /// The organisation.
    pub cluster_id: Id<Cluster>,
    /// When it was signed, to the second.
    pub issued: Timestamp,
}

impl PeerIdentity {
    /// Reads the subject of a leaf certificate whose chain TLS has verified.
    ///
    /// # Errors
    /// When it is no node certificate.
    pub fn of(leaf: &[u8]) -> Result<Self, IdentityError> {
        let what = "node certificate";
        let malformed = |why: &str| IdentityError::malformed(what, why);
        let certificate = parse(leaf, what)?;
        let subject = certificate.subject();
        let common = subject.iter_common_name().next();
        let unit = subject.iter_organizational_unit().next();
        let organization = subject.iter_organization().next();
        let text = |name: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            name.and_then(|name| name.as_str().ok().map(str::to_owned))
                .unwrap_or_default()
        };
        let unit = text(unit);
        let role = [Role::Worker, Role::Manager]
            .into_iter()
            .find(|role| authority::unit(*role) == unit)
            .ok_or_else(|| malformed("it is not for a node"))?;
        Ok(Self {
            node_id: text(common)
                .parse()
                .map_err(|_| malformed("its common name is no node id"))?,
            role,
            cluster_id: text(organization)
                .parse()
                .map_err(|_| malformed("its organisation is no cluster id"))?,
            issued: seconds(certificate.validity().not_before.timestamp()) + authority::BACKDATE,
        })
    }
}

/// The certificates of a PEM text, in its order.
///
/// # Errors
/// When there is none, or more than a chain can have, or one is damaged.
pub fn chain(
    pem: &[u8],
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .take(MAX_BUNDLE + 1)
        .collect::<Result<_, _>>()
        .map_err(|error| IdentityError::malformed(what, format!("{error:?}")))?;
    if chain.is_empty() || chain.len() > MAX_BUNDLE {
        let why = format!("want 1 to {MAX_BUNDLE} certificates in PEM");
        return Err(IdentityError::malformed(what, why));
    }
    Ok(chain)
}

/// The certificates of a PEM text that also holds a key, byte for byte: tokens pin these bytes. And the key.
#[must_use]
pub fn split_bundle(bundle: &str) -> (String, String) {
    (
        sections(bundle, "CERTIFICATE"),
        sections(bundle, "PRIVATE KEY"),
    )
}

/// The sections of a PEM text with one label.
fn sections(bundle: &str, label: &str) -> String {
    let (begin, end) = (
        format!("-----BEGIN {label}-----"),
        format!("-----END {label}-----"),
    );
    let mut text = String::new();
    let mut rest = bundle;
    while let Some(start) = rest.find(&begin) {
        let Some(length) = rest[start..].find(&end) else {
            break;
        };
        let stop = start + length + end.len();
        text.push_str(&rest[start..stop]);
        text.push('\n');
        rest = &rest[stop..];
    }
    text
}

/// Checks that every certificate of a bundle is an authority that has signed itself.
///
/// # Errors
/// Which is not.
pub fn check_root(bundle: &[u8]) -> Result<(), IdentityError> {
    let what = "root certificate";
    for der in chain(bundle, what)? {
        let certificate = parse(&der, what)?;
        if !certificate.is_ca() {
            return Err(IdentityError::malformed(what, "it is no authority"));
        }
        certificate
            .verify_signature(None)
            .map_err(|_| IdentityError::malformed(what, "it has not signed itself"))?;
    }
    Ok(())
}

/// The raw public key of a PEM certificate.
///
/// # Errors
/// When it is damaged.
pub fn public_key(pem: &str) -> Result<Vec<u8>, IdentityError> {
    let what = "certificate";
    let chain = chain(pem.as_bytes(), what)?;
    let certificate = parse(&chain[0], what)?;
    Ok(certificate.public_key().subject_public_key.data.to_vec())
}

/// From when until when the first certificate of a PEM text is valid.
///
/// # Errors
/// When it is damaged.
pub fn validity(pem: &str) -> Result<(Timestamp, Timestamp), IdentityError> {
    let what = "certificate";
    let chain = chain(pem.as_bytes(), what)?;
    let certificate = parse(&chain[0], what)?;
    let validity = certificate.validity();
    Ok((
        seconds(validity.not_before.timestamp()),
        seconds(validity.not_after.timestamp()),
    ))
}

fn seconds(since_1970: i64) -> Timestamp {
    Timestamp(i128::from(since_1970) * 1_000_000_000)
}

/// SHA-256 of the first certificate of a PEM text, as `openssl x509 -fingerprint -sha256` prints it.
///
/// # Errors
/// When it is damaged.
pub fn fingerprint(pem: &str) -> Result<String, IdentityError> {
    let chain = chain(pem.as_bytes(), "certificate")?;
    let digest = Sha256::digest(&chain[0]);
    let bytes: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    Ok(bytes.join(":"))
}

/// Issuer name and issuer key of a node, for its description: both DER.
///
/// # Errors
/// When the root is damaged.
pub fn issuer_of_root(root: &str) -> Result<(Vec<u8>, Vec<u8>), IdentityError> {
    let chain = chain(root.as_bytes(), "root certificate")?;
    let certificate = parse(&chain[0], "root certificate")?;
    Ok((
        certificate.subject().as_raw().to_vec(),
        certificate.public_key().raw.to_vec(),
    ))
}

fn parse<'a>(der: &'a [u8], what: &'static str) -> Result<X509Certificate<'a>, IdentityError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|error| IdentityError::malformed(what, error))?;
    if rest.is_empty() {
        Ok(certificate)
    } else {
        Err(IdentityError::malformed(what, "bytes follow it"))
    }
}
