//! Messages of `skep.v1`, generated from `proto/skep.proto`.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

include!(concat!(env!("OUT_DIR"), "/skep.v1.rs"));
