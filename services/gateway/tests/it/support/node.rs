//! A fake storage node: the partition service on top of the shared world.

use std::collections::BTreeMap;
use std::pin::Pin;

use bytes::BytesMut;
use futures_util::{Stream, StreamExt as _};
use ptah_partition::{BatchStamp, ConsumerId, GroupSpec, SequenceRange};
use ptah_proto::common::v1 as common;
use ptah_proto::storage::v1 as pb;
use ptah_proto::storage::v1::partition_service_server::PartitionService;
use ptah_service::Tasks;
use ptah_types::{ConsumerGroupId, Sequence, StartAt, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::world::{Answer, PullState, Stored, World, deliver, range};

#[derive(Clone)]
pub(crate) struct FakeNode {
    pub(crate) id: u64,
    pub(crate) world: World,
    pub(crate) tasks: Tasks,
    /// Bytes that may be under way, told in the welcome.
    pub(crate) window_bytes: u64,
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Assembly {
    number: u64,
    count: u32,
    crc: u32,
    total: usize,
    bytes: BytesMut,
}

impl FakeNode {
    /// Ends with an error when the test breaks this node's streams.
    fn breakable<T: Send + 'static>(&self, stream: impl Stream<Item = T> + Send + 'static) -> Outgoing<T> {
        let mut broken = self.world.with(|state| state.nodes[&self.id].broken.subscribe());
        broken.mark_unchanged();
        let end = async move {
            let _ = broken.changed().await;
        };
        let items = stream.map(Ok).take_until(Box::pin(end));
        let last =
            futures_util::stream::once(async { Err(Status::unavailable("stream broken by the test")) });
        Box::pin(items.chain(last))
    }

    fn check_up(&self) -> Result<(), Status> {
        let up = self.world.with(|state| state.nodes[&self.id].up);
        if up {
            Ok(())
        } else {
            Err(Status::unavailable("node is down"))
        }
    }

    async fn take_appends(
        self,
        mut requests: Streaming<pb::AppendRequest>,
        answers: mpsc::Sender<(u32, u64, oneshot::Receiver<Answer>)>,
    ) {
        use pb::append_request::Request as Said;
        let mut session = 0;
        let mut channels: BTreeMap<u32, (u64, Option<Assembly>)> = BTreeMap::new();
        let mut broken = self.world.with(|state| state.nodes[&self.id].broken.subscribe());
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                _ = broken.changed() => return,
            };
            let Ok(Some(request)) = request else { return };
            let done = match request.request.unwrap() {
                Said::Hello(hello) => {
                    session = hello.session_id;
                    continue;
                }
                Said::Open(open) => {
                    channels.insert(open.channel, (open.group_id, None));
                    continue;
                }
                Said::Batch(batch) => {
                    let (_, slot) = channels.get_mut(&batch.channel).expect("channel is open");
                    assert!(slot.is_none(), "a batch began before the one before was whole");
                    let mut bytes = BytesMut::with_capacity(batch.total_bytes as usize);
                    bytes.extend_from_slice(&batch.payload);
                    *slot = Some(Assembly {
                        number: batch.number,
                        count: batch.count,
                        crc: batch.crc32c,
                        total: batch.total_bytes as usize,
                        bytes,
                    });
                    batch.channel
                }
                Said::Fragment(fragment) => {
                    assert!(fragment.payload.len() <= 256 << 10);
                    let (_, slot) = channels.get_mut(&fragment.channel).expect("channel is open");
                    slot.as_mut()
                        .expect("a batch is under way")
                        .bytes
                        .extend_from_slice(&fragment.payload);
                    fragment.channel
                }
            };
            let (group, slot) = channels.get_mut(&done).unwrap();
            if slot
                .as_ref()
                .is_some_and(|assembly| assembly.bytes.len() < assembly.total)
            {
                continue;
            }
            let whole = slot.take().unwrap();
            let payload = whole.bytes.freeze();
            assert_eq!(ptah_partition::crc32c(&payload), whole.crc);
            let stored = Stored {
                stamp: BatchStamp {
                    base_sequence: Sequence::FIRST,
                    count: whole.count,
                    timestamp: Timestamp(0),
                    session: None,
                },
                payload,
                crc: whole.crc,
            };
            let answer = self.world.append(self.id, *group, session, whole.number, stored);
            if answers.send((done, whole.number, answer)).await.is_err() {
                return;
            }
        }
    }

    async fn take_deliver_requests(
        self,
        mut requests: Streaming<pb::DeliverRequest>,
        out: mpsc::UnboundedSender<pb::DeliverResponse>,
    ) {
        let mut pulls: BTreeMap<u64, (u64, ConsumerGroupId, Option<ConsumerId>)> = BTreeMap::new();
        let mut broken = self.world.with(|state| state.nodes[&self.id].broken.subscribe());
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                _ = broken.changed() => break,
            };
            let Ok(Some(request)) = request else { break };
            self.take_deliver_request(request, &mut pulls, &out);
        }
        for (group, consumer_group, consumer) in pulls.into_values() {
            self.world.on_group(group, |group, _| {
                if let Some(consumer) = consumer {
                    group.pulls.remove(&consumer);
                    if let Some(deliveries) = group.deliveries.get_mut(&consumer_group) {
                        deliveries.release(consumer);
                    }
                }
            });
        }
    }

    fn take_deliver_request(
        &self,
        request: pb::DeliverRequest,
        pulls: &mut BTreeMap<u64, (u64, ConsumerGroupId, Option<ConsumerId>)>,
        out: &mpsc::UnboundedSender<pb::DeliverResponse>,
    ) {
        use pb::deliver_request::Request as Said;
        match request.request.unwrap() {
            Said::Hello(_) => {
                let welcome = pb::DeliverWelcome { wire_version: 1 };
                drop(out.send(deliver(pb::deliver_response::Response::Welcome(welcome))));
            }
            Said::Open(open) => {
                let group = open.group.unwrap();
                let consumer_group = ConsumerGroupId::new(group.consumer_group_id).unwrap();
                let pull = PullState {
                    pull_id: open.pull_id,
                    group: consumer_group,
                    credit_bytes: open.credit_bytes,
                    out: out.clone(),
                    idle_told: false,
                    credit_seen: open.credit_messages.into(),
                };
                let consumer = self
                    .world
                    .open_pull(self.id, group.group_id, pull, open.credit_messages);
                pulls.insert(open.pull_id, (group.group_id, consumer_group, consumer));
            }
            Said::Credit(credit) => {
                let Some((group, consumer_group, Some(consumer))) = pulls.get(&credit.pull_id).copied()
                else {
                    return;
                };
                self.world.on_group(group, |group, _| {
                    if let Some(pull) = group.pulls.get_mut(&consumer) {
                        pull.credit_bytes += credit.bytes;
                        pull.credit_seen += u64::from(credit.messages);
                        group
                            .deliveries
                            .get_mut(&consumer_group)
                            .unwrap()
                            .add_credit(consumer, credit.messages);
                    }
                });
            }
            Said::Ack(ack) => {
                let Some((group, consumer_group, _)) = pulls.get(&ack.pull_id).copied() else {
                    return;
                };
                let ranges: Vec<_> = ack.ranges.iter().map(|r| range(r.first, r.last)).collect();
                self.world.on_group(group, |group, now| {
                    if group.leader == self.id
                        && group.ack(consumer_group, &ranges, now)
                        && ack.confirm_id != 0
                    {
                        let acked = pb::DeliverAcked {
                            pull_id: ack.pull_id,
                            confirm_id: ack.confirm_id,
                            error: None,
                        };
                        drop(out.send(deliver(pb::deliver_response::Response::Acked(acked))));
                    }
                });
            }
            Said::Close(close) => {
                let Some((group, consumer_group, Some(consumer))) = pulls.get(&close.pull_id).copied() else {
                    return;
                };
                self.world.on_group(group, |group, _| {
                    if group.pulls.remove(&consumer).is_some() {
                        let deliveries = group.deliveries.get_mut(&consumer_group).unwrap();
                        for unsent in close.unsent {
                            deliveries.recall(consumer, range(unsent.first, unsent.last));
                        }
                        deliveries.detach(consumer);
                    }
                });
                pulls.entry(close.pull_id).and_modify(|pull| pull.2 = None);
                let closed = pb::DeliverClosed {
                    pull_id: close.pull_id,
                    error: None,
                };
                drop(out.send(deliver(pb::deliver_response::Response::Closed(closed))));
            }
        }
    }

    fn leaders(&self) -> Vec<pb::LeaderInfo> {
        self.world.with(|state| {
            let info = |(group, known): (&u64, &super::world::Group)| pb::LeaderInfo {
                group_id: *group,
                term: known.term,
                leader_node_id: known.leader,
                ready: known.leader == self.id,
            };
            state.groups.iter().map(info).collect()
        })
    }
}

