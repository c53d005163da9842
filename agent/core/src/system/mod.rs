//! This machine as a whole: how it is configured.

pub mod config;
