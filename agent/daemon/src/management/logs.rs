//! Logs in Docker's frames: of a container of this node, and of the tasks of a service wherever they run.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future};
use skep_core::{api::ApiError, manager::logs::Selection, time::Timestamp};

use super::{
    Management, debug,
    params::Params,
    port::{LogLine, LogsRequest, OutputStream, TaskLogLine, TaskLogStream},
};

/// A log in Docker's multiplexed form, frame by frame.
pub type FrameStream = Pin<Box<dyn Stream<Item = Result<Bytes, ApiError>> + Send>>;

/// What of each line is wanted, and how it is shown.
#[derive(Debug, Clone, Copy)]
struct Shape {
    stdout: bool,
    stderr: bool,
    timestamps: bool,
    details: bool,
}

impl Shape {
    fn of(params: &Params) -> Result<Self, ApiError> {
        let shape = Self {
            stdout: params.flag("stdout"),
            stderr: params.flag("stderr"),
            timestamps: params.flag("timestamps"),
            details: params.flag("details"),
        };
        match shape.stdout || shape.stderr {
            true => Ok(shape),
            false => Err(ApiError::Invalid {
                field: "stdout, stderr".to_owned(),
                why: "you must choose at least one stream".to_owned(),
            }),
        }
    }

    /// The frame of a line, with these details before it; none when its stream is not wanted.
    fn frame(self, line: &LogLine, details: &str) -> Option<Bytes> {
        let (kind, wanted) = match line.stream {
            OutputStream::Stdout => (1, self.stdout),
            OutputStream::Stderr => (2, self.stderr),
        };
        if !wanted {
            return None;
        }
        let mut prefix = String::new();
        if self.timestamps {
            prefix += &format!("{} ", line.time);
        }
        if self.details && !details.is_empty() {
            prefix += &format!("{details} ");
        }
        let mut out = debug::header(kind, prefix.len() + line.line.len()).to_vec();
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(&line.line);
        Some(out.into())
    }
}

impl Management {
    /// The log of a container in Docker's frames; parameters `stdout`, `stderr`, `follow`, `tail`, `since`,
    /// `until`, `timestamps`.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`, `Invalid` for a parameter, else those of the node.
    pub async fn container_log_frames(
        &self,
        reference: &str,
        params: &Params,
    ) -> Result<FrameStream, ApiError> {
        let shape = Shape::of(params)?;
        let request = request(params, params.moment("until")?)?;
        let container = self.find_container(reference).await?;
        let lines = self.local.logs(&container.id, request).await?;
        let frames = lines.filter_map(move |line| {
            future::ready(match line {
                Ok(line) => shape.frame(&line, "").map(Ok),
                Err(error) => Some(Err(error)),
            })
        });
        Ok(Box::pin(frames))
    }

    /// The logs of a service's tasks, those of its history included, in Docker's frames; parameters as for a container
    /// without `until`, and `details`: whose each line is.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager, `NotFound`, `Ambiguous`, `Invalid` for a parameter.
    pub async fn service_log_frames(
        &self,
        reference: &str,
        params: &Params,
    ) -> Result<FrameStream, ApiError> {
        let selection = Selection::of_service(&self.view()?, reference)?;
        self.task_frames(selection, params).await
    }

    /// The log of one task, as that of a service.
    ///
    /// # Errors
    /// As for a service.
    pub async fn task_log_frames(
        &self,
        reference: &str,
        params: &Params,
    ) -> Result<FrameStream, ApiError> {
        let selection = Selection::of_task(&self.view()?, reference)?;
        self.task_frames(selection, params).await
    }

    async fn task_frames(
        &self,
        selection: Selection,
        params: &Params,
    ) -> Result<FrameStream, ApiError> {
        let shape = Shape::of(params)?;
        let lines: TaskLogStream = self.cluster.logs(selection, request(params, None)?).await?;
        let frames = lines.filter_map(move |line| {
            future::ready(match line {
                Ok(line) => shape.frame(&line.line, &details(&line)).map(Ok),
                Err(error) => Some(Err(error)),
            })
        });
        Ok(Box::pin(frames))
    }
}

/// Whose a line is, in the form that clients look for.
fn details(line: &TaskLogLine) -> String {
    format!(
        "com.docker.swarm.node.id={},com.docker.swarm.service.id={},com.docker.swarm.task.id={}",
        line.node, line.service, line.task
    )
}

fn request(params: &Params, until: Option<Timestamp>) -> Result<LogsRequest, ApiError> {
    Ok(LogsRequest {
        tail: tail(params.text("tail"))?,
        follow: params.flag("follow"),
        since: params.moment("since")?,
        until,
    })
}

/// `tail`: a number of lines; `all` and empty mean all.
fn tail(text: &str) -> Result<Option<u64>, ApiError> {
    match text {
        "" | "all" => Ok(None),
        number => number.parse().map(Some).map_err(|_| ApiError::Invalid {
            field: "tail".to_owned(),
            why: format!("{number:?}: want a number of lines or \"all\""),
        }),
    }
}
