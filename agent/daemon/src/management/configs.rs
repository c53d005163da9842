//! Configs. Their content is in every answer, as with Docker.

use serde_json::{Value, json};
use skep_core::{
    api::{ApiError, ClusterRequest, ConfigSpec},
    manager::query,
};

use super::{Management, document, params::Params, render};

impl Management {
    /// The configs that match the filters.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager, `Invalid` for a filter.
    pub fn config_list(&self, params: &Params) -> Result<Value, ApiError> {
        let view = self.view()?;
        let configs = query::list_configs(&view, &params.filters()?)?;
        let documents: Vec<Value> = configs
            .iter()
            .map(|config| render::dependency::config(config))
            .collect();
        Ok(json!(documents))
    }

    /// One config, by id, name or prefix of the id.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager, `NotFound`, `Ambiguous`.
    pub fn config_inspect(&self, reference: &str) -> Result<Value, ApiError> {
        let view = self.view()?;
        let config = query::find_config(&view, reference)?;
        Ok(render::dependency::config(&config))
    }

    /// Makes a config.
    ///
    /// # Errors
    /// `Invalid` and `Unsupported` by field, `Conflict` for a name that is taken.
    pub async fn config_create(&self, body: &[u8]) -> Result<Value, ApiError> {
        let spec: ConfigSpec = document::parse(body)?;
        let request = ClusterRequest::ConfigCreate(Box::new(spec));
        Ok(json!({ "ID": self.made(request).await? }))
    }

    /// Changes the labels of a config.
    ///
    /// # Errors
    /// `Invalid` for any other change, `OutOfSequence` if the config has changed since it was read.
    pub async fn config_update(
        &self,
        reference: &str,
        params: &Params,
        body: &[u8],
    ) -> Result<Value, ApiError> {
        let spec: ConfigSpec = document::parse(body)?;
        let request = ClusterRequest::ConfigUpdate {
            config: reference.to_owned(),
            version: params.version()?,
            spec: Box::new(spec),
        };
        self.done(request).await
    }

    /// Removes a config.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`, `Precondition` for one that services use.
    pub async fn config_remove(&self, reference: &str) -> Result<Value, ApiError> {
        self.done(ClusterRequest::ConfigRemove(reference.to_owned()))
            .await
    }
}
