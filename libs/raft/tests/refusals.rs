//! Who and what is refused: other clusters, nodes, replicas and versions, damaged votes, garbage.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::io::Write;

use common::{Cluster, committed, group, secret, sequence, until};
use ptah_proto::common::v1 as common_pb;
use ptah_proto::raft::v1 as pb;
use ptah_proto::raft::v1::raft_transport_service_client::RaftTransportServiceClient;
use ptah_raft::{HostOptions, ReplicaState};
use ptah_rpc::{Channels, RpcChannel, TcpNetwork};
use ptah_segment_log::{SimFault, SimOp};
use tonic::Code;

/// A caller that may say anything.
struct Stranger {
    runtime: tokio::runtime::Runtime,
    client: RaftTransportServiceClient<RpcChannel>,
    hello: pb::Hello,
    address: pb::GroupAddress,
}

impl Stranger {
    /// Says what replica 2 on node 2 would say to node 1.
    fn of(cluster: &Cluster) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let to = cluster.node(1).up.as_ref().unwrap().address.clone();
        let client = runtime.block_on(async {
            let channels = Channels::new(std::sync::Arc::new(TcpNetwork::new()), secret());
            RaftTransportServiceClient::new(channels.to(&to).unwrap())
        });
        Self {
            runtime,
            client,
            hello: pb::Hello {
                cluster_id: cluster.id.to_string(),
                from_node_id: 2,
                to_node_id: 1,
                wire: Some(ptah_rpc::wire_range()),
            },
            address: pb::GroupAddress {
                group_id: 1,
                from_replica_id: 2,
                to_replica_id: 1,
            },
        }
    }

    /// Asks for a vote that cannot be granted by accident: an old term.
    fn vote(&mut self) -> Result<pb::VoteResponse, Code> {
        let request = pb::VoteRequest {
            hello: Some(self.hello.clone()),
            address: Some(self.address),
            vote: Some(pb::Vote {
                term: 0,
                replica_id: 2,
                committed: false,
            }),
            last_log_id: None,
            leader_transfer: false,
            pre_vote: false,
        };
        let answer = self.runtime.block_on(self.client.vote(request));
        answer
            .map(|response| response.into_inner())
            .map_err(|status| status.code())
    }

    /// Sends one append and answers the result.
    fn append(&mut self, append: pb::Append) -> Option<pb::append_result::Outcome> {
        let messages = vec![
            pb::ReplicateRequest {
                hello: Some(self.hello.clone()),
                appends: Vec::new(),
            },
            pb::ReplicateRequest {
                hello: None,
                appends: vec![append],
            },
        ];
        let client = &mut self.client;
        self.runtime.block_on(async {
            let (keep_open, rest) = tokio::sync::mpsc::channel(1);
            let requests = futures_util::StreamExt::chain(
                futures_util::stream::iter(messages),
                tokio_stream::wrappers::ReceiverStream::new(rest),
            );
            let mut answers = client.replicate(requests).await.ok()?.into_inner();
            assert!(answers.message().await.ok()??.welcome.is_some());
            let message = answers.message().await.ok()??;
            drop(keep_open);
            message.results.into_iter().next()?.outcome
        })
    }
}

#[test]
fn callers_of_another_cluster_node_replica_or_version_are_refused() {
    let mut cluster = Cluster::three();
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    cluster.until_applied(1, sequence(2));
    let right = || Stranger::of(&cluster);
    assert!(right().vote().is_ok());

    let mut other_cluster = right();
    other_cluster.hello.cluster_id = "00000000-0000-4000-8000-000000000001".to_owned();
    assert_eq!(other_cluster.vote(), Err(Code::FailedPrecondition));

    let mut other_node = right();
    other_node.hello.to_node_id = 3;
    assert_eq!(other_node.vote(), Err(Code::FailedPrecondition));

    let mut other_version = right();
    other_version.hello.wire = Some(common_pb::VersionRange { min: 900, max: 901 });
    assert_eq!(other_version.vote(), Err(Code::FailedPrecondition));

    let mut other_replica = right();
    other_replica.address.to_replica_id = 9;
    assert_eq!(other_replica.vote(), Err(Code::Unavailable));

    let mut moved_replica = right();
    moved_replica.hello.from_node_id = 3;
    assert_eq!(moved_replica.vote(), Err(Code::Unavailable));

    let mut other_group = right();
    other_group.address.group_id = 77;
    assert_eq!(other_group.vote(), Err(Code::Unavailable));
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(2));
}

