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

/// Whether the values of one filter match: each label must be there, of other things one is enough.
pub fn values_match(
    key: &str,
    values: &[String],
    mut matches: impl FnMut(&String) -> bool,
) -> bool {
    match key {
        "label" => values.iter().all(matches),
        _ => values.is_empty() || values.iter().any(&mut matches),
    }
}

/// Whether labels (an object of texts) have `key` or `key=value`.
pub fn label_matches(labels: &Value, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).and_then(Value::as_str) == Some(value),
        None => labels.get(wanted).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_must_all_be_there_and_of_names_one() {
        let values = ["a".to_owned(), "b".to_owned()];
        let is_a = |value: &String| value == "a";
        assert!(!values_match("label", &values, is_a));
        assert!(values_match("label", &values[..1], is_a));
        assert!(values_match("name", &values, is_a));
        assert!(!values_match("name", &values[1..], is_a));
        assert!(values_match("name", &[], is_a));
    }
}
