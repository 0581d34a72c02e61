//! What `/status` says of the node.

use ptah_raft::ReplicaStatus;
use ptah_types::ConsumerGroupId;
use serde_json::{Value, json};

use crate::leader::PartitionLeader;
use crate::node::Node;
use crate::placement::PlacementKeeper;

/// Replicas, troubles, disk and memory.
pub(crate) fn status(node: &Node, keeper: &PlacementKeeper) -> Value {
    let view = keeper.view();
    let (total_bytes, free_bytes) = node.shared.disk.seen();
    let replicas: Vec<_> = node.host.replicas().iter().map(replica).collect();
    let troubles: Vec<_> = view
        .troubles
        .iter()
        .map(|(group, trouble)| json!({ "group": group.to_hex(), "trouble": trouble }))
        .collect();
    let led = node.led();
    let set_aside: Vec<_> = led.iter().flat_map(|leader| set_aside(leader)).collect();
    json!({
        "placement": { "epoch": view.fence.epoch, "revision": view.fence.revision, "troubles": troubles },
        "disk": {
            "total_bytes": total_bytes,
            "free_bytes": free_bytes,
            "needed_bytes": node.shared.disk.needed_bytes(),
            "refuses_messages": node.shared.disk.is_full(),
        },
        "append_bytes_held": node.append_budget.held_bytes(),
        "partitions_led": led.len(),
        "set_aside": set_aside,
        "replicas": replicas,
    })
}

/// What a led partition keeps from its consumer groups because it cannot be read.
fn set_aside(leader: &PartitionLeader) -> Vec<Value> {
    let partition = leader.core().replica.key().to_string();
    let tell = |(group, messages): (ConsumerGroupId, u64)| json!({ "partition": partition, "consumer_group": group.get(), "messages": messages });
    leader.set_aside().into_iter().map(tell).collect()
}

fn replica(status: &ReplicaStatus) -> Value {
    json!({
        "group": status.group.to_hex(),
        "partition": status.key.as_ref().map(ToString::to_string),
        "replica": status.replica.map(|replica| replica.get()),
        "state": format!("{:?}", status.state).to_lowercase(),
        "trouble": status.trouble,
        "term": status.term.0,
        "leader_node": status.leader_node.map(|node| node.get()),
        "leads": status.ready,
        "applied_index": status.applied.0,
        "next_sequence": status.next_sequence.get(),
        "initialized": status.initialized,
        "voters": status.voters.iter().map(|(replica, node)| json!([replica.get(), node.get()])).collect::<Vec<_>>(),
        "restarts": status.restarts,
    })
}
