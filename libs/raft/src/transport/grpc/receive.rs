//! Receiving log entries: sessions of many groups on one stream.
//!
//! Invariants: nothing that fails verification reaches openraft; a slow or broken group ends its own session and
//! never holds up the stream; answers of one session leave in order. Entries for which the disk has no room do not reach
//! openraft either: their session ends after a pause, the replica lives on and takes them when there is room again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{FutureExt, StreamExt};
use openraft::error::Fatal;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use ptah_proto::raft::v1 as pb;
use ptah_segment_log::{FRAME_HEADER_LEN, FrameKind, GroupLog};
use ptah_service::{Tasks, long_step};
use ptah_types::NodeId;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::convert::{part_from_pb, result_to_pb};
use crate::cell::Cell;
use crate::directory::Directory;
use crate::metrics::Metrics;
use crate::record::Body;
use crate::shield::Unbroken;
use crate::transport::fragments::{Assembly, decode_entries};
use crate::transport::outbox::{AppendHead, AppendOutcome, AppendPart, Route};
use crate::types::{Entry, EntryPayload, TypeConfig, log_id};

/// Requests of one session that wait for its group. Senders have fewer under way; one that has more is broken.
const SESSION_QUEUE: usize = 64;
/// Most sessions of one stream: far above the groups of a node.
const MAX_SESSIONS: usize = 65_536;
/// Pause before a session ends whose entries find no room on the disk: its sender tries again at once.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);
/// Most results in one message.
const MAX_RESULTS: usize = 256;

/// Results of one session; `None` is its end.
type Answers = BoxStream<'static, (u64, Option<AppendOutcome>)>;

/// What the reading side tells the answering side.
enum News {
    /// A session began.
    Session(Answers),
    /// A session was refused or ended by the reading side.
    Closed(u64, String),
}

/// Why the reading side ends a session.
enum End {
    /// It is told at once.
    Now(String),
    /// It is told after a pause.
    NoRoom,
}

struct Session {
    route: Route,
    cell: Arc<Cell>,
    head: Option<AppendHead>,
    assembly: Assembly,
    requests: mpsc::Sender<AppendEntriesRequest<TypeConfig>>,
}

/// One stream of entries from another node.
pub(super) struct Receiver {
    pub(super) from: NodeId,
    pub(super) directory: Arc<Directory>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tasks: Tasks,
}

impl Receiver {
    /// Reads and answers until the stream ends.
    pub(super) async fn run(
        self,
        mut requests: tonic::Streaming<pb::ReplicateRequest>,
        answers: mpsc::Sender<Result<pb::ReplicateResponse, Status>>,
    ) {
        let (tell, news) = mpsc::channel(64);
        let read = async {
            let mut sessions = BTreeMap::new();
            while let Ok(Some(message)) = requests.message().await {
                for append in message.appends {
                    let Ok(part) = part_from_pb(append) else {
                        self.metrics.bad_messages.inc();
                        return;
                    };
                    if let Some(news) = self.take(&mut sessions, part)
                        && tell.send(news).await.is_err()
                    {
                        return;
                    }
                }
            }
        };
        tokio::select! {
            () = read => {}
            () = answer(news, answers) => {}
        }
    }

    /// Takes one piece. The answer goes to the answering side.
    fn take(&self, sessions: &mut BTreeMap<u64, Session>, part: AppendPart) -> Option<News> {
        let number = part.session;
        if part.close {
            sessions.remove(&number);
            return None;
        }
        let mut opened = None;
        if let Some(route) = part.route {
            if sessions.len() >= MAX_SESSIONS {
                return Some(News::Closed(number, "too many sessions on one stream".to_owned()));
            }
            match self.open(number, route) {
                Ok((session, answers)) => {
                    sessions.insert(number, session);
                    opened = Some(News::Session(answers));
                }
                Err(why) => return Some(News::Closed(number, why)),
            }
        }
        // Pieces of a session that was ended here are still on their way.
        let session = sessions.get_mut(&number)?;
        match self.add(session, part) {
            Ok(()) => opened,
            Err(end) => {
                sessions.remove(&number);
                Some(end.news(number))
            }
        }
    }

    fn open(&self, number: u64, route: Route) -> Result<(Session, Answers), String> {
        let raft = self.directory.raft(route, self.from)?;
        let cell = self
            .directory
            .get(route.group)
            .ok_or("the group is not on this node any more")?;
        let (requests, queue) = mpsc::channel(SESSION_QUEUE);
        let answers = raft.stream_append(ReceiverStream::new(queue));
        let runtime = Handle::current();
        let answers = Unbroken::new(&self.tasks, &runtime, "end of a replication session", answers)
            .map(move |result| (number, Some(outcome(result))))
            .chain(futures_util::stream::once(std::future::ready((number, None))));
        let session = Session {
            route,
            cell,
            head: None,
            assembly: Assembly::default(),
            requests,
        };
        Ok((session, Box::pin(answers)))
    }

