//! `ptah station`: make, list, show, change and delete stations.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use ptah_types::StationName;
use serde::Serialize;
use tokio::time::Instant;

use crate::args::{Global, StationArgs, StationCommand, StationCreateArgs, StationRmArgs, StationUpdateArgs};
use crate::client::{Client, NewStation, PartitionStatus, Station};
use crate::failure::Failure;
use crate::output::{Output, table, table_text};
use crate::units::{count_text, size_text};

/// How often a wait looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct Created {
    station: Station,
    created: bool,
}

#[derive(Serialize)]
struct Listed {
    stations: Vec<Station>,
}

#[derive(Serialize)]
struct Shown {
    station: Station,
    partitions: Vec<PartitionStatus>,
}

#[derive(Serialize)]
struct Updated {
    station: Station,
}

#[derive(Serialize)]
struct Deleted {
    deleted: String,
}

/// Runs the command.
pub async fn run(args: StationArgs, global: &Global, output: &Output) -> Result<(), Failure> {
    match args.command {
        StationCommand::Create(args) => create(args, global, output).await,
        StationCommand::Ls => list(global, output).await,
        StationCommand::Info { name } => show(&name, global, output).await,
        StationCommand::Update(args) => update(args, global, output).await,
        StationCommand::Rm(args) => delete(args, global, output).await,
    }
}

/// Reads a station's name before anything is sent, so that a wrong one is told even when no server is there.
pub(crate) fn station_name(text: &str) -> Result<StationName, Failure> {
    text.parse()
        .map_err(|error: ptah_types::InvalidName| Failure::usage(error.to_string()))
}

async fn create(args: StationCreateArgs, global: &Global, output: &Output) -> Result<(), Failure> {
    let name = station_name(&args.name)?;
    let wanted = NewStation {
        name: name.display().to_owned(),
        partitions: args.partitions,
        replicas: args.replicas,
        max_message_bytes: args.max_message_size,
    };
    check_settings(&wanted)?;
    let client = Client::from_options(global).await?;
    let (station, created) = client.create_station(&wanted).await?;
    output.result(&Created { station, created }, created_text)
}

/// Zero means "the default" to the server, but nobody types 0 partitions to get 1.
fn check_settings(wanted: &NewStation) -> Result<(), Failure> {
    use ptah_types::limits::{MAX_MESSAGE_BYTES, MAX_PARTITIONS};
    if !(1..=MAX_PARTITIONS).contains(&wanted.partitions) {
        return Err(Failure::usage(format!(
            "--partitions must be 1 to {MAX_PARTITIONS}, not {}",
            wanted.partitions
        )));
    }
    ptah_types::ReplicaCount::new(wanted.replicas)
        .map_err(|_| Failure::usage(format!("--replicas must be 1, 3 or 5, not {}", wanted.replicas)))?;
    if !(1..=MAX_MESSAGE_BYTES).contains(&wanted.max_message_bytes) {
        return Err(Failure::usage(format!(
            "--max-message-size must be 1 byte to {}, not {}",
            size_text(MAX_MESSAGE_BYTES),
            size_text(wanted.max_message_bytes)
        )));
    }
    Ok(())
}

fn created_text(result: &Created) -> String {
    let Created { station, created } = result;
    let what = if *created {
        "created station"
    } else {
        "there already: station"
    };
    format!(
        "{what} {} ({}, {}, messages up to {})",
        station.name,
        counted(u64::from(station.partitions), "partition"),
        counted(u64::from(station.replicas), "replica"),
        size_text(station.max_message_bytes)
    )
}

async fn list(global: &Global, output: &Output) -> Result<(), Failure> {
    let client = Client::from_options(global).await?;
    let stations = client.list_stations().await?;
    output.result(&Listed { stations }, |listed| {
        let mut table = table(["NAME", "PARTITIONS", "REPLICAS", "STORAGE", "MAX MESSAGE"]);
        for station in &listed.stations {
            table.add_row([
                station.name.clone(),
                station.partitions.to_string(),
                station.replicas.to_string(),
                station.storage.to_owned(),
                size_text(station.max_message_bytes),
            ]);
        }
        table_text(&table)
    })
}

async fn show(name: &str, global: &Global, output: &Output) -> Result<(), Failure> {
    let name = station_name(name)?;
    let client = Client::from_options(global).await?;
    let (station, partitions) = client.station(name.display()).await?;
    output.result(&Shown { station, partitions }, shown_text)
}

fn shown_text(shown: &Shown) -> String {
    let station = &shown.station;
    let messages: u64 = shown.partitions.iter().map(PartitionStatus::messages).sum();
    let mut text = format!(
        "station {} (id {}, {}, storage {}, {}, messages up to {}): {}\n",
        station.name,
        station.id,
        station.kind,
        station.storage,
        counted(u64::from(station.replicas), "replica"),
        size_text(station.max_message_bytes),
        counted(messages, "message"),
    );
    let mut table = table([
        "PARTITION",
        "LEADER",
        "NODES",
        "FIRST",
        "NEXT",
        "MESSAGES",
        "STATE",
    ]);
    for partition in &shown.partitions {
        let nodes: Vec<_> = partition.replica_node_ids.iter().map(u64::to_string).collect();
        let is_known = partition.next_sequence > 0;
        let known = |number: u64| {
            if is_known {
                number.to_string()
            } else {
                "?".to_owned()
            }
        };
        table.add_row([
            partition.partition.to_string(),
            if partition.leader_node_id == 0 {
                "none".to_owned()
            } else {
                partition.leader_node_id.to_string()
            },
            nodes.join(","),
            known(partition.first_sequence),
            known(partition.next_sequence),
            known(partition.messages()),
            state_text(partition),
        ]);
    }
    text.push_str(&table_text(&table));
    text
}

