//! Bounded history: the oldest part goes after every tenth of what is kept was added.

use sqlx::{PgConnection, PgPool};

use super::identity;
use super::transact::Transact;
use super::trouble::{Trouble, failed};
use crate::store::StoreInfo;
use crate::store::sql::{from_sql, to_sql};

/// Rows deleted at a time, far below what the statement timeout allows.
const PIECE: i64 = 5_000;

/// Moves the floor so that the newest `keep` changes stay. Nothing is deleted here, while the lock is held.
pub(super) struct RaiseFloor {
    pub(super) keep: u32,
}

#[tonic::async_trait]
impl Transact for RaiseFloor {
    type Output = u64;

    fn action(&self) -> &'static str {
        "drop old history"
    }

    async fn run(&self, connection: &mut PgConnection, info: StoreInfo) -> Result<u64, Trouble> {
        let select = "SELECT revision FROM change WHERE revision > $1 \
                      ORDER BY revision DESC LIMIT 1 OFFSET $2";
        let oldest: Option<i64> = sqlx::query_scalar(select)
            .bind(to_sql(info.compaction_floor)?)
            .bind(i64::from(self.keep))
            .fetch_optional(&mut *connection)
            .await
            .map_err(failed("measure history"))?;
        let Some(oldest) = oldest else {
            return Ok(info.compaction_floor);
        };
        let floor = from_sql("revision", oldest)?;
        identity::raise_floor(connection, floor).await?;
        Ok(floor)
    }
}

/// Deletes what lies at or below the floor, piece by piece. Nobody reads there: every read looks at the floor first, in
/// the same moment.
pub(super) async fn delete(pool: &PgPool, floor: u64) -> Result<(), Trouble> {
    let delete = "DELETE FROM change WHERE revision <= $1 AND revision IN \
                  (SELECT revision FROM change WHERE revision <= $1 ORDER BY revision LIMIT $2)";
    loop {
        let deleted = sqlx::query(delete)
            .bind(to_sql(floor)?)
            .bind(PIECE)
            .execute(pool)
            .await
            .map_err(failed("drop old history"))?;
        if deleted.rows_affected() == 0 {
            return Ok(());
        }
    }
}
