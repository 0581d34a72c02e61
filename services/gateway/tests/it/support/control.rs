//! A fake control plane: records what is asked for in the fake metadata store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use ptah_proto::common::v1 as common;
use ptah_proto::control::v1 as pb;
use ptah_proto::control::v1::management_service_server::ManagementService;
use ptah_rpc::RpcError;
use ptah_rpc::clients::{
    ConsumerGroupEnsured, CreateStation, EnsureConsumerGroup, SetNodeDuty, StationCreated, UpdateStation,
};
use ptah_rpc::records::{
    ConsumerGroupRecord, PlacementRecord, RecordKey, RecordValue, ReplicaPlacement, StationRecord,
};
use ptah_types::{
    ConsumerGroupId, ErrorKind, NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaId, StationId,
    StationKind, Timestamp,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::metadata::FakeMetadata;
use super::world::World;

#[derive(Clone)]
pub(crate) struct FakeControl {
    pub(crate) metadata: FakeMetadata,
    pub(crate) world: World,
    pub(crate) nodes: u64,
    pub(crate) ids: Arc<AtomicU64>,
    pub(crate) down: watch::Sender<bool>,
    /// Partitions of new stations get no leader.
    pub(crate) leaderless: watch::Sender<bool>,
    /// Changes what is told of the nodes, which is that all are well.
    pub(crate) told: watch::Sender<fn(&mut Vec<pb::NodeDescription>)>,
    /// Deletions that were asked for, and their revisions; the answer to the first one is lost.
    pub(crate) deletions: Arc<Mutex<Vec<(pb::DeleteStationRequest, u64)>>>,
}

/// A node that is not there.
const NOBODY: u64 = 99;

impl FakeControl {
    fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    fn check_up(&self) -> Result<(), Status> {
        if *self.down.borrow() {
            let down = RpcError::new(ErrorKind::Unavailable, "control plane is down");
            Err(ptah_rpc::to_status(&down))
        } else {
            Ok(())
        }
    }

    /// A node that is well, with all of its replicas open.
    fn describe(&self, node: u64) -> pb::NodeDescription {
        let placements = self.metadata.placements();
        let open = placements.iter().flat_map(|placement| {
            let replicas = placement
                .replicas
                .iter()
                .filter(|replica| replica.node.get() == node);
            replicas.map(|replica| pb::ReplicaReport {
                group_id: placement.group.get(),
                replica_id: replica.replica.get(),
                state: pb::ReplicaState::Open.into(),
                initialized: true,
                ..Default::default()
            })
        });
        pb::NodeDescription {
            node_id: node,
            name: format!("node-{node}"),
            address: format!("127.0.0.1:{}", 6_000 + node),
            alive: true,
            last_seen_ms_ago: 5,
            report: Some(pb::NodeReport {
                node_id: node,
                version: "1.2.3".to_owned(),
                disk_free_bytes: 100 << 20,
                disk_total_bytes: 1 << 30,
                replicas: open.collect(),
                ..Default::default()
            }),
            duty: common::NodeDuty::Serving.into(),
        }
    }

    /// Records a station and leads its partitions, partition 1 on node 1 and so on.
    pub(crate) fn make(&self, wanted: &CreateStation) -> StationCreated {
        let id = StationId::new(self.id()).unwrap();
        let record = StationRecord {
            id,
            name: wanted.name.clone(),
            kind: wanted.kind,
            partitions: wanted.partitions,
            replicas: wanted.replicas,
            storage: wanted.storage,
            max_message_bytes: wanted.max_message_bytes,
            created_at: Timestamp::from_millis(1_700_000_000_000),
            generation: 1,
        };
        let key = RecordKey::station(&wanted.tenant, &wanted.name, wanted.kind);
        let mut revision = self.metadata.put(key, RecordValue::Station(record));
        for number in 1..=wanted.partitions {
            let group = self.id();
            let partition = PartitionKey {
                tenant: wanted.tenant.clone(),
                station: id,
                partition: PartitionNumber::new(number).unwrap(),
            };
            let leader = if *self.leaderless.borrow() {
                NOBODY
            } else {
                (u64::from(number) - 1) % self.nodes + 1
            };
            self.world.add_group(group, leader);
            let replicas = (1..=self.nodes).map(|node| ReplicaPlacement {
                replica: ReplicaId::new(node).unwrap(),
                node: NodeId::new(node).unwrap(),
                opened: true,
                leaving: false,
                lost: false,
            });
            let placement = PlacementRecord {
                partition: partition.clone(),
                group: RaftGroupId::new(group).unwrap(),
                replicas: replicas.collect(),
                next_replica: ReplicaId::new(100).unwrap(),
                initialized: true,
                retired: Vec::new(),
            };
            revision = self.metadata.put(
                RecordKey::placement(&partition),
                RecordValue::Placement(placement),
            );
        }
        StationCreated {
            id,
            revision,
            created: true,
        }
    }
}

#[tonic::async_trait]
impl ManagementService for FakeControl {
    async fn create_station(
        &self,
        request: Request<pb::CreateStationRequest>,
    ) -> Result<Response<pb::CreateStationResponse>, Status> {
        self.check_up()?;
        let wanted: CreateStation = request.into_inner().try_into()?;
        Ok(Response::new(self.make(&wanted).into()))
    }

    async fn delete_station(
        &self,
        request: Request<pb::DeleteStationRequest>,
    ) -> Result<Response<pb::DeleteStationResponse>, Status> {
        self.check_up()?;
        let request = request.into_inner();
        let mut deletions = self.deletions.lock();
        if let Some((_, revision)) = deletions.first().cloned() {
            deletions.push((request, revision));
            return Ok(Response::new(pb::DeleteStationResponse { revision }));
        }
        let (tenant, name) = (request.tenant.parse().unwrap(), request.name.parse().unwrap());
        let key = RecordKey::station(&tenant, &name, StationKind::Station);
        let revision = self.metadata.delete(key);
        deletions.push((request, revision));
        let lost = RpcError::new(ErrorKind::OutcomeUnknown, "the answer was lost");
        Err(ptah_rpc::to_status(&lost))
    }

    async fn ensure_consumer_group(
        &self,
        request: Request<pb::EnsureConsumerGroupRequest>,
    ) -> Result<Response<pb::EnsureConsumerGroupResponse>, Status> {
        self.check_up()?;
        let wanted: EnsureConsumerGroup = request.into_inner().try_into()?;
        let station = self.metadata.station(&wanted.tenant, &wanted.station);
        let record = ConsumerGroupRecord {
            id: ConsumerGroupId::new(self.id()).unwrap(),
            station,
            name: wanted.group.clone(),
            config: wanted.config,
            created_at: Timestamp::from_millis(1_700_000_000_000),
        };
        let key = RecordKey::consumer_group(&wanted.tenant, station, &wanted.group);
        let (id, config) = (record.id, record.config);
        let revision = self.metadata.put(key, RecordValue::ConsumerGroup(record));
        let ensured = ConsumerGroupEnsured {
            id,
            config,
            created: true,
            revision,
        };
        Ok(Response::new((&ensured).into()))
    }

    async fn update_station(
        &self,
        request: Request<pb::UpdateStationRequest>,
    ) -> Result<Response<pb::UpdateStationResponse>, Status> {
        self.check_up()?;
        let wanted = UpdateStation::try_from(request.into_inner())?;
        let updated = self.metadata.update_station(&wanted);
        Ok(Response::new(updated))
    }

    async fn set_node_duty(
        &self,
        request: Request<pb::SetNodeDutyRequest>,
    ) -> Result<Response<pb::SetNodeDutyResponse>, Status> {
        self.check_up()?;
        let wanted = SetNodeDuty::try_from(request.into_inner())?;
        let revision = self.metadata.set_node_duty(&wanted);
        Ok(Response::new(pb::SetNodeDutyResponse { revision }))
    }

    async fn describe_nodes(
        &self,
        _: Request<pb::DescribeNodesRequest>,
    ) -> Result<Response<pb::DescribeNodesResponse>, Status> {
        self.check_up()?;
        let mut nodes: Vec<_> = (1..=self.nodes).map(|node| self.describe(node)).collect();
        let change = *self.told.borrow();
        change(&mut nodes);
        Ok(Response::new(pb::DescribeNodesResponse {
            nodes,
            troubles: Vec::new(),
        }))
    }
}
