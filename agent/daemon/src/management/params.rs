//! The parameters of an operation: the query of a URL, or a JSON object of texts on D-Bus.

use std::collections::BTreeMap;

use skep_core::{
    api::{ApiError, Filters},
    time::Timestamp,
};

use super::document;

/// Key to value; a key that nobody asks for is ignored, as Docker does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Params(pub BTreeMap<String, String>);

impl Params {
    /// Parses a JSON object of texts; an empty text has no parameters.
    ///
    /// # Errors
    /// `Invalid` for any other document.
    pub fn from_json(text: &str) -> Result<Self, ApiError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        document::parse(text.as_bytes()).map(Self)
    }

    /// The text of a key; empty when absent.
    pub fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// A switch, by Docker's rule: absent, empty, `0`, `no`, `false` and `none` are off.
    pub fn flag(&self, key: &str) -> bool {
        let value = self.text(key).trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// The version of an object that an update is based on.
    ///
    /// # Errors
    /// `Invalid` when it is absent or no number.
    pub fn version(&self) -> Result<u64, ApiError> {
        let text = self.text("version");
        text.parse().map_err(|_| ApiError::Invalid {
            field: "version".to_owned(),
            why: format!(
                "{text:?} is not a number: give Version.Index of the object that you read"
            ),
        })
    }

    /// The filters of a list.
    ///
    /// # Errors
    /// `Invalid` when they are malformed.
    pub fn filters(&self) -> Result<Filters, ApiError> {
        document::filters(self.text("filters"))
    }

    /// A moment as seconds since 1970 with an optional fraction, which is how Docker's client sends
    /// `--since` and `--until`.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub fn moment(&self, key: &str) -> Result<Option<Timestamp>, ApiError> {
        let text = self.text(key);
        if text.is_empty() || text == "0" {
            return Ok(None);
        }
        parse_moment(text)
            .map(Some)
            .ok_or_else(|| ApiError::Invalid {
                field: key.to_owned(),
                why: format!(
                    "{text:?} is not a moment: want seconds since 1970, such as 1700000000.5"
                ),
            })
    }
}

fn parse_moment(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || fraction.len() > 9 {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    Some(Timestamp(
        i128::from(seconds) * 1_000_000_000 + i128::from(nanos),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(key: &str, value: &str) -> Params {
        Params(BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn switches_follow_docker() {
        for on in ["1", "true", "True", "yes", "x"] {
            assert!(params("force", on).flag("force"), "{on}");
        }
        for off in ["", "0", "no", "FALSE", "none"] {
            assert!(!params("force", off).flag("force"), "{off}");
        }
        assert!(!Params::default().flag("force"));
    }

    #[test]
    fn moments_have_a_fraction() {
        let moment = params("since", "1700000000.5").moment("since").unwrap();
        assert_eq!(moment, Some(Timestamp(1_700_000_000_500_000_000)));
        assert_eq!(params("since", "").moment("since").unwrap(), None);
        for wrong in ["yesterday", "1.x", "1.0000000001", "1.-5"] {
            assert!(params("since", wrong).moment("since").is_err(), "{wrong}");
        }
    }
}
