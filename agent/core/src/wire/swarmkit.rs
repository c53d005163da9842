//! Messages of `docker.swarmkit.v1`, generated from `proto/swarmkit.proto`.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

include!(concat!(env!("OUT_DIR"), "/docker.swarmkit.v1.rs"));
