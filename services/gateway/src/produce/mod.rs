//! Produce: from messages of a client to one submission per partition.
//!
//! Invariants: messages of one call that go to one partition keep their order; every message gets one result; a message
//! that is refused here does not hold up the others.
//! Not here: storing ([`crate::append`]), the wire ([`crate::grpc`]).

pub mod choose;
mod message;
mod replies;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ptah_partition::Door;
use ptah_rpc::BudgetPermit;
use ptah_types::limits::{MAX_BATCH_MESSAGES, MAX_MESSAGE_META_BYTES};
use ptah_types::{Action, PartitionNumber, Principal, StationName, TenantName, authorize};
use tokio::time::Instant;

use crate::append::{Appends, PartitionAppender};
use crate::catalog::{Catalog, Station};
use crate::error::GatewayError;
use crate::metrics::ProduceMetrics;

pub use message::{NewMessage, Origin, Run, Submission, take_runs};
pub use replies::{InFlightLimit, ProduceOutcome, ProduceResult, Replies, StoredRun};

/// Most bytes of a message id.
const MAX_MESSAGE_ID_BYTES: usize = 1_024;
/// Most bytes of a producer's name.
const MAX_PRODUCER_BYTES: usize = 128;

/// Takes messages of every door. Cheap to clone.
#[derive(Clone)]
pub struct Producer {
    catalog: Catalog,
    appends: Appends,
    metrics: ProduceMetrics,
    limit: InFlightLimit,
    /// Requests without keys take turns over the partitions.
    turn: Arc<AtomicU32>,
}

/// Messages of one call.
pub struct ProduceCall {
    producer: Producer,
    station: Arc<Station>,
    origin: Arc<Origin>,
    replies: Arc<Replies>,
    /// Appenders used before, by partition.
    appenders: BTreeMap<PartitionNumber, Arc<PartitionAppender>>,
    /// Changes of the catalog that the station was looked up at.
    looked_up: u64,
    /// The station is not there any more.
    gone: Option<GatewayError>,
    next_number: u64,
}

/// Messages of one request, sorted by partition.
struct Sorting {
    submissions: BTreeMap<PartitionNumber, Submission>,
    /// Partition of messages without key, chosen once.
    keyless: Option<PartitionNumber>,
}

impl Producer {
    /// A producer.
    pub fn new(catalog: Catalog, appends: Appends, metrics: ProduceMetrics, limit: InFlightLimit) -> Self {
        Self {
            catalog,
            appends,
            metrics,
            limit,
            turn: Arc::default(),
        }
    }

    /// How much one call may have in flight.
    pub fn limit(&self) -> InFlightLimit {
        self.limit
    }

    /// Opens a call: the station is there and the caller may write to it.
    pub async fn open(
        &self,
        principal: &Principal,
        tenant: &TenantName,
        station: &StationName,
        producer: &str,
        door: Door,
    ) -> Result<ProduceCall, GatewayError> {
        authorize(principal, Action::Produce, Some(station))?;
        if producer.len() > MAX_PRODUCER_BYTES {
            return Err(GatewayError::TooMany {
                what: "the producer's name in bytes",
                given: producer.len() as u64,
                limit: MAX_PRODUCER_BYTES as u64,
            });
        }
        let looked_up = self.catalog.position().changes;
        let station = self.catalog.station_soon(tenant, station).await?;
        let origin = Origin {
            subject: station.record.name.display().into(),
            producer: Some(producer).filter(|name| !name.is_empty()).map(Into::into),
            door,
        };
        Ok(ProduceCall {
            producer: self.clone(),
            station,
            origin: Arc::new(origin),
            replies: Replies::new(),
            appenders: BTreeMap::new(),
            looked_up,
            gone: None,
            next_number: 0,
        })
    }
}

impl ProduceCall {
    /// The station.
    pub fn station(&self) -> &Station {
        &self.station
    }

    /// Where results come.
    pub fn replies(&self) -> &Arc<Replies> {
        &self.replies
    }

