//! The leader table as a stream: all of it first, then what changes.

use futures_util::{Stream, stream};
use ptah_proto::storage::v1 as pb;
use ptah_raft::{GroupLeadership, LeaderWatch};
use ptah_service::Stopping;
use tonic::Status;

/// A watch that never fills memory: it keeps the newest of each group until the watcher reads.
pub(super) fn leaders(
    watch: LeaderWatch,
    stopping: Stopping,
) -> impl Stream<Item = Result<pb::WatchLeadersResponse, Status>> {
    stream::unfold(
        (watch, stopping, true),
        |(mut watch, stopping, full)| async move {
            let changes = tokio::select! {
                biased;
                () = stopping.cancelled() => None,
                changes = watch.next() => changes,
            }?;
            let leaders = changes.into_iter().map(leader_info).collect();
            let response = pb::WatchLeadersResponse { full, leaders };
            Some((Ok(response), (watch, stopping, false)))
        },
    )
}

fn leader_info(of: GroupLeadership) -> pb::LeaderInfo {
    pb::LeaderInfo {
        group_id: of.group.get(),
        term: of.leadership.term.0,
        leader_node_id: of.leadership.leader.map_or(0, |node| node.get()),
        ready: of.leadership.ready,
    }
}
