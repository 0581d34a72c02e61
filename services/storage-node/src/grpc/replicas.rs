//! `ReplicaService`: what the control plane calls.

use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::replica_service_server::{ReplicaService, ReplicaServiceServer};
use ptah_rpc::clients::PlacementOrder;
use ptah_rpc::{MAX_RPC_MESSAGE_BYTES, to_status};
use tonic::{Request, Response, Status};

use crate::placement::PlacementKeeper;

/// Serves the control plane.
#[derive(Clone)]
pub(crate) struct ReplicaGrpc {
    keeper: PlacementKeeper,
}

impl ReplicaGrpc {
    /// A service that hands orders to `keeper`.
    pub(crate) fn server(keeper: PlacementKeeper) -> ReplicaServiceServer<Self> {
        ReplicaServiceServer::new(Self { keeper })
            .max_decoding_message_size(MAX_RPC_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_RPC_MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl ReplicaService for ReplicaGrpc {
    async fn apply_placement(
        &self,
        request: Request<pb::ApplyPlacementRequest>,
    ) -> Result<Response<pb::ApplyPlacementResponse>, Status> {
        let order = PlacementOrder::try_from(request.into_inner()).map_err(|error| to_status(&error))?;
        self.keeper
            .carry_out(order)
            .await
            .map_err(|error| to_status(&error))?;
        Ok(Response::new(pb::ApplyPlacementResponse {}))
    }
}
