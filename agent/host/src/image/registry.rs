//! Pulling from registries by the OCI distribution protocol: manifests, blobs, bearer tokens, mirrors.
//!
//! Written on an HTTP client rather than on a registry client, because every answer here has a limit: a registry, or who
//! answers in its place, must not be able to fill the node's memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, redirect};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest as _, Sha256};
use skep_core::worker::container::image::{Digest, Reference};

use super::manifest;
use super::{Registries, RegistryAuth};

/// Where Debian and most others keep the certificates of public authorities.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Docker Hub's registry answers at another name than its images have.
const DOCKER_HUB: &str = "https://registry-1.docker.io";
/// Bytes of a manifest or index (Docker's own limit).
const MAX_MANIFEST: u64 = 4 << 20;
/// Bytes of a token answer.
const MAX_TOKEN: u64 = 1 << 20;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a registry may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a token is used when the registry does not say (the protocol's default).
const TOKEN_LIFE: u64 = 60;

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryError {
    /// There is no such image.
    #[error("{0}: not found")]
    NotFound(String),
    /// The registry wants a login, or another one.
    #[error("{0}: access denied; the image may not exist, or needs a login")]
    Denied(String),
    /// What came is not what was asked for.
    #[error("digest mismatch: wanted {wanted}, {endpoint} sent {got}")]
    Mismatch {
        /// Who sent it.
        endpoint: String,
        /// The digest asked for.
        wanted: Digest,
        /// The digest of what came.
        got: Digest,
    },
    /// The registry cannot be reached.
    #[error("{endpoint}: {why}")]
    Unreachable {
        /// Who.
        endpoint: String,
        /// The chain of causes.
        why: String,
    },
    /// The registry says something else.
    #[error("{endpoint}: {status}")]
    Status {
        /// Who.
        endpoint: String,
        /// What it says.
        status: StatusCode,
    },
    /// The answer is too long or makes no sense.
    #[error("{endpoint}: {why}")]
    Nonsense {
        /// Who.
        endpoint: String,
        /// In which way.
        why: String,
    },
    /// Nobody of several had it.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    All(Vec<RegistryError>),
}

type Result<T> = std::result::Result<T, RegistryError>;

impl RegistryError {
    /// Whether asking again at once may help: nobody has given an answer that stands.
    pub(super) fn is_hiccup(&self) -> bool {
        match self {
            Self::All(errors) => errors.iter().all(Self::is_hiccup),
            Self::NotFound(_)
            | Self::Denied(_)
            | Self::Mismatch { .. }
            | Self::Unreachable { .. }
            | Self::Status { .. }
            | Self::Nonsense { .. } => self.is_temporary(),
        }
    }

    /// Whether asking again later may help.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || *status == StatusCode::REQUEST_TIMEOUT
            }
            Self::All(errors) => errors.iter().any(Self::is_temporary),
            Self::NotFound(_) | Self::Denied(_) | Self::Mismatch { .. } | Self::Nonsense { .. } => {
                false
            }
        }
    }
}

/// One place where a registry answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `scheme://host[:port]`.
    base: String,
    /// Whether the user's login is meant for it.
    trusted: bool,
}

/// A manifest or index as it came.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
    /// Their digest.
    pub(super) digest: Digest,
    /// Its media type.
    pub(super) media_type: String,
    /// Who had it; its blobs are asked for there.
    pub(super) endpoint: Endpoint,
}

/// A token and until when it is good.
type Token = (String, Instant);

/// The client for all registries.
#[derive(Clone)]
pub(super) struct RegistryClient {
    http: Client,
    registries: Arc<Registries>,
    /// By endpoint and repository; a few at a time.
    tokens: Arc<Mutex<HashMap<(String, String), Token>>>,
}