    fn add(&self, session: &mut Session, part: AppendPart) -> Result<(), End> {
        if let Some(head) = part.head {
            session.head = Some(head);
        }
        session
            .assembly
            .add(part.frames, part.remaining)
            .map_err(|error| self.refused(session.route, error))?;
        if part.remaining > 0 {
            return Ok(());
        }
        let bytes = std::mem::take(&mut session.assembly).finish();
        let head = session
            .head
            .take()
            .ok_or_else(|| self.refused(session.route, "the request has no head"))?;
        let (group, term) = (session.route.group, head.vote.leader_id.term);
        let entries = long_step(bytes.len(), || decode_entries(bytes, group, head.previous, term))
            .map_err(|error| self.refused(session.route, error))?;
        self.find_room(&session.cell, &entries)?;
        session.cell.wake();
        let request = AppendEntriesRequest {
            vote: head.vote,
            prev_log_id: head.previous,
            entries,
            leader_commit: head.committed,
        };
        session
            .requests
            .try_send(request)
            .map_err(|_| End::Now("the replica is too slow, or stopped".to_owned()))
    }

    /// Whether the disk has room for entries. A replica that waits for room says so.
    fn find_room(&self, cell: &Cell, entries: &[Entry]) -> Result<(), End> {
        if entries.is_empty() {
            return Ok(());
        }
        let has_room = cell.with_running(|running| has_room(&running.log, entries));
        if has_room.unwrap_or(true) {
            cell.waits_for(None);
            return Ok(());
        }
        cell.waits_for(Some("the disk of this node is full; free space on it".to_owned()));
        self.metrics.entries_without_room.inc_by(entries.len() as u64);
        Err(End::NoRoom)
    }

    /// Entries that fail verification: reported, never written.
    fn refused(&self, route: Route, why: impl ToString) -> End {
        let why = why.to_string();
        self.metrics.bad_entries.inc();
        tracing::warn!(from = %self.from, group = %route.group.to_hex(), %why, "entries were refused");
        End::Now(why)
    }
}

impl End {
    fn news(self, session: u64) -> News {
        match self {
            Self::Now(why) => News::Closed(session, why),
            Self::NoRoom => News::Session(Box::pin(futures_util::stream::once(async move {
                tokio::time::sleep(NO_ROOM_PAUSE).await;
                let why = "the disk of the node is full".to_owned();
                (session, Some(AppendOutcome::Closed(why)))
            }))),
        }
    }
}

/// Whether the disk has room for entries, by what each kind may take of it. A new leader also sends entries that are
/// here already; they take nothing.
fn has_room(log: &GroupLog, entries: &[Entry]) -> bool {
    let (mut batches, mut commands) = (0, 0);
    for entry in entries {
        let id = log_id(&entry.log_id);
        let EntryPayload::Normal(record) = &entry.payload else {
            continue;
        };
        if record.payload.is_empty() || log.log_id_at(id.index) == Some(id) {
            continue;
        }
        let bytes = (FRAME_HEADER_LEN + record.payload.len()) as u64;
        match record.body {
            Body::Batch { .. } => batches += bytes,
            Body::Commands | Body::Void(_) => commands += bytes,
        }
    }
    [(FrameKind::Batch, batches), (FrameKind::Command, commands)]
        .into_iter()
        .all(|(kind, bytes)| bytes == 0 || log.has_room(kind, bytes))
}

/// Collects results of all sessions into messages.
async fn answer(
    mut news: mpsc::Receiver<News>,
    answers: mpsc::Sender<Result<pb::ReplicateResponse, Status>>,
) {
    let mut all: SelectAll<Answers> = SelectAll::new();
    loop {
        let mut results = Vec::new();
        tokio::select! {
            told = news.recv() => match told {
                None => return,
                Some(News::Session(session)) => {
                    all.push(session);
                    continue;
                }
                Some(News::Closed(session, why)) => {
                    results.push(result_to_pb(session, AppendOutcome::Closed(why)));
                }
            },
            Some((session, answer)) = all.next(), if !all.is_empty() => {
                results.extend(answer.map(|outcome| result_to_pb(session, outcome)));
                while results.len() < MAX_RESULTS {
                    let Some(Some((session, answer))) = all.next().now_or_never() else { break };
                    results.extend(answer.map(|outcome| result_to_pb(session, outcome)));
                }
            }
        }
        if results.is_empty() {
            continue;
        }
        let message = pb::ReplicateResponse {
            welcome: None,
            results,
        };
        if answers.send(Ok(message)).await.is_err() {
            return;
        }
    }
}

fn outcome(result: Result<StreamAppendResult<TypeConfig>, Fatal<TypeConfig>>) -> AppendOutcome {
    match result {
        Ok(result) => append_outcome(result),
        Err(_) => AppendOutcome::Closed("the replica stopped".to_owned()),
    }
}

pub(super) fn append_outcome(result: StreamAppendResult<TypeConfig>) -> AppendOutcome {
    match result {
        Ok(flushed) => AppendOutcome::Flushed(flushed.as_ref().map(log_id)),
        Err(StreamAppendError::Conflict(id)) => AppendOutcome::Conflict(log_id(&id)),
        Err(StreamAppendError::HigherVote(vote)) => AppendOutcome::HigherVote(vote),
    }
}
