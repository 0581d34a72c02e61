//! Reading frames of one segment in order, each one checked.

use std::sync::Arc;

use bytes::Bytes;
use ptah_types::{LogIndex, RaftGroupId};

use super::{SegmentName, file_offset};
use crate::disk::{DiskFile, read_up_to};
use crate::frame::FRAME_HEADER_LEN;
use crate::{Damage, Frame, FrameHeader, ReadError};

/// Walks over the frames of a segment from a frame's start to `end`.
pub(crate) struct FrameCursor {
    file: Arc<dyn DiskFile>,
    name: SegmentName,
    buffer: Bytes,
    buffer_at: u64,
    position: u64,
    end: u64,
    chunk: usize,
    last: Option<LogIndex>,
}

impl FrameCursor {
    /// `chunk` is what is read at once.
    pub(crate) fn new(
        file: Arc<dyn DiskFile>,
        name: SegmentName,
        position: u64,
        end: u64,
        chunk: usize,
    ) -> Self {
        let chunk = chunk.max(FRAME_HEADER_LEN);
        Self {
            file,
            name,
            buffer: Bytes::new(),
            buffer_at: position,
            position,
            end,
            chunk,
            last: None,
        }
    }

    /// Position of the next frame.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn damage(&self, what: impl std::fmt::Display) -> ReadError {
        Damage::new(&self.name.path, file_offset(self.position), what).into()
    }

    fn group(&self) -> RaftGroupId {
        self.name.group
    }

    /// Makes `len` bytes at the position available.
    fn fill(&mut self, len: usize) -> Result<Bytes, ReadError> {
        let skip = (self.position - self.buffer_at) as usize;
        if skip <= self.buffer.len() && self.buffer.len() - skip >= len {
            return Ok(self.buffer.slice(skip..skip + len));
        }
        let left = self.end.saturating_sub(self.position);
        if (len as u64) > left {
            return Err(self.damage("the last frame is longer than the segment"));
        }
        let want = (self.chunk as u64).min(left).max(len as u64) as usize;
        let read = read_up_to(&*self.file, file_offset(self.position), want)
            .map_err(ReadError::io("read", &self.name.path))?;
        if read.len() < len {
            return Err(self.damage("the file ends inside a frame"));
        }
        self.buffer = Bytes::from(read);
        self.buffer_at = self.position;
        Ok(self.buffer.slice(..len))
    }

    /// Header of the next frame; `None` at the end.
    pub(crate) fn peek(&mut self) -> Result<Option<FrameHeader>, ReadError> {
        if self.position >= self.end {
            return Ok(None);
        }
        let bytes = self.fill(FRAME_HEADER_LEN)?;
        let header = Frame::decode_header(&bytes).map_err(|error| self.damage(error))?;
        let fields = header.fields();
        if fields.group != self.group() {
            return Err(self.damage(format_args!(
                "the frame belongs to group {}",
                fields.group.to_hex()
            )));
        }
        if super::StreamKind::of(fields) != self.name.kind {
            return Err(self.damage("the frame is of the other stream"));
        }
        if self.last.is_some_and(|last| fields.index <= last) {
            return Err(self.damage(format_args!("index {} is out of order", fields.index)));
        }
        Ok(Some(header))
    }

    /// Passes the frame that `peek` gave, without reading its payload.
    pub(crate) fn skip(&mut self, header: &FrameHeader) {
        self.last = Some(header.fields().index);
        self.position += header.encoded_len() as u64;
    }

    /// Reads the frame that `peek` gave, and its bytes as they are in the file.
    pub(crate) fn take(&mut self, header: &FrameHeader) -> Result<(Frame, Bytes), ReadError> {
        let bytes = self.fill(header.encoded_len())?;
        let payload = bytes.slice(FRAME_HEADER_LEN..);
        let frame = header.with_payload(payload).map_err(|error| self.damage(error))?;
        self.skip(header);
        Ok((frame, bytes))
    }
}
