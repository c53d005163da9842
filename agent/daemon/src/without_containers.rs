//! A node that runs nothing: one whose host cannot, or that is told so. It can be managed all the same.

use async_trait::async_trait;
use skep_core::{api::ApiError, node::Input};
use tokio::sync::mpsc;

use crate::{
    management::port::{
        DebugParams, DebugSession, LocalContainer, LocalImage, LocalInfo, LocalPort, LogStream,
        LogsRequest, ResolvedImage,
    },
    rpc::session::Uplink,
};

/// A node that runs nothing.
pub struct NoContainers {
    /// Its name.
    pub hostname: String,
}

fn without_containers<T>() -> Result<T, ApiError> {
    Err(ApiError::Unavailable(
        "this node runs no containers".to_owned(),
    ))
}

#[async_trait]
impl LocalPort for NoContainers {
    fn info(&self) -> LocalInfo {
        LocalInfo {
            name: self.hostname.clone(),
            ..LocalInfo::default()
        }
    }
    async fn containers(&self) -> Result<Vec<LocalContainer>, ApiError> {
        Ok(Vec::new())
    }
    async fn logs(&self, _id: &str, _request: LogsRequest) -> Result<LogStream, ApiError> {
        without_containers()
    }
    async fn images(&self) -> Result<Vec<LocalImage>, ApiError> {
        Ok(Vec::new())
    }
    async fn resolve_image(&self, _reference: &str) -> Result<ResolvedImage, ApiError> {
        without_containers()
    }
    async fn debug(&self, _params: DebugParams) -> Result<DebugSession, ApiError> {
        without_containers()
    }
}

/// Takes what managers say and does nothing about it.
pub async fn drain(mut inputs: mpsc::Receiver<Input>, _uplink: Uplink) {
    while let Some(input) = inputs.recv().await {
        tracing::debug!(?input, "the node hears");
    }
}
