//! Keeps the mark ahead of the database while it changes.

use tracing::error;

use super::super::StoreError;
use super::mark::{Mark, MarkFile, Numbers};

/// The mark of an open database.
pub(super) struct MarkKeeper {
    file: MarkFile,
    mark: Mark,
}

impl MarkKeeper {
    /// The mark as it is on disk.
    pub(super) fn new(file: MarkFile, mark: Mark) -> Self {
        Self { file, mark }
    }

    /// Makes the mark durable before numbers above it are used, with the numbers that hold if they are not.
    pub(super) async fn raise(&mut self, before: Numbers, after: Numbers) -> Result<(), StoreError> {
        let mark = Mark {
            highest: after,
            settled: before,
            ..self.mark
        };
        self.write(mark).await.map_err(|why| {
            error!(%why, "mark of the metadata database cannot be written; commits are refused until it can");
            StoreError::Unavailable {
                action: "write the mark of the metadata database",
                why,
            }
        })
    }

    /// Makes durable that the numbers are in use, before anybody is told them. Without it a copy of the database from just
    /// before the commit would be taken for one whose commit was cut off.
    pub(super) async fn settle(&mut self, now: Numbers) {
        let mark = Mark {
            highest: now,
            settled: now,
            ..self.mark
        };
        if let Err(why) = self.write(mark).await {
            error!(%why, "mark of the metadata database cannot be written; look after the disk that it is on");
        }
    }

    async fn write(&mut self, mark: Mark) -> Result<(), String> {
        if mark == self.mark {
            return Ok(());
        }
        let file = self.file.clone();
        match tokio::task::spawn_blocking(move || file.write(&mark)).await {
            Ok(Ok(())) => {
                self.mark = mark;
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}
