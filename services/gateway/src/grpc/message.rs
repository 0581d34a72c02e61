//! `ptah.api.v1.MessageService`.

use std::sync::Arc;
use std::time::Duration;

use ptah_partition::Door;
use ptah_proto::api::v1 as pb;
use ptah_proto::api::v1::message_service_server::MessageService;
use ptah_rpc::{CurrentMessage, RequestBody};
use tonic::{Request, Response, Status, Streaming};

use super::Services;
use super::consume_stream;
use super::convert::{
    group_config, message_to_proto, new_message, push_messages, ranges, result_to_proto, status,
};
use super::door::{caller, cut_of};
use super::outgoing::{self, Held, Unseen, single};
use super::produce_stream::{self, ProduceStream};
use crate::auth::SignedIn;
use crate::consume::{GroupRequest, PullLimits};
use crate::error::GatewayError;

const DEFAULT_PULL: u32 = 100;
const DEFAULT_READ: u32 = 1_000;
const MAX_MESSAGES: u32 = 10_000;
const MAX_WAIT_MS: u32 = 60_000;

pub(super) struct MessageApi(pub(super) Arc<Services>);

#[tonic::async_trait]
impl MessageService for MessageApi {
    type ProduceStreamStream = ProduceStream;
    type ConsumeStream = Unseen<pb::ConsumeResponse>;

    async fn produce(
        &self,
        request: Request<pb::ProduceRequest>,
    ) -> Result<Response<pb::ProduceResponse>, Status> {
        let caller = caller(&request)?;
        let permit = permits_of(&request).take();
        let request = request.into_inner();
        let produce = async {
            if request.messages.is_empty() {
                return Err(GatewayError::invalid(
                    "the request has no messages; send 1 to 16384",
                ));
            }
            let tenant = caller.tenant(&request.tenant)?;
            let station = request.station.parse()?;
            let producer = &self.0.producer;
            let call = producer.open(
                &caller.principal,
                &tenant,
                &station,
                &request.producer,
                Door::GRPC,
            );
            let mut call = call.await?;
            call.submit(request.messages.into_iter().map(new_message).collect(), permit)
                .await?;
            call.replies().finish();
            Ok(call.replies().all().await)
        };
        let results = produce.await.map_err(|error| status(&error))?;
        Ok(Response::new(pb::ProduceResponse {
            results: results.into_iter().map(result_to_proto).collect(),
        }))
    }

    async fn produce_stream(
        &self,
        request: Request<Streaming<pb::ProduceStreamRequest>>,
    ) -> Result<Response<ProduceStream>, Status> {
        let caller = caller(&request)?;
        let permits = permits_of(&request);
        // Read past the generated server, whose buffer would keep the size of the largest message.
        let body = request.extensions().get::<RequestBody>().cloned();
        let requests = body.unwrap_or_default().take();
        Ok(Response::new(produce_stream::serve(
            &self.0, caller, permits, requests,
        )))
    }

    async fn consume(
        &self,
        request: Request<Streaming<pb::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let (caller, cut) = (caller(&request)?, cut_of(&request));
        let held = Held::default();
        let permits = permits_of(&request);
        let requests = (permits, request.into_inner());
        let stream = consume_stream::serve(&self.0, caller, cut, held.clone(), requests);
        Ok(outgoing::stream(stream, held))
    }

    async fn pull(&self, request: Request<pb::PullRequest>) -> Result<Response<pb::PullResponse>, Status> {
        let (caller, cut) = (caller(&request)?, cut_of(&request));
        let request = request.into_inner();
        let pull = async {
            let limits = PullLimits {
                max_messages: at_most("max_messages", request.max_messages, DEFAULT_PULL, MAX_MESSAGES)?,
                wait: Duration::from_millis(at_most("wait_ms", request.wait_ms, 0, MAX_WAIT_MS)?.into()),
            };
            let group = GroupRequest {
                config: group_config(request.config)?,
                partitions: request.partitions,
                ..group_request(&caller, &request.tenant, &request.station, &request.group)?
            };
            let ready = self.0.consumer.ready(&caller.principal, &group).await?;
            self.0.consumer.pull(&ready, limits).await
        };
        let runs = pull.await.map_err(|error: GatewayError| status(&error))?;
        let mut messages = Vec::new();
        for run in &runs {
            push_messages(run, &mut messages);
        }
        let memory = runs.into_iter().map(|run| run.reservation).collect();
        let memory = self.0.consumer.budget().hand_over(memory, cut);
        Ok(single(pb::PullResponse { messages }, memory))
    }

    async fn ack(&self, request: Request<pb::AckRequest>) -> Result<Response<pb::AckResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let ack = async {
            let group = group_request(&caller, &request.tenant, &request.station, &request.group)?;
            let acks = request
                .acks
                .into_iter()
                .map(|ack| Ok((ack.partition, ranges(ack.ranges)?)));
            let acks = acks.collect::<Result<Vec<_>, GatewayError>>()?;
            self.0.consumer.ack(&caller.principal, &group, acks).await
        };
        ack.await.map_err(|error| status(&error))?;
        Ok(Response::new(pb::AckResponse {}))
    }

    async fn read(&self, request: Request<pb::ReadRequest>) -> Result<Response<pb::ReadResponse>, Status> {
        let (caller, cut) = (caller(&request)?, cut_of(&request));
        let request = request.into_inner();
        let from = request.from_sequence;
        let read = async {
            let most = at_most("max_messages", request.max_messages, DEFAULT_READ, MAX_MESSAGES)?;
            let (tenant, station) = (caller.tenant(&request.tenant)?, request.station.parse()?);
            let consumer = &self.0.consumer;
            let stored = consumer
                .read(
                    &caller.principal,
                    &tenant,
                    &station,
                    request.partition,
                    from,
                    most,
                )
                .await?;
            Ok((most, stored))
        };
        let (most, answer) = read.await.map_err(|error: GatewayError| status(&error))?;
        let (partition, stored) = (answer.partition, answer.stored);
        let mut messages = Vec::new();
        for (base, timestamp_ns, view) in &stored.batches {
            for index in 0..view.len() {
                let sequence = base + index as u64;
                if sequence >= from && messages.len() < most as usize {
                    messages.extend(message_to_proto(
                        view,
                        index,
                        partition.get(),
                        (sequence, *timestamp_ns, 0),
                    ));
                }
            }
        }
        let response = pb::ReadResponse {
            messages,
            first_sequence: stored.first_sequence,
            next_sequence: stored.next_sequence,
        };
        let memory = self.0.consumer.budget().hand_over(vec![answer.memory], cut);
        Ok(single(response, memory))
    }
}

fn permits_of<T>(request: &Request<T>) -> CurrentMessage {
    request
        .extensions()
        .get::<CurrentMessage>()
        .cloned()
        .unwrap_or_default()
}

pub(super) fn group_request(
    caller: &SignedIn,
    tenant: &str,
    station: &str,
    group: &str,
) -> Result<GroupRequest, GatewayError> {
    Ok(GroupRequest {
        tenant: caller.tenant(tenant)?,
        station: station.parse()?,
        group: group.parse()?,
        config: group_config(None)?,
        partitions: Vec::new(),
    })
}

fn at_most(what: &'static str, given: u32, default: u32, limit: u32) -> Result<u32, GatewayError> {
    if given > limit {
        let given = u64::from(given);
        return Err(GatewayError::TooMany {
            what,
            given,
            limit: limit.into(),
        });
    }
    Ok(if given == 0 { default } else { given })
}
