//! One message at a time, with the disk measured beside it.

use hdrhistogram::Histogram;
use ptah_types::ErrorKind;
use tokio::time::Instant;

use super::drive::{Pace, Plan, Produced, new_histogram};
use super::ledger::Ledger;
use super::payload::PayloadWriter;
use super::probe::DiskProbe;
use crate::client::{BatchEncoder, Client, ClientError, ProduceSender, ProduceStream};
use crate::failure::Failure;

/// Stores messages one at a time; between two of them the disk is measured if there is a probe.
pub(super) async fn produce_one_by_one(
    plan: &Plan,
    total: u64,
    client: &Client,
    mut probe: Option<DiskProbe>,
) -> Result<(Produced, Option<Histogram<u64>>), Failure> {
    let (sender, mut stream) = client.produce_stream(&plan.station, "bench-0").await?;
    let mut writer = PayloadWriter::new(plan.run, 0, plan.size_bytes);
    let mut disk_ns = probe.is_some().then(new_histogram);
    let started = Instant::now();
    let mut produced = Produced {
        ledger: Ledger::new(total),
        latency_ns: new_histogram(),
        batches: 0,
        started,
        ended: started,
        broke: None,
    };
    let mut encoder = BatchEncoder::default();
    let pace = Pace::new(plan.rate);
    for counter in 0..total {
        tokio::time::sleep_until(pace.due(counter)).await;
        if let Some(last) = probe.take() {
            let (next, nanos) = measure_disk(last).await?;
            probe = Some(next);
            if let Some(histogram) = &mut disk_ns {
                histogram.saturating_record(nanos);
            }
        }
        let keys = &plan.keys;
        let key = (!keys.is_empty()).then(|| keys[(counter % keys.len() as u64) as usize].as_slice());
        encoder.push(writer.payload(counter), key, 0);
        let begun = Instant::now();
        let answered = one(
            &sender,
            &mut stream,
            &mut encoder,
            &mut produced.ledger,
            counter,
            client,
        )
        .await;
        produced.batches += 1;
        produced.ended = Instant::now();
        if let Err(error) = answered {
            produced.broke = Some(error);
            break;
        }
        produced.latency_ns.saturating_record(nanos_of(begun));
    }
    Ok((produced, disk_ns))
}

async fn one(
    sender: &ProduceSender,
    stream: &mut ProduceStream,
    encoder: &mut BatchEncoder,
    ledger: &mut Ledger,
    counter: u64,
    client: &Client,
) -> Result<(), ClientError> {
    let ended = || ClientError::new(ErrorKind::Unavailable, "the server ended the stream");
    if let Ok(room) = sender.room().await {
        room.send(encoder.finish());
    }
    let outcomes = stream.next_within(client.timeout()).await?.ok_or_else(ended)?;
    for outcome in &outcomes {
        ledger
            .enter(outcome, counter + 1)
            .map_err(|what| ClientError::new(ErrorKind::Incompatible, what))?;
    }
    Ok(())
}

async fn measure_disk(mut probe: DiskProbe) -> Result<(DiskProbe, u64), Failure> {
    // The wait for the disk must not stop the connection.
    let measured = tokio::task::spawn_blocking(move || probe.measure().map(|taken| (probe, taken)));
    let (probe, taken) = measured
        .await
        .map_err(|error| Failure::failed(format!("disk probe: {error}")))??;
    Ok((probe, u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX)))
}

fn nanos_of(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
