//! Between messages and the store's values. A record's value is kept as the encoded message, so that a field that a
//! newer peer knows survives; it is read once on the way in, so that nonsense is never stored.

use bytes::Bytes;
use prost::Message;
use ptah_proto::metadata::v1 as pb;
use ptah_rpc::ConversionError;
use ptah_rpc::records::{RecordKey, RecordValue};

use crate::store::{
    Commit, Key, MAX_KEY_BYTES, MAX_PAGE_RECORDS, Page, Precondition, Query, StoreError, Stored, Write,
};
use crate::watch::{WatchEvent, WatchFrom};

const DEFAULT_PAGE_RECORDS: usize = 500;
/// Stands between tenant and key in page tokens; tenants do not have it.
const TOKEN_SEPARATOR: char = '/';

pub(super) fn key(key: Option<pb::RecordKey>) -> Result<Key, ConversionError> {
    let wire = key.ok_or(ConversionError::missing("key"))?;
    let kind = kind(wire.kind)?;
    let key = RecordKey::try_from(wire)?;
    Ok(Key {
        kind,
        tenant: key.tenant.as_str().to_owned(),
        key: key.key,
    })
}

fn kind(number: i32) -> Result<u32, ConversionError> {
    let known = pb::RecordKind::try_from(number)
        .ok()
        .filter(|kind| *kind != pb::RecordKind::Unspecified);
    match (known, u32::try_from(number)) {
        (Some(_), Ok(kind)) => Ok(kind),
        _ => Err(ConversionError::invalid(
            "kind",
            format!("{number} is not a kind of record"),
        )),
    }
}

pub(super) fn query(request: pb::ListRecordsRequest) -> Result<Query, ConversionError> {
    if request.key_prefix.len() > MAX_KEY_BYTES {
        return Err(ConversionError::invalid("key_prefix", "is longer than keys are"));
    }
    let limit = match request.page_size as usize {
        0 => DEFAULT_PAGE_RECORDS,
        size if size <= MAX_PAGE_RECORDS => size,
        size => {
            let why = format!("{size} is more than {MAX_PAGE_RECORDS}");
            return Err(ConversionError::invalid("page_size", why));
        }
    };
    Ok(Query {
        kind: kind(request.kind)?,
        tenant: (!request.tenant.is_empty()).then_some(request.tenant),
        key_prefix: request.key_prefix,
        after: after(&request.page_token)?,
        limit,
        tombstones: request.tombstones,
    })
}

fn after(token: &str) -> Result<Option<(String, String)>, ConversionError> {
    if token.is_empty() {
        return Ok(None);
    }
    let Some((tenant, key)) = token.split_once(TOKEN_SEPARATOR) else {
        let why = "is not a token that this service gave";
        return Err(ConversionError::invalid("page_token", why));
    };
    Ok(Some((tenant.to_owned(), key.to_owned())))
}

pub(super) fn page_to_proto(page: Page) -> Result<pb::ListRecordsResponse, StoreError> {
    let last = page.records.last().filter(|_| page.more);
    let next_page_token = last.map_or_else(String::new, |last| {
        format!("{}{TOKEN_SEPARATOR}{}", last.key.tenant, last.key.key)
    });
    Ok(pb::ListRecordsResponse {
        records: records_to_proto(page.records)?,
        next_page_token,
        revision: page.revision,
        incarnation: page.incarnation,
    })
}

pub(super) fn commit(request: pb::CommitRequest) -> Result<Commit, ConversionError> {
    let mut preconditions = Vec::with_capacity(request.preconditions.len());
    for precondition in request.preconditions {
        preconditions.push(Precondition {
            key: key(precondition.key)?,
            revision: precondition.revision,
        });
    }
    let mut writes = Vec::with_capacity(request.writes.len());
    for write in request.writes {
        let key = key(write.key)?;
        let value = write.value.map(|value| encode(&key, value)).transpose()?;
        writes.push(Write { key, value });
    }
    Ok(Commit {
        preconditions,
        writes,
        lease_epoch: request.lease_epoch,
    })
}

/// The value's bytes, after a look at whether it is what the key says.
fn encode(key: &Key, value: pb::RecordValue) -> Result<Bytes, ConversionError> {
    let held = kind_of(&value).ok_or(ConversionError::missing("value"))?;
    if u32::try_from(i32::from(held)) != Ok(key.kind) {
        let why = format!("{key} cannot hold the value of a {}", held.as_str_name());
        return Err(ConversionError::invalid("value", why));
    }
    let bytes = Bytes::from(value.encode_to_vec());
    RecordValue::try_from(value)?;
    Ok(bytes)
}