impl RegistryClient {
    /// A client that trusts the node's certificate authorities.
    pub(super) fn new(registries: Registries) -> std::result::Result<Self, String> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(CA_BUNDLE)
            .into_iter()
            .flatten()
            .flatten()
        {
            // One that is broken is one that nobody can present.
            let _ = roots.add(certificate);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .redirect(redirect::Policy::custom(follow))
            .no_proxy()
            .user_agent(concat!("skep/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| chain(&error))?;
        Ok(Self {
            http,
            registries: Arc::new(registries),
            tokens: Arc::default(),
        })
    }

    /// Fetches what a reference names from the first place that has it.
    pub(super) async fn manifest(
        &self,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
    ) -> Result<Fetched> {
        let mut errors = Vec::new();
        for endpoint in endpoints(&self.registries, reference.registry()) {
            match self
                .manifest_at(&endpoint, reference, reference.wanted(), auth)
                .await
            {
                Ok(fetched) => return Ok(fetched),
                Err(error) => errors.push(error),
            }
        }
        match errors.len() {
            1 => Err(errors.remove(0)),
            _ => Err(RegistryError::All(errors)),
        }
    }

    /// Fetches a manifest, by tag or digest, at one place.
    pub(super) async fn manifest_at(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        wanted: &str,
        auth: Option<&RegistryAuth>,
    ) -> Result<Fetched> {
        let path = format!("manifests/{wanted}");
        let response = self
            .get(endpoint, reference, &path, auth, manifest::ACCEPT)
            .await?;
        let headers = response.headers().clone();
        let bytes = read(response, endpoint, MAX_MANIFEST).await?;
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        // A digest that was asked for binds; one that the registry names with a tag must at least be true.
        let said = Digest::parse(wanted).or_else(|| {
            let header = headers.get("docker-content-digest")?;
            Digest::parse(header.to_str().ok()?)
        });
        if let Some(wanted) = said.filter(|said| *said != digest) {
            let endpoint = endpoint.base.clone();
            return Err(RegistryError::Mismatch {
                endpoint,
                wanted,
                got: digest,
            });
        }
        let media_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        Ok(Fetched {
            media_type: media_type.unwrap_or_default().to_owned(),
            endpoint: endpoint.clone(),
            bytes,
            digest,
        })
    }

    /// A small blob, whole and verified.
    pub(super) async fn small_blob(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        digest: &Digest,
        limit: u64,
        auth: Option<&RegistryAuth>,
    ) -> Result<Vec<u8>> {
        let response = self.blob(endpoint, reference, digest, auth).await?;
        let bytes = read(response.response, endpoint, limit).await?;
        let got = Digest::from_bytes(Sha256::digest(&bytes).into());
        if got == *digest {
            Ok(bytes)
        } else {
            Err(RegistryError::Mismatch {
                endpoint: endpoint.base.clone(),
                wanted: digest.clone(),
                got,
            })
        }
    }

    /// A blob as it comes. Whoever reads it has to verify it.
    pub(super) async fn blob(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        digest: &Digest,
        auth: Option<&RegistryAuth>,
    ) -> Result<BlobStream> {
        let path = format!("blobs/{digest}");
        let response = self.get(endpoint, reference, &path, auth, "*/*").await?;
        Ok(BlobStream {
            response,
            endpoint: endpoint.base.clone(),
        })
    }

    /// One GET, with the token that the registry asks for.
    async fn get(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        path: &str,
        auth: Option<&RegistryAuth>,
        accept: &str,
    ) -> Result<Response> {
        let url = format!("{}/v2/{}/{path}", endpoint.base, reference.repository());
        let auth = auth.filter(|_| endpoint.trusted);
        let send = async |authorization: Option<String>| {
            let mut request = self.http.get(&url).header(ACCEPT, accept);
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            request
                .send()
                .await
                .map_err(|error| unreachable(endpoint, &error))
        };
        let response = send(self.known_token(endpoint, reference)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return accepted(response, endpoint, reference);
        }
        let authorization = match challenge(response.headers()) {
            Challenge::Bearer(question) => {
                let token = self.token(endpoint, reference, &question, auth).await?;
                Some(format!("Bearer {token}"))
            }
            Challenge::Basic => auth.map(basic),
            Challenge::Unknown => None,
        };
        let Some(authorization) = authorization else {
            return Err(RegistryError::Denied(reference.to_string()));
        };
        accepted(send(Some(authorization)).await?, endpoint, reference)
    }

    fn known_token(&self, endpoint: &Endpoint, reference: &Reference) -> Option<String> {
        let key = (endpoint.base.clone(), reference.repository().to_owned());
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let (token, until) = tokens.get(&key)?;
        (*until > Instant::now()).then(|| format!("Bearer {token}"))
    }

    /// Asks the registry's token server.
    async fn token(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        question: &Question,
        auth: Option<&RegistryAuth>,
    ) -> Result<String> {
        let nonsense = |why: &str| RegistryError::Nonsense {
            endpoint: endpoint.base.clone(),
            why: why.to_owned(),
        };
        let mut url = reqwest::Url::parse(&question.realm)
            .map_err(|_| nonsense("the token server has no address"))?;
        // A registry that is reached safely may not send the login over an open line.
        if url.scheme() != "https" && endpoint.base.starts_with("https://") {
            return Err(nonsense("the token server is not reached by https"));
        }
        let scope = format!("repository:{}:pull", reference.repository());
        url.query_pairs_mut()
            .append_pair("service", &question.service)
            .append_pair("scope", &scope);
        let mut request = self.http.get(url);
        if let Some(auth) = auth {
            request = request.header(AUTHORIZATION, basic(auth));
        }
        let response = request
            .send()
            .await
            .map_err(|error| unreachable(endpoint, &error))?;
        let response = accepted(response, endpoint, reference)?;
        let answer = read(response, endpoint, MAX_TOKEN).await?;
        let answer: serde_json::Value =
            serde_json::from_slice(&answer).map_err(|_| nonsense("no token came"))?;
        let token = ["token", "access_token"]
            .iter()
            .find_map(|key| answer[*key].as_str());
        let token = token.ok_or_else(|| nonsense("no token came"))?.to_owned();
        let life = answer["expires_in"]
            .as_u64()
            .unwrap_or(TOKEN_LIFE)
            .min(3600);
        // Not to the last second: the clocks differ.
        let until = Instant::now() + Duration::from_secs(life) / 2;
        let key = (endpoint.base.clone(), reference.repository().to_owned());
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, (_, until)| *until > Instant::now());
        tokens.insert(key, (token.clone(), until));
        Ok(token)
    }
}

/// A blob on its way.
pub(super) struct BlobStream {
    response: Response,
    endpoint: String,
}

impl BlobStream {
    /// The next bytes; `None` at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        self.response
            .chunk()
            .await
            .map_err(|error| RegistryError::Unreachable {
                endpoint: self.endpoint.clone(),
                why: chain(&error),
            })
    }

