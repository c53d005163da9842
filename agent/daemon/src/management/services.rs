//! Services.

use serde_json::{Value, json};
use skep_core::{
    api::{ApiError, ClusterRequest, Network, Service, ServiceSpec},
    id::Id,
    manager::query,
    store::View,
};

use super::{Management, document, params::Params, render};

impl Management {
    /// The services that match the filters, with `status=true` with their counts.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager, `Invalid` for a filter.
    pub fn service_list(&self, params: &Params) -> Result<Value, ApiError> {
        let view = self.view()?;
        let services = query::list_services(&view, &params.filters()?)?;
        let with_status = params.flag("status");
        let documents: Vec<Value> = services
            .iter()
            .map(|service| {
                let document = render(&view, service);
                if with_status {
                    let status = query::service_status(&view, service);
                    render::service::with_status(document, status)
                } else {
                    document
                }
            })
            .collect();
        Ok(json!(documents))
    }

    /// One service, by id, name or prefix of the id; `insertDefaults=true` writes out every default.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager, `NotFound`, `Ambiguous`.
    pub fn service_inspect(&self, reference: &str, params: &Params) -> Result<Value, ApiError> {
        let view = self.view()?;
        let service = query::find_service(&view, reference)?;
        let mut document = render(&view, &service);
        if params.flag("insertDefaults")
            && let Value::Object(fields) = &mut document
        {
            let spec = render::service::with_defaults(&service.spec);
            fields.insert("Spec".to_owned(), spec);
        }
        Ok(document)
    }

    /// Makes a service.
    ///
    /// # Errors
    /// `Invalid` and `Unsupported` by field, `Conflict` for a name or port that is taken.
    pub async fn service_create(&self, body: &[u8]) -> Result<Value, ApiError> {
        let spec: ServiceSpec = document::parse(body)?;
        let request = ClusterRequest::ServiceCreate(Box::new(spec));
        Ok(json!({ "ID": self.made(request).await? }))
    }

    /// Changes a service, or with `rollback=previous` takes its last change back.
    ///
    /// # Errors
    /// As for creation, and `OutOfSequence` if the service has changed since it was read.
    pub async fn service_update(
        &self,
        reference: &str,
        params: &Params,
        body: &[u8],
    ) -> Result<Value, ApiError> {
        let rollback = match params.text("rollback") {
            "" => false,
            "previous" => true,
            other => {
                return Err(ApiError::Invalid {
                    field: "rollback".to_owned(),
                    why: format!("{other:?}: the only value is \"previous\""),
                });
            }
        };
        let spec: ServiceSpec = document::parse(body)?;
        let request = ClusterRequest::ServiceUpdate {
            service: reference.to_owned(),
            version: params.version()?,
            spec: Box::new(spec),
            rollback,
        };
        self.done(request).await
    }

    /// Removes a service.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`.
    pub async fn service_remove(&self, reference: &str) -> Result<Value, ApiError> {
        self.done(ClusterRequest::ServiceRemove(reference.to_owned()))
            .await
    }
}

fn render(view: &View, service: &Service) -> Value {
    render::service::service(service, |network| prefix(view, network))
}

/// The prefix length of a network's subnet.
fn prefix(view: &View, network: &Id<Network>) -> Option<u8> {
    let network = view.network(network)?;
    network.state.as_ref().map(|state| state.prefix)
}
