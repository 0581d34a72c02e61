//! Pure state machine of one partition: commands in, effects out.
//!
//! What lives here:
//! - the payload of a message batch ([`BatchBuilder`], [`BatchView`]);
//! - the replicated state ([`Partition`]) and the commands that change it ([`Command`]);
//! - what only the leader keeps, and builds again after each election: [`Sequencer`] (which append gets which
//!   sequences) and [`Deliveries`] (which consumer holds which message).
//!
//! What must always hold: the same log gives the same state on every replica. Nothing here reads a clock, draws a
//! random number, waits or touches a file; time comes in as an argument. No input makes it panic.

mod applied;
pub mod batch;
mod checkpoint;
mod codec;
mod command;
mod deliveries;
mod group;
mod partition;
mod ranges;
mod sequencer;
mod sessions;
mod sizes;
mod stamp;

pub use applied::{Applied, Broken, Disagreement, Refusal};
pub use batch::{
    Batch, BatchBuilder, BatchError, BatchHead, BatchView, BuildError, Door, Headers, MessageParts,
    MessageView, crc32c,
};
pub use checkpoint::CheckpointError;
pub use codec::Malformed;
pub use command::{
    Command, CommandError, DeliveryCount, EncodeError, GroupSpec, MAX_COMMAND_RANGES, MAX_ENTRY_COMMANDS,
    decode_commands, encode_commands,
};
pub use deliveries::{
    AckOutcome, Confirmed, ConsumerId, Deliveries, Lease, MAX_CONSUMERS, Replicate, Round, TooManyConsumers,
    Urgency,
};
pub use group::{ConsumerGroup, MAX_ACK_DEADLINE_MS, MAX_ACK_RANGES, MAX_IN_FLIGHT};
pub use partition::{MAX_GROUPS, Partition};
pub use ranges::{RangeSet, SequenceRange};
pub use sequencer::{AppendHead, AppendRefusal, Decision, MAX_IN_FLIGHT_APPENDS, Sequencer};
pub use sessions::{MAX_SESSIONS, SESSION_WINDOW};
pub use stamp::{Appended, BatchStamp, SessionNumber};