    /// Who sends it.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

/// Where images of a registry are asked for: for Docker Hub the mirrors first.
fn endpoints(registries: &Registries, registry: &str) -> Vec<Endpoint> {
    let scheme = |host: &str| {
        let insecure = registries.insecure.iter().any(|insecure| insecure == host);
        if insecure { "http" } else { "https" }
    };
    if registry != "docker.io" {
        return vec![Endpoint {
            base: format!("{}://{registry}", scheme(registry)),
            trusted: true,
        }];
    }
    let mirrors = registries.mirrors.iter().map(|mirror| {
        let mirror = mirror.trim_end_matches('/');
        let base = match mirror.split_once("://") {
            Some(_) => mirror.to_owned(),
            None => format!("{}://{mirror}", scheme(mirror)),
        };
        Endpoint {
            base,
            trusted: false,
        }
    });
    let hub = Endpoint {
        base: DOCKER_HUB.to_owned(),
        trusted: true,
    };
    mirrors.chain([hub]).collect()
}

/// Redirects lead blobs to their storage. Five at most, and never from a safe line to an open one.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let was_safe = attempt
        .previous()
        .last()
        .is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > 5 {
        attempt.error("too many redirects")
    } else if was_safe && attempt.url().scheme() != "https" {
        attempt.error("redirected from https to http")
    } else {
        attempt.follow()
    }
}

fn accepted(response: Response, endpoint: &Endpoint, reference: &Reference) -> Result<Response> {
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => Err(RegistryError::NotFound(format!(
            "{} at {}",
            reference, endpoint.base
        ))),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(RegistryError::Denied(format!(
            "{} at {}",
            reference, endpoint.base
        ))),
        status => Err(RegistryError::Status {
            endpoint: endpoint.base.clone(),
            status,
        }),
    }
}