#[test]
fn entries_that_do_not_verify_are_refused_and_the_group_goes_on() {
    let mut cluster = Cluster::three();
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    cluster.until_applied(1, sequence(2));
    let term = cluster.leader(1).term.0;
    let mut stranger = Stranger::of(&cluster);
    let honest = pb::Append {
        session: 1,
        address: Some(stranger.address),
        close: false,
        vote: Some(pb::Vote {
            term,
            replica_id: 2,
            committed: true,
        }),
        previous: None,
        committed: None,
        frames: bytes::Bytes::new(),
        number: 1,
        remaining_bytes: 0,
    };
    let garbage = pb::Append {
        frames: bytes::Bytes::from(vec![0xa5; 500]),
        ..honest.clone()
    };
    let huge = pb::Append {
        remaining_bytes: u64::MAX,
        ..honest.clone()
    };
    let headless = pb::Append { vote: None, ..honest };
    for append in [garbage, huge, headless] {
        let outcome = stranger.append(append);
        assert!(
            matches!(outcome, Some(pb::append_result::Outcome::Closed(_))),
            "{outcome:?}"
        );
    }
    assert!(cluster.counter(1, "ptah_bad_entries_total") >= 3);
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(2));
    assert_eq!(cluster.state_of(1, 1), ReplicaState::Running);
}

#[test]
fn an_offer_larger_than_any_message_is_read_to_its_end_and_a_senseless_one_refused() {
    let mut cluster = Cluster::three();
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    cluster.until_applied(1, sequence(2));
    let mut stranger = Stranger::of(&cluster);
    let piece = ptah_types::limits::FRAGMENT_BYTES;
    let mut offer = |pieces: usize, claimed: u64| {
        let first = pb::InstallSnapshotRequest {
            hello: Some(stranger.hello.clone()),
            address: Some(stranger.address),
            vote: Some(pb::Vote {
                term: 1,
                replica_id: 2,
                committed: true,
            }),
            ..pb::InstallSnapshotRequest::default()
        };
        let messages = (1..=pieces).map(move |number| pb::InstallSnapshotRequest {
            checkpoint: bytes::Bytes::from(vec![7; piece]),
            remaining_bytes: claimed.saturating_sub((number * piece) as u64),
            ..if number == 1 {
                first.clone()
            } else {
                pb::InstallSnapshotRequest::default()
            }
        });
        let call = stranger
            .client
            .install_snapshot(futures_util::stream::iter(messages));
        stranger.runtime.block_on(call).unwrap_err().message().to_owned()
    };
    // Everything arrives; what it says is nonsense.
    let whole = 1 + ptah_rpc::MAX_RPC_MESSAGE_BYTES / piece;
    let answer = offer(whole, (whole * piece) as u64);
    assert!(answer.contains("wrong checksum"), "{answer}");
    let answer = offer(2, (3 * piece) as u64);
    assert!(answer.contains("it ends early"), "{answer}");
    let answer = offer(1, u64::MAX);
    assert!(answer.contains("larger than any offer"), "{answer}");
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(2));
}

#[test]
fn garbage_on_the_port_does_not_disturb_anybody() {
    let mut cluster = Cluster::three();
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    for id in 1..=3 {
        let address = cluster.node(id).up.as_ref().unwrap().address.clone();
        for length in [1, 24, 1000, 100_000] {
            let mut socket = std::net::TcpStream::connect(&address).unwrap();
            let bytes: Vec<u8> = (0..length).map(|place| (place * 31 % 251) as u8).collect();
            // The node may hang up at any byte.
            let _ = socket.write_all(&bytes);
        }
    }
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(2));
    cluster.until_applied(1, sequence(3));
}

