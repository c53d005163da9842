//! `/services`.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::{get, post},
};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::Value;
use skep_core::api::ApiError;

use super::{
    containers::log,
    error::Failure,
    request::{ApiVersion, Document},
};
use crate::management::{Management, params::Params};

pub(super) fn routes() -> Router<Management> {
    Router::new()
        .route("/services", get(list))
        .route("/services/create", post(create))
        .route("/services/{id}/logs", get(logs))
        .route("/services/{id}", get(inspect).delete(remove))
        .route("/services/{id}/update", post(update))
}

async fn list(
    State(management): State<Management>,
    params: Params,
) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.service_list(&params)?))).await
}

async fn inspect(
    State(management): State<Management>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Value>, Failure> {
    std::future::ready(Ok(Json(management.service_inspect(&id, &params)?))).await
}

async fn create(
    State(management): State<Management>,
    headers: HeaderMap,
    Document(body): Document,
) -> Result<(StatusCode, Json<Value>), Failure> {
    refuse_credentials(&headers)?;
    let created = management.service_create(&body).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

async fn update(
    State(management): State<Management>,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Document(body): Document,
) -> Result<Json<Value>, Failure> {
    refuse_credentials(&headers)?;
    Ok(Json(management.service_update(&id, &params, &body).await?))
}

async fn remove(
    State(management): State<Management>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    management.service_remove(&id).await?;
    Ok(StatusCode::OK)
}

async fn logs(
    State(management): State<Management>,
    Path(id): Path<String>,
    version: ApiVersion,
    params: Params,
) -> Result<Response, Failure> {
    let frames = management.service_log_frames(&id, &params).await?;
    Ok(log(frames, version))
}

/// Refuses `--with-registry-auth`: credentials are not kept for the nodes yet. Clients also send the
/// header without any.
fn refuse_credentials(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(header) = headers.get("x-registry-auth") else {
        return Ok(());
    };
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engine = GeneralPurpose::new(&alphabet::URL_SAFE, config);
    let document: Value = engine
        .decode(header.as_bytes())
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default();
    let given = [
        "username",
        "password",
        "auth",
        "identitytoken",
        "registrytoken",
    ]
    .iter()
    .any(|key| document[key].as_str().is_some_and(|text| !text.is_empty()));
    if given {
        return Err(ApiError::Unsupported(
            "X-Registry-Auth (--with-registry-auth)".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn with_header(value: &'static str) -> Result<(), ApiError> {
        let value = HeaderValue::from_static(value);
        refuse_credentials(&HeaderMap::from_iter([(
            axum::http::HeaderName::from_static("x-registry-auth"),
            value,
        )]))
    }

    #[test]
    fn only_real_credentials_are_refused() {
        assert_eq!(refuse_credentials(&HeaderMap::new()), Ok(()));
        // {} and {"username":""}
        assert_eq!(with_header("e30="), Ok(()));
        assert_eq!(with_header("eyJ1c2VybmFtZSI6IiJ9"), Ok(()));
        assert_eq!(with_header("not base64!"), Ok(()));
        // {"username":"me"}
        assert!(with_header("eyJ1c2VybmFtZSI6Im1lIn0=").is_err());
    }
}
