//! `ptah consume`: the messages of a group to stdout, acknowledged after they are written.
//!
//! A message is acknowledged after its line was handed to the operating system, never before, so a reader that dies
//! loses nothing: what was not acknowledged is delivered again. `--follow` connects again when the connection is lost.

mod acks;
mod record;
mod session;

use std::time::Duration;

use ptah_types::GroupName;
use tokio::time::Instant;

use self::session::{Ended, Session};
use super::station::station_name;
use crate::args::{ConsumeArgs, Global, Start};
use crate::client::{Client, ClientError, ConsumeOpening, GroupConfig};
use crate::failure::Failure;
use crate::output::Output;
use crate::signals::EndSignals;

/// First and longest pause before connecting again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Payload bytes that may be on the way.
const CREDIT_BYTES: u64 = 8 << 20;

/// Runs the command.
pub async fn run(args: ConsumeArgs, global: &Global, output: &Output) -> Result<(), Failure> {
    let station = station_name(&args.station)?;
    let group: GroupName = args
        .group
        .parse()
        .map_err(|error: ptah_types::InvalidName| Failure::usage(error.to_string()))?;
    let opening = ConsumeOpening {
        station: station.display().to_owned(),
        group: group.as_str().to_owned(),
        config: group_config(&args),
        credit_messages: args.window,
        credit_bytes: CREDIT_BYTES,
    };
    let client = Client::from_options(global).await?;
    let mut follower = Follower {
        args: &args,
        output,
        opening,
        left: args.count,
        signals: EndSignals::listen()?,
    };
    follower.run(client).await
}

/// Settings are only sent when one was asked for, so that the broker's defaults hold.
fn group_config(args: &ConsumeArgs) -> Option<GroupConfig> {
    if args.start.is_none() && args.ack_deadline.is_none() {
        return None;
    }
    Some(GroupConfig {
        starts_at_end: args.start == Some(Start::End),
        ack_deadline: args.ack_deadline,
    })
}

/// Keeps a session going over lost connections.
struct Follower<'a> {
    args: &'a ConsumeArgs,
    output: &'a Output,
    opening: ConsumeOpening,
    /// Messages still wanted.
    left: Option<u64>,
    signals: EndSignals,
}

impl Follower<'_> {
    async fn run(&mut self, mut client: Client) -> Result<(), Failure> {
        let mut lost_since: Option<Instant> = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.session(&client).await {
                Ok(()) => return Ok(()),
                Err(Broken::For(failure)) => return Err(failure),
                Err(Broken::Connection { error, was_open }) => {
                    if was_open {
                        lost_since = None;
                        pause = FIRST_PAUSE;
                    }
                    error
                }
            };
            let since = *lost_since.get_or_insert_with(Instant::now);
            if !self.args.follow || since.elapsed() > client.timeout() {
                return Err(error.into());
            }
            if since.elapsed() < pause {
                self.output.note(&format!("{}; connecting again", error.message));
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.signals.next() => return Ok(()),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            match client.another().await {
                Ok(fresh) => client = fresh,
                Err(error) if since.elapsed() > client.timeout() => return Err(error.into()),
                Err(_) => {} // Tried again above; the time is bounded by `lost_since`.
            }
        }
    }

    /// One stream, from its opening to its end.
    async fn session(&mut self, client: &Client) -> Result<(), Broken> {
        let mut opening = self.opening.clone();
        if let Some(left) = self.left {
            opening.credit_messages = opening
                .credit_messages
                .min(u32::try_from(left).unwrap_or(u32::MAX));
        }
        let stream = client
            .consume(&opening)
            .await
            .map_err(|error| Broken::of(error, false))?;
        self.compare_settings(stream.config());
        let mut session = Session::new(
            stream,
            self.output.is_json(),
            self.args.follow,
            client.timeout(),
            self.left,
        );
        session.given(opening.credit_messages);
        let ended = session.run(&mut self.signals).await;
        self.left = session.left();
        match ended {
            Ended::Done => {
                self.tell_of_others(session.with_others());
                Ok(())
            }
            Ended::Failed(failure) => Err(Broken::For(failure)),
            Ended::Lost(error) => Err(Broken::of(error, true)),
        }
    }

    /// "All is delivered" is not "all is here" when others read along, or a reader died a moment ago.
    fn tell_of_others(&self, count: u64) {
        if count > 0 {
            self.output.note(&format!(
                "note: {count} messages were delivered to other readers of group `{}` and are not acknowledged; they come \
                 again after the group's ack deadline",
                self.opening.group
            ));
        }
    }

    /// A group that exists keeps its settings; whoever asked for others should know.
    fn compare_settings(&mut self, has: &GroupConfig) {
        let Some(asked) = self.opening.config.take() else {
            return;
        };
        let differs = asked
            .ack_deadline
            .is_some_and(|deadline| has.ack_deadline != Some(deadline))
            || (self.args.start.is_some() && asked.starts_at_end != has.starts_at_end);
        if differs {
            self.output.note(&format!(
                "note: group `{}` exists and keeps its settings; --start and --ack-deadline count for new groups only",
                self.opening.group
            ));
        }
    }
}

/// Why a session ended early.
enum Broken {
    /// For good.
    For(Failure),
    /// A new connection may go on.
    Connection { error: ClientError, was_open: bool },
}

impl Broken {
    fn of(error: ClientError, was_open: bool) -> Self {
        if error.is_connection_lost || error.kind.is_retryable() {
            return Self::Connection { error, was_open };
        }
        Self::For(error.into())
    }
}
