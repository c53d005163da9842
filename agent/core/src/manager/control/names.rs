//! Names of services and networks.

use super::invalid;
use crate::{
    api::{ApiError, Labels, encoded_len},
    rng::Rng,
    store::View,
};

/// The longest name, as in DNS.
const MAX_NAME: usize = 63;
/// The most that labels, environment or other lists of one object may hold.
pub(super) const MAX_ITEMS: usize = 4096;
/// The longest single text of a spec.
pub(super) const MAX_TEXT: usize = 128 * 1024;
/// The longest template of a task, written as JSON.
pub(super) const MAX_SIZE: usize = 256 * 1024;

/// Whether a text can be a name in DNS: letters, digits, and `-` or `_` between them, at most 63.
#[must_use]
pub fn is_dns_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    name.len() <= MAX_NAME
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| inner(*byte))
}

/// # Errors
/// When the name can't be one in DNS.
pub(super) fn check_name(field: &str, name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(invalid(field, "a name must be provided"));
    }
    if is_dns_label(name) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(invalid(
        field,
        format!(
            "{shown:?} is not valid as a DNS name component: use at most {MAX_NAME} letters, digits, - and _, with a letter or digit at both ends"
        ),
    ))
}

/// # Errors
/// When there are too many labels, or one has an empty key or is too long.
pub(super) fn check_labels(field: &str, labels: &Labels) -> Result<(), ApiError> {
    check_count(field, labels.len())?;
    for (key, value) in labels {
        if key.is_empty() {
            return Err(invalid(field, "a label has an empty key"));
        }
        check_text(field, key)?;
        check_text(&format!("{field}[{key}]"), value)?;
    }
    Ok(())
}

/// # Errors
/// When a list is longer than anybody needs.
pub(super) fn check_count(field: &str, count: usize) -> Result<(), ApiError> {
    if count <= MAX_ITEMS {
        return Ok(());
    }
    Err(invalid(
        field,
        format!("{count} entries are too many: give at most {MAX_ITEMS}"),
    ))
}

/// # Errors
/// When a text has a NUL character, which no process can be given, or is too long.
pub(super) fn check_text(field: &str, text: &str) -> Result<(), ApiError> {
    if text.contains('\0') {
        return Err(invalid(field, "it contains a NUL character: remove it"));
    }
    if text.len() > MAX_TEXT {
        return Err(invalid(
            field,
            format!("{} bytes are too many: give at most {MAX_TEXT}", text.len()),
        ));
    }
    Ok(())
}

/// # Errors
/// Those of [`check_text`], and when there are too many.
pub(super) fn check_texts(field: &str, texts: &[String]) -> Result<(), ApiError> {
    check_count(field, texts.len())?;
    for (position, text) in texts.iter().enumerate() {
        check_text(&format!("{field}[{position}]"), text)?;
    }
    Ok(())
}

/// # Errors
/// When all of it together is too long: whatever its parts, each task and each entry of the log carries it.
pub(super) fn check_size(field: &str, value: &impl serde::Serialize) -> Result<(), ApiError> {
    let size = encoded_len(value);
    if size <= MAX_SIZE {
        return Ok(());
    }
    Err(invalid(
        field,
        format!("{size} bytes are too many: give at most {MAX_SIZE} in all"),
    ))
}

const FIRST_WORDS: [&str; 24] = [
    "amber", "brisk", "calm", "clever", "dusky", "eager", "fair", "gentle", "golden", "happy",
    "humming", "keen", "lively", "mellow", "merry", "nimble", "patient", "proud", "quiet", "sunny",
    "sweet", "swift", "tidy", "warm",
];
const SECOND_WORDS: [&str; 24] = [
    "alder", "apiary", "aster", "borage", "bramble", "clover", "comb", "drone", "heather", "hive",
    "honey", "keeper", "lavender", "linden", "meadow", "nectar", "orchard", "pollen", "poppy",
    "queen", "sage", "swarm", "thyme", "willow",
];

/// A name for a service whose user gave none.
#[must_use]
pub fn random_name(view: &View, rng: &mut Rng) -> String {
    let pick = |words: &[&'static str; 24], rng: &mut Rng| {
        usize::try_from(rng.below(24)).map_or("", |at| words[at])
    };
    let mut name = String::new();
    for attempt in 0..100_u64 {
        name = format!("{}_{}", pick(&FIRST_WORDS, rng), pick(&SECOND_WORDS, rng));
        if attempt >= 10 {
            name.push_str(&rng.below(1_000_000).to_string());
        }
        if view.service_named(&name).is_none() {
            break;
        }
    }
    name
}
