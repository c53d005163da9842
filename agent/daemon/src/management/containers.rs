//! This node's own containers and images.

use std::cmp::Reverse;

use serde_json::{Value, json};
use skep_core::{
    api::{ApiError, Filters},
    time::Timestamp,
};

use super::{
    Management, document, filter,
    params::Params,
    port::{ContainerState, LocalContainer},
    render,
};

/// The filters of `ps`.
const FILTERS: [&str; 6] = ["ancestor", "exited", "id", "label", "name", "status"];

impl Management {
    /// This node's containers that match: the running ones, with `all=1` every one, newest first.
    ///
    /// # Errors
    /// `Invalid` for a filter, else those of the node.
    pub async fn container_list(&self, params: &Params, now: Timestamp) -> Result<Value, ApiError> {
        let filters = params.filters()?;
        filter::check_keys(&filters, &FILTERS)?;
        let all =
            params.flag("all") || filters.contains_key("status") || filters.contains_key("exited");
        let mut containers = self.local.containers().await?;
        containers.retain(|container| {
            (all || container.state == ContainerState::Running) && matches(container, &filters)
        });
        containers.sort_by_key(|container| Reverse(container.created));
        let limit = params.text("limit").parse().ok().filter(|count| *count > 0);
        let documents: Vec<Value> = containers
            .iter()
            .take(limit.unwrap_or(usize::MAX))
            .map(|container| render::container::summary(container, now))
            .collect();
        Ok(json!(documents))
    }

    /// One container, by id, name or prefix of the id.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`, else those of the node.
    pub async fn container_inspect(&self, reference: &str) -> Result<Value, ApiError> {
        let container = self.find_container(reference).await?;
        Ok(render::container::inspection(&container))
    }

    /// This node's images.
    ///
    /// # Errors
    /// Those of the node.
    pub async fn image_list(&self) -> Result<Value, ApiError> {
        let images = self.local.images().await?;
        let documents: Vec<Value> = images.iter().map(render::container::image).collect();
        Ok(json!(documents))
    }

    /// One of this node's images, by id or reference.
    ///
    /// # Errors
    /// `NotFound`, else those of the node.
    pub async fn image_inspect(&self, reference: &str) -> Result<Value, ApiError> {
        let images = self.local.images().await?;
        let wanted = render::container::familiar(reference);
        let tagged = format!("{wanted}:latest");
        let found = images.iter().find(|image| {
            let mut names = image.tags.iter().chain(&image.digests);
            image.id == reference
                || names.any(|name| {
                    let name = render::container::familiar(name);
                    name == wanted || name == tagged
                })
        });
        found
            .map(render::container::image)
            .ok_or_else(|| ApiError::NotFound {
                kind: "image",
                reference: reference.to_owned(),
            })
    }

    /// What a registry says of an image reference, in the form of `GET /distribution/{name}/json`.
    ///
    /// # Errors
    /// Those of the registry, as the node puts them.
    pub async fn image_resolve(&self, reference: &str) -> Result<Value, ApiError> {
        let image = self.local.resolve_image(reference).await?;
        let platforms: Vec<Value> = image
            .platforms
            .iter()
            .map(|platform| json!({ "architecture": platform.architecture, "os": platform.os }))
            .collect();
        Ok(json!({
            "Descriptor": {
                "mediaType": image.media_type,
                "digest": image.digest,
                "size": image.size,
            },
            "Platforms": platforms,
        }))
    }

    pub(super) async fn find_container(&self, reference: &str) -> Result<LocalContainer, ApiError> {
        let wanted = reference.trim_start_matches('/');
        let mut found = self.local.containers().await?;
        let exact = found
            .iter()
            .position(|container| container.id == wanted || container.name == wanted);
        if let Some(position) = exact {
            return Ok(found.swap_remove(position));
        }
        found.retain(|container| !wanted.is_empty() && container.id.starts_with(wanted));
        let matches = found.len();
        match found.pop() {
            Some(container) if matches == 1 => Ok(container),
            Some(_) => Err(ApiError::Ambiguous {
                kind: "container",
                reference: reference.to_owned(),
                matches,
            }),
            None => Err(ApiError::NotFound {
                kind: "container",
                reference: reference.to_owned(),
            }),
        }
    }
}

fn matches(container: &LocalContainer, filters: &Filters) -> bool {
    filters.iter().all(|(key, values)| {
        filter::values_match(key, values, |value| match key.as_str() {
            "id" => container.id.starts_with(value.as_str()),
            "name" => container.name.contains(value.trim_start_matches('/')),
            "label" => filter::label_matches(&document::json(&container.labels), value),
            "ancestor" => container.image == *value || container.image_id == *value,
            "status" => render::container::state(container.state) == value,
            "exited" => {
                container.state == ContainerState::Exited
                    && container.exit_code.to_string() == *value
            }
            _ => true,
        })
    })
}
