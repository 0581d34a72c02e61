//! Peers that do not belong: of another release, or without the cluster's secret. Every internal port refuses them in one
//! sentence.

use std::sync::Arc;

use ptah_integration_tests::cluster::{Cluster, SECRET};
use ptah_proto::control::v1 as control;
use ptah_proto::metadata::v1 as metadata;
use ptah_proto::raft::v1 as raft;
use ptah_proto::storage::v1 as storage;
use ptah_rpc::{Channels, ClusterSecret, RpcChannel, TcpNetwork};
use ptah_service::Secret;
use ptah_types::VersionRange;
use tonic::{Code, Status};

fn channels(secret: &str) -> anyhow::Result<Channels> {
    let secret = ClusterSecret::new(&Secret::new(secret))?;
    Ok(Channels::new(Arc::new(TcpNetwork::new()), secret))
}

/// What each internal port says to a call.
async fn told(
    channels: &Channels,
    cluster: &Cluster,
) -> anyhow::Result<Vec<(&'static str, Result<(), Status>)>> {
    let to = |process: &ptah_integration_tests::process::Process| -> anyhow::Result<RpcChannel> {
        Ok(channels.to(process.address("grpc")?)?)
    };
    let (store, plane, node) = (&cluster.metadata[0], &cluster.controls[0], &cluster.nodes[0]);
    let info = metadata::metadata_service_client::MetadataServiceClient::new(to(store)?)
        .get_info(metadata::GetInfoRequest {})
        .await;
    let management = control::management_service_client::ManagementServiceClient::new(to(plane)?)
        .describe_nodes(control::DescribeNodesRequest::default())
        .await;
    let registry = control::node_service_client::NodeServiceClient::new(to(plane)?)
        .report_node(control::ReportNodeRequest::default())
        .await;
    let replicas = storage::replica_service_client::ReplicaServiceClient::new(to(node)?)
        .apply_placement(storage::ApplyPlacementRequest::default())
        .await;
    let leaders = storage::partition_service_client::PartitionServiceClient::new(to(node)?)
        .watch_leaders(storage::WatchLeadersRequest::default())
        .await;
    let transport = raft::raft_transport_service_client::RaftTransportServiceClient::new(to(node)?)
        .vote(raft::VoteRequest::default())
        .await;
    Ok(vec![
        ("metadata", info.map(drop)),
        ("control, management", management.map(drop)),
        ("control, nodes", registry.map(drop)),
        ("storage, replicas", replicas.map(drop)),
        ("storage, partitions", leaders.map(drop)),
        ("raft", transport.map(drop)),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_internal_port_refuses_other_releases_and_says_whom_to_upgrade() -> anyhow::Result<()> {
    let cluster = Cluster::start(1).await?;
    for (min, max, older) in [(7, 9, "this process"), (0, 0, "the caller")] {
        let strangers = channels(SECRET)?.with_wire(VersionRange { min, max });
        for (port, told) in told(&strangers, &cluster).await? {
            let status = told.expect_err(port);
            assert_eq!(status.code(), Code::FailedPrecondition, "{port}: {status}");
            let said = status.message();
            for part in [
                format!("wire protocol {min}-{max} "),
                format!("; upgrade {older}"),
            ] {
                assert!(said.contains(&part), "{port}: {said}");
            }
        }
    }
    for (port, told) in told(&channels("another secret of another cluster")?, &cluster).await? {
        let status = told.expect_err(port);
        assert_eq!(status.code(), Code::Unauthenticated, "{port}: {status}");
        assert!(status.message().contains("`cluster.secret`"), "{port}: {status}");
    }
    // Those who belong get as far as the service.
    for (port, told) in told(&channels(SECRET)?, &cluster).await? {
        let code = told.err().map(|status| status.code());
        assert!(
            code != Some(Code::FailedPrecondition) && code != Some(Code::Unauthenticated),
            "{port}: {code:?}"
        );
    }
    cluster.finish().await
}
