//! `ptah produce`: a message per line, streamed with a window; every line is answered for.

mod flow;
mod in_flight;
mod key;
mod lines;
mod report;

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use tokio::sync::mpsc;

use self::flow::{Chunk, Flow};
use self::lines::LineReader;
use super::station::station_name;
use crate::args::{Global, ProduceArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Output;

/// Bytes read at a time.
const READ_BYTES: usize = 256 << 10;
/// Chunks of lines between the reader and the stream.
const QUEUED_CHUNKS: usize = 4;

/// Where lines come from.
struct Input {
    reader: Box<dyn Read + Send>,
    /// Size of a file; not known of a pipe.
    size_bytes: Option<u64>,
    name: String,
}

/// Runs the command.
pub async fn run(args: ProduceArgs, global: &Global, output: &Output) -> Result<(), Failure> {
    let name = station_name(&args.station)?;
    let input = open(args.file.as_deref())?;
    let client = Client::from_options(global).await?;
    let (sender, stream) = client.produce_stream(name.display(), &args.producer).await?;
    if let Some(partition) = args.partition
        && partition > stream.opened().partitions
    {
        return Err(Failure::usage(format!(
            "station `{}` has no partition {partition}; it has 1 to {}",
            name.display(),
            stream.opened().partitions
        )));
    }
    let size_bytes = input.size_bytes;
    let chunks = read_in_background(input, stream.opened().max_message_bytes);
    let flow = Flow::new(&args, name.display(), client.timeout(), sender, stream, output)?;
    flow.run(chunks, size_bytes).await
}

fn open(path: Option<&Path>) -> Result<Input, Failure> {
    let Some(path) = path.filter(|path| *path != Path::new("-")) else {
        return Ok(Input {
            reader: Box::new(std::io::stdin()),
            size_bytes: None,
            name: "stdin".to_owned(),
        });
    };
    let failed = |error: std::io::Error| Failure::usage(format!("read file `{}`: {error}", path.display()));
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(Failure::usage(format!(
            "read file `{}`: it is a directory",
            path.display()
        )));
    }
    let size_bytes = metadata.is_file().then_some(metadata.len());
    Ok(Input {
        reader: Box::new(file),
        size_bytes,
        name: path.display().to_string(),
    })
}

/// Reads on a thread of its own: a terminal or a pipe may be silent for hours, and answers must be heard meanwhile.
fn read_in_background(input: Input, limit_bytes: u64) -> mpsc::Receiver<Chunk> {
    let (chunks, queue) = mpsc::channel(QUEUED_CHUNKS);
    tokio::task::spawn_blocking(move || {
        let mut reader = LineReader::new(BufReader::with_capacity(READ_BYTES, input.reader), limit_bytes);
        loop {
            let chunk = match reader.next_chunk() {
                Ok(Some((lines, bytes))) => Chunk::Lines { lines, bytes },
                Ok(None) => return,
                Err(error) => Chunk::Broken(format!("read {}: {error}", input.name)),
            };
            let is_last = matches!(chunk, Chunk::Broken(_));
            if chunks.blocking_send(chunk).is_err() || is_last {
                return;
            }
        }
    });
    queue
}
