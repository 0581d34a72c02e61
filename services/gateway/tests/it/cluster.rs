//! What `GetClusterStatus` says of nodes, and of services that do not answer.

use ptah_proto::api::v1 as api;
use ptah_proto::control::v1 as control;

use crate::support::{Cluster, LIMIT, ROOT, cluster, signed};

async fn status(cluster: &Cluster) -> api::GetClusterStatusResponse {
    let status = cluster
        .cluster()
        .get_cluster_status(signed(ROOT, api::GetClusterStatusRequest {}))
        .await;
    status.unwrap().into_inner()
}

async fn until_troubles(cluster: &Cluster, wanted: bool) -> api::GetClusterStatusResponse {
    let told = async {
        loop {
            let told = status(cluster).await;
            if told.troubles.is_empty() != wanted {
                return told;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, told)
        .await
        .unwrap_or_else(|_| panic!("troubles: {wanted} is not so"))
}

#[tokio::test]
async fn the_cluster_is_shown_without_control_plane_and_says_so() {
    let cluster = cluster().start().await;
    cluster.station("orders", 3).await;
    cluster.control.down.send_replace(true);
    let status = status(&cluster).await;
    assert_eq!(status.nodes.len(), 3);
    assert!(
        status
            .nodes
            .iter()
            .all(|node| node.alive && node.leaders == 1 && node.replicas == 3)
    );
    assert!(
        status.nodes.iter().all(|node| node.disk_free_bytes.is_none()
            && node.disk_total_bytes.is_none()
            && node.version.is_empty()),
        "what nobody tells is absent and not 0"
    );
    assert_eq!(
        (
            status.stations,
            status.partitions,
            status.partitions_without_leader
        ),
        (1, 3, 0)
    );
    assert!(
        status.troubles[0].contains("the control plane does not answer"),
        "{:?}",
        status.troubles
    );
}

#[tokio::test]
async fn metadata_that_does_not_answer_is_a_trouble_of_the_cluster() {
    let cluster = cluster().start().await;
    assert_eq!(status(&cluster).await.troubles, Vec::<String>::new());
    cluster.metadata.down.send_replace(true);
    let told = until_troubles(&cluster, true).await;
    let expected = format!(
        "the metadata service at `{}` does not answer",
        cluster.config.metadata_addresses[0]
    );
    assert!(told.troubles[0].contains(&expected), "{:?}", told.troubles);
    assert_eq!(told.nodes[0].disk_free_bytes, Some(100 << 20), "the rest is told");
    cluster.metadata.down.send_replace(false);
    until_troubles(&cluster, false).await;
}

#[tokio::test]
async fn a_node_whose_disk_is_too_full_for_messages_is_in_trouble_with_numbers() {
    let cluster = cluster().start().await;
    cluster.control.told.send_replace(|nodes| {
        if let Some(report) = &mut nodes[1].report {
            report.refuses_messages = true;
            report.disk_needed_bytes = 512 << 20;
        }
    });
    let told = status(&cluster).await;
    assert_eq!(
        told.nodes[1].troubles,
        [
            "refuses messages: 100 MiB free of 1024 MiB on its data disk, needs 512 MiB (`disk.*`); \
             add room or delete stations"
        ]
    );
    assert_eq!(told.nodes[0].troubles, Vec::<String>::new());
}

#[tokio::test]
async fn troubles_of_replicas_name_station_and_partition_and_end_with_the_group() {
    let cluster = cluster().start().await;
    cluster.station("orders", 2).await;
    cluster.control.told.send_replace(|nodes| {
        if let Some(report) = &mut nodes[0].report {
            report.replicas[1].state = control::ReplicaState::Damaged.into();
            report.replicas[1].trouble = "checksum of segment 4 does not match".to_owned();
            report.replicas.push(control::ReplicaReport {
                group_id: 0xabc,
                state: control::ReplicaState::UnknownGroup.into(),
                trouble: "nobody asked for it".to_owned(),
                ..Default::default()
            });
        }
    });
    let told = status(&cluster).await;
    let group = cluster.metadata.placements()[1].group.to_hex();
    let damaged = format!(
        "replica of partition 2 of station `orders`: checksum of segment 4 does not match (group {group})"
    );
    assert_eq!(
        told.nodes[0].troubles,
        [
            damaged.as_str(),
            "replica of a partition that no station has: nobody asked for it (group 0000000000000abc)"
        ]
    );
    assert_eq!(told.partitions_under_replicated, 1);
}
