//! What both databases have in common: rows as tuples, numbers, positions in history, new identities.

use bytes::Bytes;
use ptah_service::Random;

use super::{History, Key, StoreError, StoreInfo, Stored, Transaction};

/// Numbers to skip when it is not known how many were given out after the backup.
pub(super) const UNKNOWN_JUMP: u64 = 1 << 20;

/// `kind, tenant, record_key, revision, created_revision, deleted, value`: the columns of `record` and `change`.
pub(super) type RecordRow = (i64, String, String, i64, i64, bool, Vec<u8>);

/// To SQL, which knows signed numbers only. Revisions and ids never come near the limit; one that does is refused.
pub(super) fn to_sql(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::invalid(format!("number {number} is too large")))
}

/// From SQL.
pub(super) fn from_sql(column: &str, number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| StoreError::Damaged(format!("column {column} holds {number}")))
}

/// A record from its columns.
pub(super) fn stored(row: RecordRow) -> Result<Stored, StoreError> {
    let (kind, tenant, key, revision, created_revision, deleted, value) = row;
    Ok(Stored {
        key: Key {
            kind: u32::try_from(kind)
                .map_err(|_| StoreError::Damaged(format!("column kind holds {kind}")))?,
            tenant,
            key,
        },
        revision: from_sql("revision", revision)?,
        created_revision: from_sql("created_revision", created_revision)?,
        deleted,
        value: Bytes::from(value),
    })
}

/// Refuses positions that history does not reach.
pub(super) fn check_reach(after: u64, info: &StoreInfo) -> Result<(), StoreError> {
    if after < info.compaction_floor {
        return Err(StoreError::Compacted {
            after,
            floor: info.compaction_floor,
        });
    }
    if after > info.revision {
        return Err(StoreError::Ahead {
            after,
            newest: info.revision,
        });
    }
    Ok(())
}

/// Puts a change to the others of its revision.
pub(super) fn add_change(transactions: &mut Vec<Transaction>, record: Stored) {
    match transactions.last_mut() {
        Some(last) if last.revision == record.revision => last.changes.push(record),
        _ => transactions.push(Transaction {
            revision: record.revision,
            changes: vec![record],
        }),
    }
}

/// History that ends at the newest revision.
pub(super) fn history(info: &StoreInfo, transactions: Vec<Transaction>) -> History {
    History {
        transactions,
        complete_to: info.revision,
        incarnation: info.incarnation,
    }
}

/// A random number that is not 0 and fits a signed column.
pub(super) fn new_incarnation(random: &dyn Random) -> u64 {
    (random.next_u64() >> 1).max(1)
}