fn state_text(partition: &PartitionStatus) -> String {
    match (partition.trouble.as_str(), partition.change.as_str()) {
        ("", "") => "well".to_owned(),
        (trouble, "") => trouble.to_owned(),
        ("", change) => change.to_owned(),
        (trouble, change) => format!("{trouble}; {change}"),
    }
}

async fn update(args: StationUpdateArgs, global: &Global, output: &Output) -> Result<(), Failure> {
    let name = station_name(&args.name)?;
    ptah_types::ReplicaCount::new(args.replicas)
        .map_err(|_| Failure::usage(format!("--replicas must be 1, 3 or 5, not {}", args.replicas)))?;
    let client = Client::from_options(global).await?;
    let station = client.update_station(name.display(), args.replicas).await?;
    if args.wait {
        wait_for_replicas(&client, name.display(), args.wait_timeout, output).await?;
    }
    output.result(&Updated { station }, |updated| {
        let station = &updated.station;
        let replicas = counted(u64::from(station.replicas), "replica");
        format!(
            "station {} is to have {replicas} of every partition",
            station.name
        )
    })
}

/// Waits until no partition changes any more, and tells how far it is whenever that is news.
async fn wait_for_replicas(
    client: &Client,
    name: &str,
    patience: Duration,
    output: &Output,
) -> Result<(), Failure> {
    let deadline = Instant::now() + patience;
    let mut told = String::new();
    loop {
        let (_, partitions) = client.station(name).await?;
        let changing: Vec<_> = partitions
            .iter()
            .filter(|partition| !partition.change.is_empty())
            .collect();
        let Some(first) = changing.first() else {
            return Ok(());
        };
        let text = format!(
            "{} of {} left; partition {}: {}",
            changing.len(),
            counted(partitions.len() as u64, "partition"),
            first.partition,
            first.change
        );
        if told != text {
            output.note(&text);
            told = text;
        }
        if Instant::now() + LOOK_INTERVAL > deadline {
            let why = format!("not done after {patience:?}: {told}; it goes on in the background");
            return Err(Failure::failed(why));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn delete(args: StationRmArgs, global: &Global, output: &Output) -> Result<(), Failure> {
    let name = station_name(&args.name)?;
    if !args.yes && !confirm(&name, output)? {
        return Err(Failure::usage(format!(
            "station `{}` was not deleted",
            name.display()
        )));
    }
    let client = Client::from_options(global).await?;
    client.delete_station(name.display()).await?;
    let deleted = name.display().to_owned();
    output.result(&Deleted { deleted }, |result| {
        format!("deleted station {}", result.deleted)
    })
}

fn confirm(name: &StationName, output: &Output) -> Result<bool, Failure> {
    let stdin = std::io::stdin();
    if output.is_json() || !stdin.is_terminal() {
        return Err(Failure::usage(format!(
            "deleting station `{}` deletes its messages for ever; say --yes if that is meant",
            name.display()
        )));
    }
    let mut stderr = std::io::stderr().lock();
    let asked = write!(
        stderr,
        "delete station `{}` and its messages for ever? [y/N] ",
        name.display()
    );
    asked
        .and_then(|()| stderr.flush())
        .map_err(|error| Failure::failed(format!("ask: {error}")))?;
    let mut answer = String::new();
    stdin
        .read_line(&mut answer)
        .map_err(|error| Failure::failed(format!("read the answer: {error}")))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// `1 partition`, `2 partitions`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {what}{plural}", count_text(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> NewStation {
        NewStation {
            name: "orders".to_owned(),
            partitions: 1,
            replicas: 1,
            max_message_bytes: 8 << 20,
        }
    }

    #[test]
    fn names_of_0_and_129_characters_are_refused_before_anything_is_sent() {
        assert_eq!(station_name("").unwrap_err().exit().code(), 2);
        assert_eq!(station_name(&"a".repeat(129)).unwrap_err().exit().code(), 2);
        assert!(station_name(&"a".repeat(128)).is_ok());
    }

    #[test]
    fn settings_out_of_range_name_the_option() {
        let cases = [
            (
                NewStation {
                    partitions: 0,
                    ..wanted()
                },
                "--partitions",
            ),
            (
                NewStation {
                    partitions: 1_025,
                    ..wanted()
                },
                "--partitions",
            ),
            (
                NewStation {
                    replicas: 2,
                    ..wanted()
                },
                "--replicas",
            ),
            (
                NewStation {
                    max_message_bytes: 0,
                    ..wanted()
                },
                "--max-message-size",
            ),
            (
                NewStation {
                    max_message_bytes: (64 << 20) + 1,
                    ..wanted()
                },
                "--max-message-size",
            ),
        ];
        for (settings, option) in cases {
            let failure = check_settings(&settings).unwrap_err();
            assert!(failure.message().unwrap().contains(option), "{failure:?}");
        }
        assert!(check_settings(&wanted()).is_ok());
    }

    #[test]
    fn a_partition_whose_leader_did_not_answer_shows_no_numbers() {
        let station = Station {
            name: "orders".to_owned(),
            id: 1,
            tenant: "default".to_owned(),
            partitions: 1,
            replicas: 1,
            storage: "file",
            kind: "station",
            max_message_bytes: 1,
            created_at_ms: 0,
            revision: 1,
        };
        let partitions = vec![PartitionStatus {
            partition: 1,
            leader_node_id: 0,
            replica_node_ids: vec![1],
            first_sequence: 0,
            next_sequence: 0,
            trouble: "no leader".to_owned(),
            healthy_replicas: None,
            wanted_replicas: 1,
            change: String::new(),
        }];
        let text = shown_text(&Shown { station, partitions });
        assert!(
            text.contains("none") && text.contains('?') && text.contains("no leader"),
            "{text}"
        );
    }
}
