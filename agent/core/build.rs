//! Generates the protobuf messages of 2377; protox parses the files, so that no `protoc` is needed.

use std::{error::Error, result::Result};

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["proto/swarmkit.proto", "proto/skep.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    prost_build::Config::new()
        .btree_map(["."])
        // Secrets: their debug form stands in `wire/swarmkit.rs`.
        .skip_debug(["SecretSpec", "ConfigSpec"])
        .compile_fds(descriptors)?;
    Ok(())
}
