//! Objects of the store as the documents that Docker's Engine API has for them. Pure: what a document
//! needs of other objects is passed in.

pub mod container;
pub mod dependency;
pub mod network;
pub mod node;
pub mod service;
pub mod swarm;
pub mod task;

#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};
use skep_core::{api::Meta, time::Timestamp};

/// The moment that Go writes for «never».
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Puts what every object begins with: `ID`, `Version`, `CreatedAt`, `UpdatedAt`.
fn object(id: &str, meta: &Meta) -> Map<String, Value> {
    let mut document = Map::new();
    document.insert("ID".to_owned(), json!(id));
    document.insert("Version".to_owned(), json!({ "Index": meta.version }));
    document.insert("CreatedAt".to_owned(), json!(meta.created_at));
    document.insert("UpdatedAt".to_owned(), json!(meta.updated_at));
    document
}

/// A moment that may not have come.
fn moment(time: Option<Timestamp>) -> String {
    time.map_or_else(|| ZERO_TIME.to_owned(), |time| time.to_string())
}
