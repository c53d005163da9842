//! `filters` of list requests.

use crate::api::{ApiError, Filters, Labels};

/// The filters of one list request, checked against the keys that its list knows.
pub(super) struct Checked<'a>(&'a Filters);

impl<'a> Checked<'a> {
    /// # Errors
    /// `Invalid`, naming the key, for a key that the list does not know.
    pub(super) fn new(filters: &'a Filters, known: &[&str]) -> Result<Self, ApiError> {
        match filters.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(Self(filters)),
            Some(key) => Err(ApiError::Invalid {
                field: "filter".to_owned(),
                why: format!("invalid filter '{key}': use one of {}", known.join(", ")),
            }),
        }
    }

    /// Whether the key is absent or any of its values satisfies the test.
    pub(super) fn any(&self, key: &str, test: impl Fn(&str) -> bool) -> bool {
        match self.0.get(key) {
            Some(values) if !values.is_empty() => values.iter().any(|value| test(value)),
            Some(_) | None => true,
        }
    }

    /// Whether every `key` or `key=value` text of the filter is among the labels.
    pub(super) fn labels(&self, key: &str, labels: &Labels) -> bool {
        let wanted = self.0.get(key).into_iter().flatten();
        wanted.into_iter().all(|text| match text.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|has| has == value),
            None => labels.contains_key(text),
        })
    }

    /// Whether the key is absent or any of its values is one of `words`; an unknown word is refused.
    ///
    /// # Errors
    /// `Invalid`, naming the value.
    pub(super) fn words(&self, key: &str, words: &[&str]) -> Result<(), ApiError> {
        let values = self.0.get(key).into_iter().flatten();
        for value in values {
            if !words.contains(&value.as_str()) {
                return Err(ApiError::Invalid {
                    field: format!("filter {key}"),
                    why: format!("invalid value {value:?}: use one of {}", words.join(", ")),
                });
            }
        }
        Ok(())
    }
}