fn kind_of(value: &pb::RecordValue) -> Option<pb::RecordKind> {
    use pb::record_value::Value;
    Some(match value.value.as_ref()? {
        Value::Cluster(_) => pb::RecordKind::Cluster,
        Value::Station(_) => pb::RecordKind::Station,
        Value::Placement(_) => pb::RecordKind::Placement,
        Value::ConsumerGroup(_) => pb::RecordKind::ConsumerGroup,
        Value::User(_) => pb::RecordKind::User,
        Value::Node(_) => pb::RecordKind::Node,
        Value::Counter(_) => pb::RecordKind::Counter,
    })
}

pub(super) fn watch_from(request: pb::WatchRequest) -> Result<WatchFrom, ConversionError> {
    let kinds = request.kinds.into_iter().map(kind).collect::<Result<_, _>>()?;
    Ok(WatchFrom {
        after: request.after_revision,
        incarnation: request.incarnation,
        kinds,
    })
}

pub(super) fn event_to_proto(event: WatchEvent) -> Result<pb::WatchResponse, StoreError> {
    Ok(match event {
        WatchEvent::Changes(transaction) => pb::WatchResponse {
            changes: records_to_proto(transaction.changes)?,
            revision: transaction.revision,
        },
        WatchEvent::Progress(revision) => pb::WatchResponse {
            changes: Vec::new(),
            revision,
        },
    })
}

fn records_to_proto(records: Vec<Stored>) -> Result<Vec<pb::Record>, StoreError> {
    records.into_iter().map(record_to_proto).collect()
}

pub(super) fn record_to_proto(stored: Stored) -> Result<pb::Record, StoreError> {
    let damaged = |why: String| StoreError::Damaged(format!("record {}: {why}", stored.key));
    let kind = i32::try_from(stored.key.kind).map_err(|error| damaged(error.to_string()))?;
    let value = pb::RecordValue::decode(stored.value.clone()).map_err(|error| damaged(error.to_string()))?;
    Ok(pb::Record {
        key: Some(pb::RecordKey {
            kind,
            tenant: stored.key.tenant,
            key: stored.key.key,
        }),
        revision: stored.revision,
        created_revision: stored.created_revision,
        deleted: stored.deleted,
        value: Some(value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> pb::RecordValue {
        let value = pb::record_value::Value::Counter(pb::CounterRecord { next: 3 });
        pb::RecordValue { value: Some(value) }
    }

    fn wire_key(kind: pb::RecordKind) -> pb::RecordKey {
        pb::RecordKey {
            kind: kind.into(),
            tenant: "system".to_owned(),
            key: "station".to_owned(),
        }
    }

    fn write(kind: pb::RecordKind) -> pb::CommitRequest {
        pb::CommitRequest {
            writes: vec![pb::Write {
                key: Some(wire_key(kind)),
                value: Some(counter()),
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_value_that_does_not_fit_its_key_is_refused() {
        commit(write(pb::RecordKind::Counter)).unwrap();
        let refused = commit(write(pb::RecordKind::Cluster)).unwrap_err().to_string();
        assert!(refused.contains("RECORD_KIND_COUNTER"), "{refused}");
        let nonsense = pb::RecordValue {
            value: Some(pb::record_value::Value::Station(pb::StationRecord::default())),
        };
        let request = pb::CommitRequest {
            writes: vec![pb::Write {
                key: Some(wire_key(pb::RecordKind::Station)),
                value: Some(nonsense),
            }],
            ..Default::default()
        };
        assert!(commit(request).is_err(), "a station without id and name");
    }

    #[test]
    fn missing_and_unknown_parts_are_refused() {
        assert!(key(None).is_err());
        assert!(key(Some(pb::RecordKey::default())).is_err());
        assert!(kind(8).is_err() && kind(-1).is_err() && kind(0).is_err());
        let bad = pb::ListRecordsRequest {
            kind: 2,
            page_token: "nonsense".to_owned(),
            ..Default::default()
        };
        assert!(query(bad).is_err());
        let large = pb::ListRecordsRequest {
            kind: 2,
            page_size: 1_001,
            ..Default::default()
        };
        assert!(query(large).is_err());
    }

    #[test]
    fn a_page_token_leads_behind_the_last_record() {
        let stored = Stored {
            key: key(Some(wire_key(pb::RecordKind::Counter))).unwrap(),
            revision: 1,
            created_revision: 1,
            deleted: false,
            value: Bytes::from(counter().encode_to_vec()),
        };
        let page = Page {
            records: vec![stored],
            more: true,
            revision: 1,
            incarnation: 1,
        };
        let token = page_to_proto(page).unwrap().next_page_token;
        assert_eq!(
            after(&token).unwrap(),
            Some(("system".to_owned(), "station".to_owned()))
        );
    }

    #[test]
    fn a_stored_value_that_is_no_message_is_damage() {
        let stored = Stored {
            key: key(Some(wire_key(pb::RecordKind::Counter))).unwrap(),
            revision: 1,
            created_revision: 1,
            deleted: false,
            value: Bytes::from_static(b"\xff\xff"),
        };
        assert!(matches!(record_to_proto(stored), Err(StoreError::Damaged(_))));
    }
}