#[test]
fn a_replica_whose_vote_is_damaged_is_reported_and_does_not_vote() {
    let mut cluster = Cluster::three();
    cluster.create(1, &[1, 2, 3]);
    cluster.append(1, b"x");
    cluster.until_applied(1, sequence(2));
    let victim = if cluster.leader(1).on == 3 { 2 } else { 3 };
    cluster.stop(victim);
    // Both meta slots of the group hold the vote, each twice; a bit flips in every copy.
    let disk = cluster.node(victim).disk.clone();
    let slots: Vec<_> = disk
        .files()
        .into_iter()
        .filter(|path| path.to_string_lossy().contains(&group(1).to_hex()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("meta"))
        })
        .collect();
    assert!(!slots.is_empty());
    for slot in &slots {
        let half = disk.contents(slot).unwrap().len() as u64 / 2;
        for copy in [0, half] {
            assert!(disk.flip_bit(slot, (copy + 90) * 8));
        }
    }
    cluster.start(victim);
    until("the replica is reported as damaged", || {
        (cluster.state_of(victim, 1) == ReplicaState::Damaged).then_some(())
    });
    assert!(cluster.replica(victim, 1).status().trouble.is_some());
    // The other two still are a majority; without one of them there is none.
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(2));
    let other = (1..=3)
        .find(|id| *id != victim && *id != cluster.leader(1).on)
        .unwrap();
    let mut leader = cluster.leader(1);
    cluster.node_mut(other).kill_process();
    if let Ok(answer) = leader.propose(b"z") {
        let early = answer.recv_timeout(std::time::Duration::from_secs(3));
        assert!(
            !matches!(early, Ok(Ok(_))),
            "a damaged replica must not make a majority"
        );
    }
}

#[test]
fn damage_that_a_reader_meets_keeps_the_replica_from_voting_after_a_power_loss_too() {
    let options = HostOptions {
        round_every: std::time::Duration::from_millis(50),
        ..HostOptions::for_tests()
    };
    let mut cluster = Cluster::new(3, options, 1);
    cluster.create(1, &[1, 2, 3]);
    for number in 0..100_u8 {
        cluster.append(1, &[number; 2000]);
    }
    cluster.until_applied(1, sequence(101));
    let victim = if cluster.leader(1).on == 3 { 2 } else { 3 };
    let read = |cluster: &Cluster| {
        let reading = cluster.replica(victim, 1);
        cluster
            .runtime(victim)
            .block_on(reading.read(sequence(1), sequence(2), 1 << 20))
    };
    // The oldest messages lie in a file, and in memory no more.
    let disk = cluster.node(victim).disk.clone();
    let oldest = until("the oldest segment is written", || {
        let mut segments: Vec<_> = disk
            .files()
            .into_iter()
            .filter(|path| path.to_string_lossy().contains(&group(1).to_hex()))
            .filter(|path| path.extension().is_some_and(|end| end == "seg"))
            .filter(|path| disk.contents(path).is_some_and(|bytes| bytes.len() > 8192))
            .collect();
        segments.sort();
        segments.into_iter().next()
    });
    assert!(read(&cluster).is_ok());
    // In the payload of every message that lies in the first 4 KiB.
    for place in (4096 + 1000..8192).step_by(1000) {
        assert!(disk.flip_bit(&oldest, place * 8));
    }
    until("a reader meets the damage", || {
        read(&cluster)
            .is_err_and(|error| matches!(error, ptah_raft::ReadMessagesError::Damaged(_)))
            .then_some(())
    });
    until("the replica is reported as damaged", || {
        (cluster.state_of(victim, 1) == ReplicaState::Damaged).then_some(())
    });
    let marked = || disk.files().iter().any(|path| path.ends_with("damaged"));
    until("the damage is noted", || marked().then_some(()));
    cluster.power_off(victim);
    cluster.start(victim);
    until("the replica is damaged again", || {
        (cluster.state_of(victim, 1) != ReplicaState::Opening).then_some(())
    });
    let status = cluster.replica(victim, 1).status();
    assert_eq!(status.state, ReplicaState::Damaged);
    assert!(status.trouble.unwrap().contains("found damaged while it ran"));
    // Without one of the other two there is no majority, and the damaged one does not lead either.
    assert_eq!(cluster.append(1, b"y").base_sequence, sequence(101));
    let mut leader = cluster.leader(1);
    let other = 6 - victim - leader.on;
    cluster.node_mut(other).kill_process();
    if let Ok(answer) = leader.propose(b"z") {
        let early = answer.recv_timeout(std::time::Duration::from_secs(3));
        assert!(
            !matches!(early, Ok(Ok(_))),
            "a damaged replica must not make a majority"
        );
    }
    assert!(!cluster.replica(victim, 1).leadership().ready);
}

