//! Compiles `proto/` with protox, so that no `protoc` is needed, and keeps the descriptors for reflection.

use std::path::{Path, PathBuf};

use prost::Message as _;

const FILES: [&str; 8] = [
    "ptah/common/v1/common.proto",
    "ptah/api/v1/station.proto",
    "ptah/api/v1/message.proto",
    "ptah/api/v1/cluster.proto",
    "ptah/metadata/v1/metadata.proto",
    "ptah/control/v1/control.proto",
    "ptah/storage/v1/storage.proto",
    "ptah/raft/v1/raft.proto",
];

/// Fields that carry messages: decoded as slices of the receive buffer, not copied.
const BYTES_FIELDS: [&str; 9] = [
    ".ptah.common.v1.Header",
    ".ptah.api.v1.NewMessage",
    ".ptah.api.v1.Message",
    ".ptah.storage.v1.AppendBatch.payload",
    ".ptah.storage.v1.AppendFragment.payload",
    ".ptah.storage.v1.Delivery.payload",
    ".ptah.storage.v1.FetchResponse.payload",
    ".ptah.raft.v1.Append.frames",
    ".ptah.raft.v1",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [&root])?;
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut config = tonic_prost_build::configure();
    for field in BYTES_FIELDS {
        config = config.bytes(field);
    }
    config.compile_fds(descriptors)?;
    Ok(())
}
