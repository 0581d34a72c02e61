//! Deliveries: handing messages of consumer groups to gateways, and taking their acks.
//!
//! A [`GroupDelivery`] belongs to the leader of a partition and knows the leases of one consumer group. A
//! [`DeliverSession`] belongs to one gateway's stream and holds its pulls. Leases wake sessions; a session reads the
//! messages of a lease only when its stream can take them, so a gateway that reads slowly costs no memory.
//! Not here: which consumer gets which message (`ptah-partition`), the wire form (`grpc`).

mod cut;
mod fetched;
mod group;
mod outbox;
mod reading;
mod rounds;
mod session;
mod views;

pub(crate) use fetched::StoredPieces;
pub(crate) use group::{Credit, GroupDelivery};
pub(crate) use outbox::{DeliverEvent, Part};
pub(crate) use reading::is_alone;
pub(crate) use rounds::AckReply;
pub(crate) use session::{DeliverSession, PullOpening};
