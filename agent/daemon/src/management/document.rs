//! Reading the documents that clients send, so that a mistake is named by its field.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use skep_core::api::{ApiError, Filters};

/// Parses a JSON document. An error names the field (`TaskTemplate.Resources.Limits.NanoCPUs`) and what
/// was wrong with it. Nesting is bounded by `serde_json`, size by the front door.
///
/// # Errors
/// `Invalid` for anything that is not a `T`.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value: T = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "body".to_owned() } else { path };
        invalid(field, error.inner())
    })?;
    reader
        .end()
        .map_err(|error| invalid("body".to_owned(), &error))?;
    Ok(value)
}

fn invalid(field: String, error: &serde_json::Error) -> ApiError {
    ApiError::Invalid {
        field,
        why: error.to_string(),
    }
}

/// The `filters` parameter: `{"name":{"web":true}}`, or `{"name":["web"]}` as very old clients send it.
///
/// # Errors
/// `Invalid` for any other shape.
pub fn filters(text: &str) -> Result<Filters, ApiError> {
    if text.is_empty() {
        return Ok(Filters::new());
    }
    let malformed = |why: &str| ApiError::Invalid {
        field: "filters".to_owned(),
        why: format!("{why}: want {{\"key\":{{\"value\":true}}}}"),
    };
    let Value::Object(keys) = parse::<Value>(text.as_bytes())
        .map_err(|error| malformed(&format!("not JSON ({error})")))?
    else {
        return Err(malformed("not an object"));
    };
    keys.into_iter()
        .map(|(key, values)| Ok((key, filter_values(values, &malformed)?)))
        .collect()
}

fn filter_values(
    values: Value,
    malformed: &impl Fn(&str) -> ApiError,
) -> Result<Vec<String>, ApiError> {
    match values {
        Value::Object(set) => Ok(set
            .into_iter()
            .filter(|(_, wanted)| wanted.as_bool().unwrap_or(true))
            .map(|(value, _)| value)
            .collect()),
        Value::Array(list) => list
            .into_iter()
            .map(|value| match value {
                Value::String(text) => Ok(text),
                Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::Array(_)
                | Value::Object(_) => Err(malformed("a value is not text")),
            })
            .collect(),
        Value::Null => Ok(Vec::new()),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Err(malformed("the values of a key are not a set"))
        }
    }
}

/// The JSON form of a value of ours. Our types have text keys only, so this cannot fail.
pub fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use skep_core::api::ServiceSpec;

    use super::*;

    #[test]
    fn an_error_names_the_field() {
        let body = br#"{"Name":"web","TaskTemplate":{"Resources":{"Limits":{"NanoCPUs":"many"}}}}"#;
        let error = parse::<ServiceSpec>(body).unwrap_err().to_string();
        assert!(
            error.contains("TaskTemplate.Resources.Limits.NanoCPUs"),
            "{error}"
        );
        let error = parse::<ServiceSpec>(br#"{"Nmae":"web"}"#)
            .unwrap_err()
            .to_string();
        assert!(error.contains("Nmae"), "{error}");
    }

    #[test]
    fn filters_come_in_two_shapes() {
        let wanted = Filters::from([("name".to_owned(), vec!["web".to_owned()])]);
        assert_eq!(filters(r#"{"name":{"web":true}}"#).unwrap(), wanted);
        assert_eq!(filters(r#"{"name":["web"]}"#).unwrap(), wanted);
        assert_eq!(filters("").unwrap(), Filters::new());
        for wrong in ["[", "[]", r#"{"name":1}"#, r#"{"name":[1]}"#, "null x"] {
            assert!(filters(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_errors_not_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse::<ServiceSpec>(&bytes);
            if let Ok(text) = std::str::from_utf8(&bytes) {
                let _ = filters(text);
            }
        }

        #[test]
        fn cut_documents_are_errors(cut in 0usize..70) {
            let body = br#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox:1"}}}"#;
            prop_assume!(cut < body.len());
            prop_assert!(parse::<ServiceSpec>(&body[..cut]).is_err());
        }
    }
}
