//! Large frames: written to their segment in pieces, beside the write-ahead log.

use std::io::{self, IoSlice};

use super::GroupLog;
use super::queued::LargeJob;
use crate::frame::FRAME_HEADER_LEN;
use crate::segment::file_offset;
use crate::store::count;

/// Bytes that are written at once.
const PIECE: u64 = 1 << 20;

impl GroupLog {
    pub(crate) fn durable_record(&self) -> u64 {
        self.state.lock().durable_record
    }

    /// Writes the next piece of a large frame. `true` when the whole frame survives power loss.
    pub(crate) fn write_large_piece(&self, job: &mut LargeJob) -> io::Result<bool> {
        let _io = self.io.lock();
        let (dir_number, cuts, failed_flushes) = {
            let mut state = self.state.lock();
            (state.dir_number, state.take_cuts(), state.failed_flushes)
        };
        let len = job.frame.encoded_len() as u64;
        let name = self.segment_name(dir_number, job.place.kind, job.place.segment);
        self.run_cuts(dir_number, &cuts)?;
        let file = self.segment_file(&name, job.number)?;
        if job.failed_flushes != failed_flushes {
            // A failed sync of the same file may have met these bytes or its header block; a later one would not tell.
            file.write_at(&mut [IoSlice::new(&name.header())], 0)?;
            (job.failed_flushes, job.written) = (failed_flushes, 0);
        }
        let end = (job.written + PIECE).min(len);
        let header = job.frame.encode_header();
        let mut slices = Vec::with_capacity(2);
        let skip = FRAME_HEADER_LEN as u64;
        if job.written == 0 {
            slices.push(IoSlice::new(&header));
        }
        let from = job.written.saturating_sub(skip) as usize;
        let to = end.saturating_sub(skip) as usize;
        slices.push(IoSlice::new(&job.frame.payload[from..to]));
        let at = file_offset(job.place.position + job.written);
        file.write_at(&mut slices, at)?;
        file.write_back(at, end - job.written)?;
        count(&self.shared.counters.segment_bytes, end - job.written);
        job.written = end;
        if end < len {
            return Ok(false);
        }
        file.sync_data()?;
        count(&self.shared.counters.file_syncs, 1);
        if let Some(dir) = name.path.parent() {
            self.shared.disk.sync_dir(dir)?;
        }
        Ok(true)
    }
}
