//! What a request carries: its version, query and body, each with a bound.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Query},
    http::{Request, Uri, request::Parts, uri::PathAndQuery},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use skep_core::api::ApiError;

use super::error::Failure;
use crate::management::{
    params::Params,
    system::{API_VERSION, MIN_API_VERSION},
};

/// Most bytes of a body. A transaction of the store takes 1.5 MiB at most.
const MAX_BODY: usize = 2 * 1024 * 1024;

/// The version of the API that the client asked for, as (major, minor).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ApiVersion(pub(super) u32, pub(super) u32);

impl ApiVersion {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(major) || !digits(minor) {
            return None;
        }
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }

    fn newest() -> Self {
        Self::parse(API_VERSION).unwrap_or(Self(1, 45))
    }
}

/// Takes the version off the path and leaves it among the request's extensions.
pub(super) fn without_version(request: Request<Body>) -> Result<Request<Body>, ApiError> {
    let (mut parts, body) = request.into_parts();
    let mut version = ApiVersion::newest();
    if let Some((asked, rest)) = version_prefix(&parts.uri) {
        check_version(asked)?;
        version = asked;
        parts.uri = rest;
    }
    parts.extensions.insert(version);
    Ok(Request::from_parts(parts, body))
}

/// The version that a path begins with, and the path without it.
fn version_prefix(uri: &Uri) -> Option<(ApiVersion, Uri)> {
    let path = uri.path().strip_prefix("/v")?;
    let (version, _) = path.split_once('/')?;
    let parsed = ApiVersion::parse(version)?;
    let whole = uri.path_and_query()?.as_str();
    let rest: PathAndQuery = whole.get(version.len() + 2..)?.parse().ok()?;
    Some((parsed, Uri::from(rest)))
}

fn check_version(asked: ApiVersion) -> Result<(), ApiError> {
    let oldest = ApiVersion::parse(MIN_API_VERSION).unwrap_or(ApiVersion(1, 24));
    let ApiVersion(major, minor) = asked;
    let message = if asked > ApiVersion::newest() {
        format!(
            "client version {major}.{minor} is too new. Maximum supported API version is {API_VERSION}"
        )
    } else if asked < oldest {
        format!(
            "client version {major}.{minor} is too old. Minimum supported API version is \
             {MIN_API_VERSION}, please upgrade your client to a newer version"
        )
    } else {
        return Ok(());
    };
    Err(ApiError::Precondition(message))
}

impl<S: Send + Sync> FromRequestParts<S> for ApiVersion {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let version = parts.extensions.get::<ApiVersion>().copied();
        std::future::ready(Ok(version.unwrap_or_else(ApiVersion::newest))).await
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        Query::<BTreeMap<String, String>>::from_request_parts(parts, state)
            .await
            .map(|Query(map)| Params(map))
            .map_err(|error| {
                Failure(ApiError::Invalid {
                    field: "query".to_owned(),
                    why: error.body_text(),
                })
            })
    }
}

/// The body of a request, at most [`MAX_BODY`] bytes.
pub(super) struct Document(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Document {
    type Rejection = Failure;

    async fn from_request(request: Request<Body>, _: &S) -> Result<Self, Failure> {
        Limited::new(request.into_body(), MAX_BODY)
            .collect()
            .await
            .map(|body| Document(body.to_bytes()))
            .map_err(|error| {
                Failure(ApiError::Invalid {
                    field: "body".to_owned(),
                    why: format!("{error} (at most {MAX_BODY} bytes are read)"),
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_taken_off_and_checked() {
        let uri: Uri = "/v1.41/services?status=true".parse().unwrap();
        let (version, rest) = version_prefix(&uri).unwrap();
        assert_eq!(version, ApiVersion(1, 41));
        assert_eq!(rest, "/services?status=true");
        for plain in ["/services", "/volumes", "/v1.41", "/vx.y/info", "/v1./info"] {
            assert_eq!(version_prefix(&plain.parse().unwrap()), None, "{plain}");
        }
        assert_eq!(check_version(ApiVersion(1, 24)), Ok(()));
        assert!(check_version(ApiVersion(1, 23)).is_err());
        assert!(check_version(ApiVersion(1, 46)).is_err());
        assert!(check_version(ApiVersion(2, 0)).is_err());
    }

    proptest! {
        #[test]
        fn no_path_panics(path in "/[!-~]{0,40}") {
            if let Ok(uri) = path.parse::<Uri>() {
                let _ = version_prefix(&uri);
            }
        }
    }
}
