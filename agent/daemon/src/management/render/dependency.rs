//! `Secret` and `Config` documents.

use serde_json::{Value, json};
use skep_core::api::{Config, Secret};

use super::object;

/// The document of a secret: field by field, so that its content cannot get into it.
pub fn secret(secret: &Secret) -> Value {
    let mut out = object(secret.id.as_str(), &secret.meta);
    let spec = json!({ "Name": secret.spec.name, "Labels": secret.spec.labels });
    out.insert("Spec".to_owned(), spec);
    Value::Object(out)
}

/// The document of a config, with its content.
pub fn config(config: &Config) -> Value {
    let mut out = object(config.id.as_str(), &config.meta);
    let spec = json!({
        "Name": config.spec.name,
        "Labels": config.spec.labels,
        "Data": config.spec.data,
    });
    out.insert("Spec".to_owned(), spec);
    Value::Object(out)
}
