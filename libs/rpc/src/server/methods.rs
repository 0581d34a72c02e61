//! Which methods take a stream of messages. The descriptors know; a request does not say it.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

/// Paths (`/package.Service/Method`) of methods whose callers send a stream.
pub(super) struct StreamingMethods(BTreeSet<String>);

impl StreamingMethods {
    /// Those of encoded descriptor sets.
    pub(super) fn of(descriptors: &[&[u8]]) -> Self {
        let sets = descriptors
            .iter()
            .filter_map(|set| FileDescriptorSet::decode(*set).ok());
        let files = sets.flat_map(|set| set.file);
        Self(files.flat_map(|file| streaming_methods(&file)).collect())
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.0.contains(path)
    }
}

fn streaming_methods(file: &FileDescriptorProto) -> Vec<String> {
    let mut paths = Vec::new();
    for service in &file.service {
        let streaming = service.method.iter().filter(|method| method.client_streaming());
        paths.extend(
            streaming.map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name())),
        );
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::DESCRIPTORS;

    #[test]
    fn methods_with_a_stream_of_requests_are_known_and_no_others() {
        let methods = StreamingMethods::of(&DESCRIPTORS);
        assert!(methods.contains("/ptah.storage.v1.PartitionService/Append"));
        assert!(methods.contains("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"));
        assert!(!methods.contains("/ptah.storage.v1.PartitionService/Fetch"));
        assert!(!methods.contains("/grpc.health.v1.Health/Watch"));
    }
}
