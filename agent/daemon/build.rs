//! Generates the gRPC services of 2377; their messages are those of `skep_core::wire`.

use std::{error::Error, result::Result};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = "../core/proto";
    let files = ["swarmkit.proto", "skep.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={folder}/{file}");
    }
    let descriptors = protox::compile(files, [folder])?;
    tonic_prost_build::configure()
        .extern_path(".docker.swarmkit.v1", "::skep_core::wire::swarmkit")
        .extern_path(".skep.v1", "::skep_core::wire::skep")
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
