//! Generated gRPC code, and conversions between its types and the domain's.
//!
//! Generated types stop at the services' `grpc` modules and at the typed clients of `ptah-rpc`.

#[allow(missing_docs, clippy::all, clippy::large_futures, unreachable_pub)]
mod generated {
    pub mod common {
        pub mod v1 {
            tonic::include_proto!("ptah.common.v1");
        }
    }
    pub mod api {
        pub mod v1 {
            tonic::include_proto!("ptah.api.v1");
        }
    }
    pub mod metadata {
        pub mod v1 {
            tonic::include_proto!("ptah.metadata.v1");
        }
    }
    pub mod control {
        pub mod v1 {
            tonic::include_proto!("ptah.control.v1");
        }
    }
    pub mod storage {
        pub mod v1 {
            tonic::include_proto!("ptah.storage.v1");
        }
    }
    pub mod raft {
        pub mod v1 {
            tonic::include_proto!("ptah.raft.v1");
        }
    }
}

pub use generated::{api, common, control, metadata, raft, storage};

/// Descriptors of every contract, for gRPC reflection.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