fn unreachable(endpoint: &Endpoint, error: &reqwest::Error) -> RegistryError {
    RegistryError::Unreachable {
        endpoint: endpoint.base.clone(),
        why: chain(error),
    }
}

/// Causes in one line. The outermost only repeats the address.
fn chain(error: &dyn std::error::Error) -> String {
    let mut texts = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    if texts.is_empty() {
        error.to_string()
    } else {
        texts.join(": ")
    }
}

async fn read(mut response: Response, endpoint: &Endpoint, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| unreachable(endpoint, &error))?
    {
        let length = u64::try_from(bytes.len() + chunk.len()).unwrap_or(u64::MAX);
        if length > limit {
            return Err(RegistryError::Nonsense {
                endpoint: endpoint.base.clone(),
                why: format!("the answer is longer than {limit} bytes"),
            });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// What a registry wants to see.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    /// A token.
    Bearer(Question),
    /// User and password.
    Basic,
    /// Something else.
    Unknown,
}

/// Where to get a token, and for what.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    realm: String,
    service: String,
}

/// Reads `WWW-Authenticate: Bearer realm="…",service="…",scope="…"`.
fn challenge(headers: &HeaderMap) -> Challenge {
    for header in headers.get_all(WWW_AUTHENTICATE) {
        let Some((scheme, parameters)) = header.to_str().ok().and_then(|text| text.split_once(' '))
        else {
            continue;
        };
        if scheme.eq_ignore_ascii_case("basic") {
            return Challenge::Basic;
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            continue;
        }
        let parameter = |name: &str| {
            let start = parameters.find(&format!("{name}=\""))? + name.len() + 2;
            let rest = &parameters[start..];
            Some(rest[..rest.find('"')?].to_owned())
        };
        if let Some(realm) = parameter("realm") {
            let service = parameter("service").unwrap_or_default();
            return Challenge::Bearer(Question { realm, service });
        }
    }
    Challenge::Unknown
}

fn basic(auth: &RegistryAuth) -> String {
    let pair = format!("{}:{}", auth.username, auth.password);
    format!("Basic {}", data_encoding::BASE64.encode(pair.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bases(registries: &Registries, registry: &str) -> Vec<String> {
        endpoints(registries, registry)
            .into_iter()
            .map(|endpoint| endpoint.base)
            .collect()
    }

    #[test]
    fn mirrors_are_for_docker_hub_and_insecure_is_said() {
        let registries = Registries {
            mirrors: vec!["192.168.76.2:5000".into(), "https://mirror.example/".into()],
            insecure: vec!["192.168.76.2:5000".into()],
        };
        assert_eq!(
            bases(&registries, "docker.io"),
            [
                "http://192.168.76.2:5000",
                "https://mirror.example",
                DOCKER_HUB
            ]
        );
        assert_eq!(
            bases(&registries, "192.168.76.2:5000"),
            ["http://192.168.76.2:5000"]
        );
        assert_eq!(
            bases(&registries, "other.example"),
            ["https://other.example"]
        );
    }

    fn headers(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Ok(value) = text.parse() {
            headers.insert(WWW_AUTHENTICATE, value);
        }
        headers
    }

    #[test]
    fn challenges_are_understood() {
        let bearer = headers(
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="x""#,
        );
        let question = Question {
            realm: "https://auth.example/token".into(),
            service: "registry.example".into(),
        };
        assert_eq!(challenge(&bearer), Challenge::Bearer(question));
        assert_eq!(challenge(&headers(r#"Basic realm="x""#)), Challenge::Basic);
        assert_eq!(challenge(&headers("Bearer realm=\"")), Challenge::Unknown);
        assert_eq!(challenge(&headers("")), Challenge::Unknown);
    }

    proptest! {
        #[test]
        fn no_challenge_makes_the_parser_panic(text in "(Bearer |Basic )?[ -~]{0,60}") {
            let _ = challenge(&headers(&text));
        }
    }
}
