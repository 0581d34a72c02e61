//! What is known of methods before they are called: whether callers send a stream, and what a request may contain. The
//! descriptors know; a request does not say it.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

use crate::budget::{RequestLimits, RequestShape, Shapes};

/// Methods by path (`/package.Service/Method`).
pub(super) struct Methods {
    by_path: BTreeMap<String, Method>,
    limits: RequestLimits,
}

/// One method.
pub(super) struct Method {
    /// Whether its callers send a stream.
    pub(super) streams: bool,
    /// What they send.
    pub(super) request: Option<RequestShape>,
}

impl Methods {
    /// Those of encoded descriptor sets.
    pub(super) fn of(descriptors: &[&[u8]], limits: RequestLimits) -> Self {
        let shapes = Arc::new(Shapes::of(descriptors, &limits));
        let sets = descriptors
            .iter()
            .filter_map(|set| FileDescriptorSet::decode(*set).ok());
        let files = sets.flat_map(|set| set.file);
        Self {
            by_path: files.flat_map(|file| methods(&file, &shapes)).collect(),
            limits,
        }
    }

    pub(super) fn get(&self, path: &str) -> Option<&Method> {
        self.by_path.get(path)
    }

    /// Largest message of a method.
    pub(super) fn message_bytes(&self, path: &str) -> usize {
        self.limits.message_bytes(path)
    }
}

fn methods(file: &FileDescriptorProto, shapes: &Arc<Shapes>) -> Vec<(String, Method)> {
    let mut methods = Vec::new();
    for service in &file.service {
        methods.extend(service.method.iter().map(|method| {
            let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
            let method = Method {
                streams: method.client_streaming(),
                request: shapes.request(method.input_type()),
            };
            (path, method)
        }));
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::DESCRIPTORS;

    #[test]
    fn methods_with_a_stream_of_requests_are_known_and_no_others() {
        let methods = Methods::of(&DESCRIPTORS, RequestLimits::default());
        let streams = |path: &str| methods.get(path).unwrap().streams;
        assert!(streams("/ptah.storage.v1.PartitionService/Append"));
        assert!(streams(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        ));
        assert!(!streams("/ptah.storage.v1.PartitionService/Fetch"));
        assert!(!streams("/grpc.health.v1.Health/Watch"));
    }

    #[test]
    fn the_requests_of_every_method_are_known() {
        let methods = Methods::of(&DESCRIPTORS, RequestLimits::default());
        assert!(methods.by_path.len() > 20);
        for (path, method) in &methods.by_path {
            assert!(method.request.is_some(), "{path}");
        }
    }
}
