//! Tasks.

use serde_json::{Value, json};
use skep_core::{
    api::{ApiError, Task},
    manager::query,
    store::View,
};

use super::{Management, params::Params, render};

impl Management {
    /// The tasks that match the filters; history included.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager, `Invalid` for a filter.
    pub fn task_list(&self, params: &Params) -> Result<Value, ApiError> {
        let view = self.view()?;
        let tasks = query::list_tasks(&view, &params.filters()?)?;
        let documents: Vec<Value> = tasks.iter().map(|task| render(&view, task)).collect();
        Ok(json!(documents))
    }

    /// One task, by id, name or prefix of the id.
    ///
    /// # Errors
    /// `Unavailable` unless this node is a manager, `NotFound`, `Ambiguous`.
    pub fn task_inspect(&self, reference: &str) -> Result<Value, ApiError> {
        let view = self.view()?;
        let task = query::find_task(&view, reference)?;
        Ok(render(&view, &task))
    }
}

fn render(view: &View, task: &Task) -> Value {
    render::task::task(task, |id| {
        view.network(id)
            .map(|network| render::network::attached(network))
    })
}
