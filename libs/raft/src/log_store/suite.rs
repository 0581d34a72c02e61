//! openraft's own suite for log storage, on the real store.

use std::io;
use std::path::Path;

use bytes::Bytes;
use futures_util::StreamExt;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{RaftSnapshotBuilder, StorageError};
use prometheus_client::registry::Registry;
use ptah_segment_log::{
    Checkpoint, Disk, Drivers, GroupSpec, Identity, Manifest, Options, OsDisk, SimDisk, Store,
};
use ptah_types::{ClusterId, NodeId, PartitionKey, PartitionNumber, RaftGroupId, ReplicaId, StationId};

use super::*;
use crate::applied::AppliedState;
use crate::cell::InstallLock;
use crate::snapshot::{SnapshotBuilder, SnapshotData};
use crate::state_machine::StateMachine;
use crate::types::{Snapshot, SnapshotMeta, StoredMembership};

/// What a store of the suite lives on.
enum Ground {
    Os,
    Sim,
}

/// Keeps the store, its threads and its directory until a test is over.
struct Guard {
    _drivers: Drivers,
    _dir: Option<tempfile::TempDir>,
}

impl StoreBuilder<TypeConfig, LogStore, SuiteMachine, Guard> for Ground {
    async fn build(&self) -> Result<(Guard, LogStore, SuiteMachine), StorageError<TypeConfig>> {
        let (disk, dir): (Arc<dyn Disk>, _) = match self {
            Self::Os => (Arc::new(OsDisk), Some(tempfile::tempdir().unwrap())),
            Self::Sim => (SimDisk::new(1).as_disk(), None),
        };
        let path = dir.as_ref().map_or(Path::new("/node"), |dir| dir.path());
        let identity = Identity {
            cluster: ClusterId::from_random_bytes([7; 16]),
            node: NodeId::new(1).unwrap(),
        };
        let store = Store::open(disk, path, identity, Options::small()).unwrap();
        let drivers = store.spawn_drivers().unwrap();
        let log = store.create_group(group_spec()).unwrap();
        let trouble = Arc::new(Trouble::default());
        let blocking = Blocking::new(false);
        let room = Arc::new(Notify::new());
        let metrics = Arc::new(Metrics::register(&mut Registry::default()));
        let state = Arc::new(AppliedState::new());
        let log_store = LogStore::new(
            Arc::clone(&log),
            room,
            Arc::clone(&trouble),
            blocking,
            Arc::clone(&metrics),
            Arc::clone(&state),
        );
        let machine = StateMachine::open(
            Arc::clone(&log),
            state,
            trouble,
            blocking,
            metrics,
            InstallLock::default(),
        )
        .await
        .unwrap();
        let machine = SuiteMachine {
            machine,
            log,
            applied: Vec::new(),
        };
        let guard = Guard {
            _drivers: drivers,
            _dir: dir,
        };
        Ok((guard, log_store, machine))
    }
}

fn group_spec() -> GroupSpec {
    GroupSpec {
        group: RaftGroupId::new(1).unwrap(),
        replica: ReplicaId::new(1).unwrap(),
        key: PartitionKey {
            tenant: "default".parse().unwrap(),
            station: StationId::new(1).unwrap(),
            partition: PartitionNumber::FIRST,
        },
        segment_bytes: 64 << 10,
    }
}

/// The state machine, with a log below what the suite applies: the suite applies entries that it never appended, and
/// a checkpoint is only taken of what the log holds.
struct SuiteMachine {
    machine: StateMachine,
    log: Arc<GroupLog>,
    applied: Vec<Frame>,
}

impl SuiteMachine {
    /// Appends what was applied, durably.
    async fn back_by_log(&mut self) {
        let last = self.log.last_log_id();
        let group = self.log.spec().group;
        let mut frames = std::mem::take(&mut self.applied);
        frames.retain(|frame| frame.group == group && Some(frame.log_id()) > last);
        if frames.is_empty() {
            return;
        }
        let (tell, told) = oneshot::channel();
        let done: FlushDone = Box::new(move |result| tell.send(result).unwrap());
        self.log.append(frames, done).unwrap();
        told.await.unwrap().unwrap();
    }
}

/// The builder. The suite also purges what was never applied and then wants a snapshot; a replica never does, and ours
/// refuses to start then.
struct SuiteBuilder {
    builder: SnapshotBuilder,
    nothing_applied: bool,
}

