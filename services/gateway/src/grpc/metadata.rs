//! The metadata store, as the catalog needs it.

use futures_util::future::BoxFuture;
use ptah_rpc::clients::{ListQuery, WatchStream};
use ptah_rpc::records::RecordKind;
use ptah_rpc::{Channels, MetadataClient, RpcError};

use crate::catalog::sync::{CatalogChanges, ChangeStream, KINDS, Listing, MetadataSource};

/// The metadata service over gRPC.
pub struct GrpcMetadata {
    /// Connections.
    pub channels: Channels,
    /// host:port of each instance of the service.
    pub addresses: Vec<String>,
}

impl GrpcMetadata {
    /// A client of the service.
    pub fn client(&self) -> Result<MetadataClient, RpcError> {
        Ok(MetadataClient::new(self.channels.to_any(&self.addresses)?))
    }
}

impl MetadataSource for GrpcMetadata {
    fn list(&self, kind: RecordKind) -> BoxFuture<'_, Result<Listing, RpcError>> {
        Box::pin(async move {
            let list = self.client()?.list(&ListQuery::all(kind)).await?;
            Ok(Listing {
                records: list.records,
                revision: list.revision,
                incarnation: list.incarnation,
            })
        })
    }

    fn watch(&self, after: u64, incarnation: u64) -> BoxFuture<'_, Result<Box<dyn ChangeStream>, RpcError>> {
        Box::pin(async move {
            let stream = self.client()?.watch(after, incarnation, &KINDS).await?;
            Ok(Box::new(GrpcChanges(stream)) as Box<dyn ChangeStream>)
        })
    }
}

struct GrpcChanges(WatchStream);

impl ChangeStream for GrpcChanges {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<CatalogChanges, RpcError>>> {
        Box::pin(async move {
            let next = self.0.next().await?;
            Some(next.map(|changes| CatalogChanges {
                records: changes.records,
                revision: changes.revision,
            }))
        })
    }
}