#[test]
fn small_entries_flow_while_a_big_one_is_replicated() {
    let mut cluster = Cluster::on_files(3, roomy());
    cluster.create(1, &[1, 2, 3]);
    cluster.create(2, &[1, 2, 3]);
    cluster.append(1, b"x");
    cluster.append(2, b"x");
    let big = vec![7; 64 << 20];
    let mut leader = cluster.leader(1);
    // Both groups led by one node, so that they share its streams.
    let small_leader = cluster.leader(2);
    if small_leader.on != leader.on {
        let moving = small_leader.replica.transfer_leader(common::replica(leader.on));
        cluster.runtime(small_leader.on).block_on(moving).unwrap();
        until("both lead on one node", || {
            (cluster.leader(2).on == leader.on).then_some(())
        });
    }
    let answer = leader.propose(&big).unwrap();
    let mut small = cluster.leader(2);
    // One small entry may have been under way before the big one; three in a row were not held up by it.
    let mut during = 0;
    let appended = until("the big entry is committed", || {
        small.append(b"small").unwrap();
        during += 1;
        answer.try_recv().ok()
    });
    appended.unwrap();
    // How many depends on the machine; without fairness it is the one that waits for the big entry.
    assert!(during > 2, "only {during} small entries were committed meanwhile");
    cluster.until_applied(1, sequence(3));
    for id in 1..=3 {
        let stored = cluster.messages(id, 1);
        assert!(stored[1].1 == big, "the big message of node {id} differs");
    }
    let again = leader.propose(b"after").unwrap();
    assert_eq!(committed(&again).unwrap().base_sequence, sequence(3));
}

fn roomy() -> HostOptions {
    HostOptions {
        store: ptah_segment_log::Options {
            reserve_bytes: Some(0),
            ..ptah_segment_log::Options::default()
        },
        max_in_flight_bytes: 256 << 20,
        ..HostOptions::for_tests()
    }
}

#[test]
fn a_loop_that_ends_by_a_panic_ends_the_host_with_a_clear_error() {
    // The disk panics inside the loop that takes checkpoints.
    let options = HostOptions {
        simulation: true,
        ..HostOptions::for_tests()
    };
    let mut cluster = Cluster::new(1, options, 1);
    cluster.create(1, &[1]);
    cluster.append(1, b"x");
    let disk = cluster.node(1).disk.clone();
    disk.set_hook(Some(std::sync::Arc::new(|_, path| {
        assert!(!path.to_string_lossy().contains("ckpt"), "a defect");
    })));
    cluster.append(1, b"y");
    let tasks = cluster.node(1).up.as_ref().unwrap().tasks.clone();
    let failure = until("the panic is noticed", || tasks.failure());
    assert!(failure.task.contains("maintenance"), "{failure}");
    assert!(failure.error.contains("a defect"), "{failure}");
    disk.set_hook(None);
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_the_node_says_so() {
    let mut cluster = Cluster::new(1, HostOptions::for_tests(), 1);
    cluster.create(1, &[1]);
    cluster.append(1, b"x");
    let mut leader = cluster.leader(1);
    cluster.node(1).disk.inject(SimFault {
        op: SimOp::Sync,
        path_contains: "wal".to_owned(),
        after: 0,
        times: u64::MAX,
        error: std::io::ErrorKind::Other,
    });
    if let Ok(answer) = leader.propose(b"y") {
        assert!(committed(&answer).is_err());
    }
    let failed = cluster.host(1).failed();
    let reason = cluster.runtime(1).block_on(failed);
    assert!(reason.contains("storage has failed"), "{reason}");
    until("the replica is given up", || {
        (cluster.state_of(1, 1) == ReplicaState::Failed).then_some(())
    });
    let mut late = leader;
    assert!(late.propose(b"z").is_err());
}