impl RaftSnapshotBuilder<TypeConfig> for SuiteBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        if !self.nothing_applied {
            return self.builder.build_snapshot().await;
        }
        let checkpoint = Checkpoint {
            at: ptah_types::LogId::default(),
            state: Bytes::new(),
            manifest: Manifest::default(),
        };
        Ok(Snapshot {
            meta: SnapshotMeta::default(),
            snapshot: SnapshotData {
                checkpoint,
                staged: None,
            },
        })
    }
}

impl SuiteMachine {
    async fn wrap(&mut self, builder: SnapshotBuilder) -> SuiteBuilder {
        SuiteBuilder {
            builder,
            nothing_applied: self.machine.applied_state().await.unwrap().0.is_none(),
        }
    }
}

impl RaftStateMachine<TypeConfig> for SuiteMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SuiteBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        self.machine.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let group = self.log.spec().group;
        let applied = &mut self.applied;
        let entries = entries.inspect(|item| {
            let (entry, _) = item.as_ref().unwrap();
            applied.push(frame_of(entry.clone(), group, |_| true));
        });
        self.machine.apply(entries).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SuiteBuilder> {
        if force {
            self.back_by_log().await;
        }
        let builder = self.machine.try_create_snapshot_builder(force).await?;
        Some(self.wrap(builder).await)
    }

    async fn get_snapshot_builder(&mut self) -> SuiteBuilder {
        self.back_by_log().await;
        let builder = self.machine.get_snapshot_builder().await;
        self.wrap(builder).await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        self.machine.install_snapshot(meta, data).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.machine.get_current_snapshot().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_on_files_keeps_openrafts_contract() {
    Suite::test_all(Ground::Os).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_on_a_simulated_disk_keeps_openrafts_contract() {
    Suite::test_all(Ground::Sim).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_checkpoint_makes_the_replica_damaged() {
    let disk = SimDisk::new(3);
    let identity = Identity {
        cluster: ClusterId::from_random_bytes([7; 16]),
        node: NodeId::new(1).unwrap(),
    };
    let open = || Store::open(disk.as_disk(), Path::new("/node"), identity, Options::small()).unwrap();
    let store = open();
    let drivers = store.spawn_drivers().unwrap();
    let log = store.create_group(group_spec()).unwrap();
    let at = ptah_types::LogId::default();
    let (tell, told) = oneshot::channel();
    let frame = frame_of(
        openraft::entry::RaftEntry::new(raft_log_id(at), crate::types::EntryPayload::Blank),
        log.spec().group,
        |_| true,
    );
    log.append(vec![frame], Box::new(move |result| tell.send(result).unwrap()))
        .unwrap();
    told.await.unwrap().unwrap();
    log.write_checkpoint(at, Bytes::from_static(b"not a state"))
        .unwrap();
    let trouble = Arc::new(Trouble::default());
    let opened = StateMachine::open(
        log,
        Arc::new(AppliedState::new()),
        Arc::clone(&trouble),
        Blocking::new(false),
        Arc::new(Metrics::default()),
        InstallLock::default(),
    )
    .await;
    assert!(opened.is_err());
    assert!(trouble.found().is_some());
    drop(drivers);
}

/// A stored checkpoint is what the builder gives, not the newest state.
#[tokio::test(flavor = "multi_thread")]
async fn the_builder_gives_the_stored_checkpoint() {
    let (_guard, mut store, mut machine) = Ground::Sim.build().await.unwrap();
    Suite::<TypeConfig, LogStore, SuiteMachine, Ground, Guard>::feed_10_logs_vote_self(&mut store)
        .await
        .unwrap();
    let entries = store.try_get_log_entries(0..6).await.unwrap();
    let items = futures_util::stream::iter(entries.into_iter().map(|entry| Ok((entry, None))));
    machine.apply(items).await.unwrap();
    let taken = machine
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();
    let entries = store.try_get_log_entries(6..9).await.unwrap();
    let items = futures_util::stream::iter(entries.into_iter().map(|entry| Ok((entry, None))));
    machine.apply(items).await.unwrap();
    let mut builder = machine.try_create_snapshot_builder(false).await.unwrap();
    assert_eq!(builder.build_snapshot().await.unwrap().meta, taken.meta);
    assert_eq!(taken.meta.last_log_id.unwrap().index(), 5);
}
