//! Consumer groups: made when somebody first asks for them, and then as they are.

use ptah_rpc::clients::{ConsumerGroupEnsured, EnsureConsumerGroup};
use ptah_rpc::records::{
    ConsumerGroupConfig, ConsumerGroupRecord, Counter, RecordKey, RecordKind, RecordValue,
};
use ptah_types::limits::MAX_GROUPS_PER_STATION;
use ptah_types::{Action, ConsumerGroupId, Timestamp};

use super::station::put_counter;
use super::{Change, Decider, Step, permit};
use crate::error::ControlError;
use crate::view::View;

/// Ack deadline of a group that says nothing.
const DEFAULT_ACK_DEADLINE_MS: u32 = 30_000;
/// Ack deadlines that make sense: shorter ones would end while a message travels, longer ones than a week
/// hide dead consumers.
const ACK_DEADLINE_MS: std::ops::RangeInclusive<u32> = 100..=604_800_000;
/// Messages in flight of a group that says nothing.
const DEFAULT_IN_FLIGHT: u32 = 1_000;
/// Messages in flight that a partition's leader can keep track of.
const IN_FLIGHT: std::ops::RangeInclusive<u32> = 1..=65_536;

impl Decider {
    pub(super) async fn ensure_consumer_group(
        &self,
        request: &EnsureConsumerGroup,
    ) -> Result<ConsumerGroupEnsured, ControlError> {
        let request = EnsureConsumerGroup {
            config: checked(request)?,
            ..request.clone()
        };
        let now = self.now();
        let mut proposed = None;
        self.decide("make a consumer group", |view| {
            ensure(view, &request, now, &mut proposed)
        })
        .await
    }
}

pub(super) fn checked(request: &EnsureConsumerGroup) -> Result<ConsumerGroupConfig, ControlError> {
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let config = ConsumerGroupConfig {
        start: request.config.start,
        ack_deadline_ms: or(request.config.ack_deadline_ms, DEFAULT_ACK_DEADLINE_MS),
        max_in_flight: or(request.config.max_in_flight, DEFAULT_IN_FLIGHT),
    };
    let refuse = |what: &str, value: u32, range: &std::ops::RangeInclusive<u32>| {
        let why = format!(
            "consumer group `{}`: {what} of {value}; use {} to {}",
            request.group,
            range.start(),
            range.end()
        );
        Err(ControlError::Invalid(why))
    };
    if !ACK_DEADLINE_MS.contains(&config.ack_deadline_ms) {
        return refuse(
            "ack deadline in milliseconds",
            config.ack_deadline_ms,
            &ACK_DEADLINE_MS,
        );
    }
    if !IN_FLIGHT.contains(&config.max_in_flight) {
        return refuse("messages in flight", config.max_in_flight, &IN_FLIGHT);
    }
    Ok(config)
}

pub(super) fn ensure(
    view: &View,
    request: &EnsureConsumerGroup,
    now: Timestamp,
    proposed: &mut Option<ConsumerGroupId>,
) -> Result<Step<ConsumerGroupEnsured>, ControlError> {
    permit(
        view,
        &request.tenant,
        &request.principal,
        Action::Consume,
        Some(&request.station),
    )?;
    let station = view.station(&request.tenant, &request.station);
    let station =
        station.ok_or_else(|| ControlError::StationNotFound(request.station.display().to_owned()))?;
    if let Some(group) = view.consumer_group(&request.tenant, station.value.id, &request.group) {
        return Ok(Step::Done(ConsumerGroupEnsured {
            id: group.value.id,
            config: group.value.config,
            created: *proposed == Some(group.value.id),
            revision: group.revision,
        }));
    }
    let groups = view.keys_of_station(RecordKind::ConsumerGroup, &request.tenant, station.value.id);
    if groups.len() >= MAX_GROUPS_PER_STATION {
        let why = format!(
            "consumer group `{}` is not made: station `{}` has {MAX_GROUPS_PER_STATION} consumer groups, which is the \
             limit; read with one that exists (readers that keep the name of their group need one only), or use \
             another station: groups go when their station is deleted",
            request.group, station.value.name
        );
        return Err(ControlError::TooLarge(why));
    }
    let ids = view.counter(Counter::ConsumerGroup);
    let id = ConsumerGroupId::new(ids.value).map_err(|error| ControlError::Invalid(error.to_string()))?;
    *proposed = Some(id);
    let config = request.config;
    let mut change = Change::new(move |revision| ConsumerGroupEnsured {
        id,
        config,
        created: true,
        revision,
    });
    // The station must still be the one that was found: a group of a deleted station would stay for ever.
    change.require(
        RecordKey::station(&request.tenant, &station.value.name, station.value.kind),
        station.revision,
    );
    let record = ConsumerGroupRecord {
        id,
        station: station.value.id,
        name: request.group.clone(),
        config,
        created_at: Timestamp::from_millis(now.as_millis()),
    };
    let key = RecordKey::consumer_group(&request.tenant, station.value.id, &request.group);
    change.put(key, 0, RecordValue::ConsumerGroup(record));
    put_counter(
        &mut change,
        Counter::ConsumerGroup,
        ids.revision,
        ids.value.saturating_add(1),
    );
    Ok(Step::Commit(change))
}