    /// Takes a request of messages, when there is room for them; each of them will have a result. An error is about the
    /// whole call.
    pub async fn submit(
        &mut self,
        messages: Vec<NewMessage>,
        permit: Option<BudgetPermit>,
    ) -> Result<(), GatewayError> {
        if messages.len() > MAX_BATCH_MESSAGES {
            return Err(GatewayError::TooMany {
                what: "the number of messages of a request",
                given: messages.len() as u64,
                limit: MAX_BATCH_MESSAGES as u64,
            });
        }
        let bytes = messages.iter().map(NewMessage::encoded_bytes).sum::<usize>() as u64;
        self.replies
            .admit(messages.len() as u64, bytes, self.producer.limit)
            .await;
        self.refresh();
        self.producer.metrics.messages.inc_by(messages.len() as u64);
        self.producer.metrics.bytes.inc_by(bytes);
        let permit = permit.map(Arc::new);
        let mut sorting = Sorting {
            submissions: BTreeMap::new(),
            keyless: None,
        };
        for message in messages {
            let number = self.next_number;
            self.next_number += 1;
            match self.choose(&message, &mut sorting) {
                Ok(partition) => {
                    let submission = sorting.submissions.entry(partition).or_insert_with(|| {
                        let deadline = Instant::now() + self.producer.appends.deadline();
                        let (origin, replies) = (Arc::clone(&self.origin), Arc::clone(&self.replies));
                        Submission::new(origin, replies, permit.clone(), deadline)
                    });
                    submission.push(number, message);
                }
                Err(error) => self.refuse(
                    [Run {
                        first: number,
                        count: 1,
                    }],
                    error,
                ),
            }
        }
        for (partition, submission) in sorting.submissions {
            self.hand_over(partition, submission);
        }
        Ok(())
    }

    /// A station that was made anew under the same name is another station.
    fn refresh(&mut self) {
        let changes = self.producer.catalog.position().changes;
        if changes == self.looked_up {
            return;
        }
        self.looked_up = changes;
        let found = self
            .producer
            .catalog
            .station(&self.station.tenant, &self.station.record.name);
        self.gone = found.as_ref().err().cloned();
        if let Ok(station) = found {
            if station.record.id != self.station.record.id {
                self.appenders.clear();
            }
            self.station = station;
        }
    }

    fn choose(&self, message: &NewMessage, sorting: &mut Sorting) -> Result<PartitionNumber, GatewayError> {
        if let Some(gone) = &self.gone {
            return Err(gone.clone());
        }
        let station = &self.station;
        let limit = station.record.max_message_bytes;
        if message.payload.len() as u64 > limit {
            return Err(GatewayError::PayloadTooLarge {
                station: station.record.name.display().to_owned(),
                bytes: message.payload.len() as u64,
                limit,
            });
        }
        let meta = message.meta_bytes();
        if meta > MAX_MESSAGE_META_BYTES {
            return Err(GatewayError::MetaTooLarge {
                bytes: meta,
                limit: MAX_MESSAGE_META_BYTES,
            });
        }
        if message.message_id.len() > MAX_MESSAGE_ID_BYTES {
            return Err(GatewayError::TooMany {
                what: "the message id in bytes",
                given: message.message_id.len() as u64,
                limit: MAX_MESSAGE_ID_BYTES as u64,
            });
        }
        if message.partition != 0 {
            return station
                .partition(message.partition)
                .ok_or_else(|| GatewayError::PartitionNotFound {
                    station: station.record.name.display().to_owned(),
                    partition: message.partition,
                    partitions: station.partitions.get(),
                });
        }
        Ok(match &message.key {
            Some(key) => choose::partition_of_key(key, station.partitions),
            None => *sorting.keyless.get_or_insert_with(|| {
                let turn = self.producer.turn.fetch_add(1, Ordering::Relaxed);
                choose::partition_of_turn(turn, station.partitions)
            }),
        })
    }

    fn hand_over(&mut self, partition: PartitionNumber, submission: Submission) {
        let known = self
            .appenders
            .get(&partition)
            .filter(|appender| !appender.is_retired())
            .cloned();
        let appender = match known.map_or_else(|| self.producer.appends.of(&self.station, partition), Ok) {
            Ok(appender) => appender,
            Err(error) => return self.refuse(submission.runs, error),
        };
        appender.submit(submission);
        self.appenders.insert(partition, appender);
    }

    fn refuse(&self, runs: impl IntoIterator<Item = Run>, error: GatewayError) {
        self.producer.metrics.refused.inc();
        self.replies
            .complete(runs, &ProduceOutcome::Failed(Arc::new(error)));
    }
}
