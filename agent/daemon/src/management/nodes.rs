//! Nodes.

use serde_json::{Value, json};
use skep_core::{
    api::{ApiError, ClusterRequest, NodeSpec},
    manager::query,
    store::View,
};

use super::{Management, document, params::Params, render};

impl Management {
    /// The nodes that match the filters.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager, `Invalid` for a filter.
    pub fn node_list(&self, params: &Params) -> Result<Value, ApiError> {
        let view = self.view()?;
        let tls = tls_info(&view);
        let nodes = query::list_nodes(&view, &params.filters()?)?;
        let documents: Vec<Value> = nodes
            .iter()
            .map(|node| render::node::node(node, &tls))
            .collect();
        Ok(json!(documents))
    }

    /// One node, by id, name or prefix of the id.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager, `NotFound`, `Ambiguous`.
    pub fn node_inspect(&self, reference: &str) -> Result<Value, ApiError> {
        let view = self.view()?;
        let node = query::find_node(&view, reference)?;
        Ok(render::node::node(&node, &tls_info(&view)))
    }

    /// Changes role, availability or labels.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn node_update(
        &self,
        reference: &str,
        params: &Params,
        body: &[u8],
    ) -> Result<Value, ApiError> {
        let spec: NodeSpec = document::parse(body)?;
        let request = ClusterRequest::NodeUpdate {
            node: reference.to_owned(),
            version: params.version()?,
            spec,
        };
        self.done(request).await
    }

    /// Removes a node.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn node_remove(&self, reference: &str, params: &Params) -> Result<Value, ApiError> {
        let request = ClusterRequest::NodeRemove {
            node: reference.to_owned(),
            force: params.flag("force"),
        };
        self.done(request).await
    }
}

/// What a client compares to see whether a node trusts the current root.
fn tls_info(view: &View) -> Value {
    view.cluster().map_or(Value::Null, |cluster| {
        render::swarm::tls_info(&cluster.root_ca)
    })
}
