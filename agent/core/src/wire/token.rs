//! Join tokens: `SWMTKN-1-<digest>-<secret>`, as swarmkit makes and reads them.
//!
//! The digest pins the cluster's root certificate: SHA-256 over the exact PEM bytes that
//! `GetRootCACertificate` answers, as a big integer in lower-case base 36, padded to 50 digits. The
//! secret is 16 random bytes in base 36, padded to 25 digits; a manager compares complete texts.

use std::fmt;

use sha2::{Digest, Sha256};

const PREFIX: &str = "SWMTKN";
const DIGEST_DIGITS: usize = 50;
const SECRET_DIGITS: usize = 25;
/// No valid token is longer; longer texts are not even looked at.
const MAX_LEN: usize = 128;

/// A parsed join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the root certificate's PEM.
    pub digest: [u8; 32],
    /// The secret that decides the role.
    pub secret: u128,
}

/// Why a text is not a join token. The text itself is not repeated: it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not of the form at all.
    #[error("invalid join token: want SWMTKN-1-<50 characters>-<25 characters>")]
    Form,
    /// Made by a cluster with a later format.
    #[error("invalid join token: version {0:?} is not supported, want SWMTKN-1-…")]
    Version(char),
    /// Made by a FIPS cluster.
    #[error("invalid join token: it is of a FIPS cluster, which needs FIPS nodes")]
    Fips,
    /// A part has the wrong length, a foreign character, or is too large.
    #[error("invalid join token: its {0} is damaged, copy the token again")]
    Part(&'static str),
}

impl JoinToken {
    /// The token of a cluster whose root certificate is `root_pem`, from 128 random bits.
    #[must_use]
    pub fn new(root_pem: &[u8], secret: u128) -> Self {
        Self {
            digest: root_digest(root_pem),
            secret,
        }
    }

    /// Reads a token.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_LEN {
            return Err(TokenError::Form);
        }
        let parts: Vec<&str> = text.split('-').collect();
        let (digest, secret) = match parts.as_slice() {
            [PREFIX, "1", digest, secret] => (*digest, *secret),
            [PREFIX, "2", "0", digest, secret] => (*digest, *secret),
            [PREFIX, "2", "1", _, _] => return Err(TokenError::Fips),
            [PREFIX, version, ..] if *version != "1" && *version != "2" => {
                return Err(version
                    .chars()
                    .next()
                    .map_or(TokenError::Form, TokenError::Version));
            }
            _ => return Err(TokenError::Form),
        };
        let digest = decode36::<32>(digest, DIGEST_DIGITS).ok_or(TokenError::Part("CA digest"))?;
        let secret = decode36::<16>(secret, SECRET_DIGITS).ok_or(TokenError::Part("secret"))?;
        Ok(Self {
            digest,
            secret: u128::from_be_bytes(secret),
        })
    }

    /// Whether `root_pem` is the root certificate that this token pins.
    #[must_use]
    pub fn pins(&self, root_pem: &[u8]) -> bool {
        root_digest(root_pem) == self.digest
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = encode36(&self.digest, DIGEST_DIGITS);
        let secret = encode36(&self.secret.to_be_bytes(), SECRET_DIGITS);
        write!(f, "{PREFIX}-1-{digest}-{secret}")
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret stays out of logs.
        f.debug_struct("JoinToken").finish_non_exhaustive()
    }
}

/// Whether two token texts are equal, in a time that does not tell where they differ.
#[must_use]
pub fn same(left: &str, right: &str) -> bool {
    let difference = left
        .bytes()
        .zip(right.bytes())
        .fold(0, |sum, (left, right)| sum | (left ^ right));
    left.len() == right.len() && difference == 0
}

fn root_digest(pem: &[u8]) -> [u8; 32] {
    Sha256::digest(pem).into()
}

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Big-endian bytes as `width` digits of base 36: schoolbook division, for numbers this small the
/// simplest thing that is right.
fn encode36(bytes: &[u8], width: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec![b'0'; width];
    for slot in digits.iter_mut().rev() {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = (rest << 8) | u32::from(*byte);
            *byte = u8::try_from(value / 36).unwrap_or(u8::MAX);
            rest = value % 36;
        }
        *slot = DIGITS[usize::try_from(rest).unwrap_or(0)];
    }
    String::from_utf8(digits).unwrap_or_default()
}

/// The reverse; `None` for another width, a foreign character or a number that does not fit.
fn decode36<const N: usize>(text: &str, width: usize) -> Option<[u8; N]> {
    if text.len() != width {
        return None;
    }
    let mut number = [0u8; N];
    for character in text.bytes() {
        let mut carry = u32::try_from(DIGITS.iter().position(|digit| *digit == character)?).ok()?;
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            *byte = u8::try_from(value & 0xff).ok()?;
            carry = value >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_digest_of_a_known_bundle_is_the_known_text() {
        // Check value of the protocol notes: the bundle `abc`.
        let token = JoinToken::new(b"abc", 0).to_string();
        assert_eq!(
            token,
            "SWMTKN-1-4nb7oofka9ml8nasnokxxc1unhmtpr1wxsuwhpd9km3vt5as31-0000000000000000000000000"
        );
        assert!(JoinToken::parse(&token).unwrap().pins(b"abc"));
    }

    #[test]
    fn damaged_tokens_are_refused_with_the_damaged_part() {
        let good = JoinToken::new(b"abc", 7).to_string();
        let cases = [
            ("", TokenError::Form),
            ("SWMTKN", TokenError::Form),
            ("SWMTKN-1-x", TokenError::Form),
            ("SWMTKN-3-a-b", TokenError::Version('3')),
            (&good.replace("SWMTKN-1-", "SWMTKN-2-1-"), TokenError::Fips),
            (&good[..good.len() - 1], TokenError::Part("secret")),
            (
                &good.replacen("-4nb", "-4Nb", 1),
                TokenError::Part("CA digest"),
            ),
            (
                &good.replacen("-4nb", "-znb", 1),
                TokenError::Part("CA digest"),
            ),
        ];
        for (text, error) in cases {
            assert_eq!(JoinToken::parse(text), Err(error), "{text}");
        }
        assert!(JoinToken::parse(&good.replace("SWMTKN-1-", "SWMTKN-2-0-")).is_ok());
    }

    #[test]
    fn texts_are_compared_whole() {
        assert!(same("abc", "abc"));
        assert!(!same("abc", "abd"));
        assert!(!same("abc", "abcd"));
    }

    proptest! {
        #[test]
        fn every_token_survives_its_text(digest: [u8; 32], secret: u128) {
            let token = JoinToken { digest, secret };
            prop_assert_eq!(JoinToken::parse(&token.to_string()), Ok(token));
        }

        #[test]
        fn no_text_breaks_the_parser(text in "\\PC*") {
            let _ = JoinToken::parse(&text);
        }

        #[test]
        fn what_parses_is_written_back(text in "SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}") {
            if let Ok(token) = JoinToken::parse(&text) {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }
}
