//! Filters of the lists that are this node's own.

use serde_json::Value;
use skep_core::api::{ApiError, Filters};

/// Refuses a filter that the list does not know, naming those that it does.
///
/// # Errors
/// `Invalid` for the first unknown key.
pub fn check_keys(filters: &Filters, known: &[&str]) -> Result<(), ApiError> {
    match filters.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(ApiError::Invalid {
            field: "filters".to_owned(),
            why: format!("invalid filter '{key}': use {}", known.join(", ")),
        }),
    }
}

/// Whether labels (an object of texts) have `key` or `key=value`.
pub fn label_matches(labels: &Value, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).and_then(Value::as_str) == Some(value),
        None => labels.get(wanted).is_some(),
    }
}