#[tonic::async_trait]
impl PartitionService for FakeNode {
    type AppendStream = Outgoing<pb::AppendResponse>;
    type DeliverStream = Outgoing<pb::DeliverResponse>;
    type FetchStream = Outgoing<pb::FetchResponse>;
    type WatchLeadersStream = Outgoing<pb::WatchLeadersResponse>;

    async fn append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        self.check_up()?;
        let (answers, answered) = mpsc::channel(1_024);
        self.tasks.spawn(
            "appends",
            self.clone().take_appends(request.into_inner(), answers),
        );
        let welcome = pb::AppendResponse {
            welcome: Some(pb::AppendWelcome {
                wire_version: 1,
                window_bytes: self.window_bytes,
            }),
            results: Vec::new(),
        };
        let results = ReceiverStream::new(answered).then(|(channel, number, answer)| async move {
            let outcome = match answer.await {
                Ok(Ok(stored)) => pb::append_result::Outcome::Stored(stored),
                Ok(Err(refused)) => pb::append_result::Outcome::Refused(refused),
                // Never answered: the stream is about to break.
                Err(_) => std::future::pending().await,
            };
            pb::AppendResponse {
                welcome: None,
                results: vec![pb::AppendResult {
                    channel,
                    number,
                    outcome: Some(outcome),
                }],
            }
        });
        let all = futures_util::stream::once(async move { welcome }).chain(results);
        Ok(Response::new(self.breakable(all)))
    }

    async fn deliver(
        &self,
        request: Request<Streaming<pb::DeliverRequest>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        self.check_up()?;
        let (out, events) = mpsc::unbounded_channel();
        self.tasks.spawn(
            "delivers",
            self.clone().take_deliver_requests(request.into_inner(), out),
        );
        Ok(Response::new(
            self.breakable(UnboundedReceiverStream::new(events)),
        ))
    }

    async fn ensure_group(
        &self,
        request: Request<pb::EnsureGroupRequest>,
    ) -> Result<Response<pb::EnsureGroupResponse>, Status> {
        self.check_up()?;
        let request = request.into_inner();
        let group = request.group.unwrap();
        let config = request.config.unwrap();
        let leader = self.world.with(|state| state.groups[&group.group_id].leader);
        if leader != self.id {
            return Err(
                ptah_rpc::RpcError::new(ptah_types::ErrorKind::NotLeader, "another node leads").into(),
            );
        }
        let spec = GroupSpec {
            name: request.name.parse().unwrap(),
            start: if config.start_at == common::StartAt::End as i32 {
                StartAt::End
            } else {
                StartAt::First
            },
            ack_deadline_ms: config.ack_deadline_ms.into(),
            max_in_flight: config.max_in_flight,
        };
        let id = ConsumerGroupId::new(group.consumer_group_id).unwrap();
        self.world
            .on_group(group.group_id, |group, now| group.ensure(id, spec, now));
        Ok(Response::new(pb::EnsureGroupResponse {}))
    }

    async fn ack_messages(
        &self,
        request: Request<pb::AckMessagesRequest>,
    ) -> Result<Response<pb::AckMessagesResponse>, Status> {
        self.check_up()?;
        let request = request.into_inner();
        let group = request.group.unwrap();
        let id = ConsumerGroupId::new(group.consumer_group_id).unwrap();
        let ranges: Vec<SequenceRange> = request.ranges.iter().map(|r| range(r.first, r.last)).collect();
        self.world.on_group(group.group_id, |group, now| {
            group.ack(id, &ranges, now);
        });
        Ok(Response::new(pb::AckMessagesResponse {}))
    }

    async fn fetch(&self, request: Request<pb::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        self.check_up()?;
        let request = request.into_inner();
        let responses = self.world.with(|state| {
            let group = &state.groups[&request.group_id];
            let (first, next) = (
                group.partition.first_sequence().get(),
                group.partition.next_sequence().get(),
            );
            let mut responses: Vec<_> = group
                .log
                .iter()
                .filter(|stored| {
                    stored.stamp.base_sequence.get() + u64::from(stored.stamp.count) > request.from_sequence
                })
                .map(|stored| pb::FetchResponse {
                    base_sequence: stored.stamp.base_sequence.get(),
                    count: stored.stamp.count,
                    timestamp_ns: stored.stamp.timestamp.0,
                    crc32c: stored.crc,
                    payload: stored.payload.clone(),
                    total_bytes: stored.payload.len() as u32,
                    offset: 0,
                    first_sequence: first,
                    next_sequence: next,
                })
                .collect();
            responses.push(pb::FetchResponse {
                first_sequence: first,
                next_sequence: next,
                ..pb::FetchResponse::default()
            });
            responses
        });
        Ok(Response::new(Box::pin(futures_util::stream::iter(
            responses.into_iter().map(Ok),
        ))))
    }

    async fn describe_partitions(
        &self,
        request: Request<pb::DescribePartitionsRequest>,
    ) -> Result<Response<pb::DescribePartitionsResponse>, Status> {
        self.check_up()?;
        let groups = request.into_inner().group_ids;
        let partitions = self.world.with(|state| {
            let led = groups
                .iter()
                .filter(|group| state.groups.get(group).is_some_and(|g| g.leader == self.id));
            led.map(|group| pb::PartitionDescription {
                group_id: *group,
                first_sequence: state.groups[group].partition.first_sequence().get(),
                next_sequence: state.groups[group].partition.next_sequence().get(),
                groups: Vec::new(),
            })
            .collect()
        });
        Ok(Response::new(pb::DescribePartitionsResponse { partitions }))
    }

    async fn watch_leaders(
        &self,
        _request: Request<pb::WatchLeadersRequest>,
    ) -> Result<Response<Self::WatchLeadersStream>, Status> {
        self.check_up()?;
        let mut changes = self.world.changes.subscribe();
        changes.mark_changed();
        let node = self.clone();
        let table =
            futures_util::stream::unfold((changes, node, true), |(mut changes, node, full)| async move {
                changes.changed().await.ok()?;
                let response = pb::WatchLeadersResponse {
                    full,
                    leaders: node.leaders(),
                };
                Some((response, (changes, node, false)))
            });
        Ok(Response::new(self.breakable(table)))
    }
}
