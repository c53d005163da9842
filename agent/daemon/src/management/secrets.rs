//! Secrets. Their content is in no answer.

use serde_json::{Value, json};
use skep_core::{
    api::{ApiError, ClusterRequest, SecretSpec},
    manager::query,
};

use super::{Management, document, params::Params, render};

impl Management {
    /// The secrets that match the filters.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager, `Invalid` for a filter.
    pub fn secret_list(&self, params: &Params) -> Result<Value, ApiError> {
        let view = self.view()?;
        let secrets = query::list_secrets(&view, &params.filters()?)?;
        let documents: Vec<Value> = secrets
            .iter()
            .map(|secret| render::dependency::secret(secret))
            .collect();
        Ok(json!(documents))
    }

    /// One secret, by id, name or prefix of the id.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager, `NotFound`, `Ambiguous`.
    pub fn secret_inspect(&self, reference: &str) -> Result<Value, ApiError> {
        let view = self.view()?;
        let secret = query::find_secret(&view, reference)?;
        Ok(render::dependency::secret(&secret))
    }

    /// Makes a secret.
    ///
    /// # Errors
    /// `Invalid` and `Unsupported` by field, `Conflict` for a name that is taken.
    pub async fn secret_create(&self, body: &[u8]) -> Result<Value, ApiError> {
        let spec: SecretSpec = document::parse(body)?;
        let request = ClusterRequest::SecretCreate(Box::new(spec));
        Ok(json!({ "ID": self.made(request).await? }))
    }

    /// Changes the labels of a secret.
    ///
    /// # Errors
    /// `Invalid` for any other change, `OutOfSequence` if the secret has changed since it was read.
    pub async fn secret_update(
        &self,
        reference: &str,
        params: &Params,
        body: &[u8],
    ) -> Result<Value, ApiError> {
        let spec: SecretSpec = document::parse(body)?;
        let request = ClusterRequest::SecretUpdate {
            secret: reference.to_owned(),
            version: params.version()?,
            spec: Box::new(spec),
        };
        self.done(request).await
    }

    /// Removes a secret.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`, `Precondition` for one that services use.
    pub async fn secret_remove(&self, reference: &str) -> Result<Value, ApiError> {
        self.done(ClusterRequest::SecretRemove(reference.to_owned()))
            .await
    }
}
