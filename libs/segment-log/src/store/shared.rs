//! What the store and its groups share.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::disk::Disk;
use crate::group::{InstallJob, LargeJob};
use crate::options::Options;
use crate::segment::FileCache;
use crate::types::{Identity, Work};
use crate::wal::{Committer, Queue, WalFiles};
use crate::{FrameKind, RefusedReason};

/// After so many appended bytes the disk is asked again how much room it has.
const SPACE_CHECK_BYTES: i64 = 16 << 20;

/// Counts events; see [`crate::Stats`].
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) wal_syncs: AtomicU64,
    pub(crate) units: AtomicU64,
    pub(crate) seals: AtomicU64,
    pub(crate) wal_bytes: AtomicU64,
    pub(crate) completions: AtomicU64,
    pub(crate) segment_bytes: AtomicU64,
    pub(crate) file_syncs: AtomicU64,
    pub(crate) large_frames: AtomicU64,
    pub(crate) reads_from_memory: AtomicU64,
    pub(crate) reads_from_disk: AtomicU64,
    pub(crate) damaged_reads: AtomicU64,
    pub(crate) refused_appends: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Work of the large writer.
pub(crate) enum LargeItem {
    Frame(Box<LargeJob>),
    Install(Box<InstallJob>),
}

struct LargeInner {
    items: VecDeque<LargeItem>,
    signals: u64,
    stopped: bool,
}

/// Queue of the large writer.
pub(crate) struct LargeQueue {
    inner: Mutex<LargeInner>,
    ready: Condvar,
    /// Held by the one driver that is at work.
    pub(crate) driver: Mutex<()>,
}

impl LargeQueue {
    pub(crate) fn new() -> Self {
        let inner = LargeInner {
            items: VecDeque::new(),
            signals: 0,
            stopped: false,
        };
        Self {
            inner: Mutex::new(inner),
            ready: Condvar::new(),
            driver: Mutex::new(()),
        }
    }

    pub(crate) fn push(&self, job: LargeJob) {
        self.push_item(LargeItem::Frame(Box::new(job)));
    }

    pub(crate) fn push_item(&self, item: LargeItem) {
        self.inner.lock().items.push_back(item);
        self.signal();
    }

    pub(crate) fn pop(&self) -> Option<LargeItem> {
        self.inner.lock().items.pop_front()
    }

    pub(crate) fn put_back(&self, item: LargeItem) {
        self.inner.lock().items.push_back(item);
    }

    pub(crate) fn len(&self) -> usize {
        self.inner.lock().items.len()
    }

    /// Something changed that a waiting job may need.
    pub(crate) fn signal(&self) {
        self.inner.lock().signals += 1;
        self.ready.notify_all();
    }

    pub(crate) fn signals(&self) -> u64 {
        self.inner.lock().signals
    }

    /// Waits for a signal after `seen`; `false` when stopped.
    pub(crate) fn wait(&self, seen: u64) -> bool {
        let mut inner = self.inner.lock();
        while inner.signals == seen && !inner.stopped {
            self.ready.wait(&mut inner);
        }
        !inner.stopped
    }

    pub(crate) fn set_stopped(&self, stopped: bool) {
        self.inner.lock().stopped = stopped;
        self.ready.notify_all();
    }
}

pub(crate) type Waker = Arc<dyn Fn(Work) + Send + Sync>;

pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) options: Options,
    pub(crate) queue: Queue,
    pub(crate) committer: Mutex<Committer>,
    pub(crate) wal: WalFiles,
    pub(crate) large: LargeQueue,
    pub(crate) files: FileCache,
    pub(crate) counters: Counters,
    pub(crate) reserve_bytes: u64,
    /// Highest number of a group's data directory so far, over all groups.
    pub(crate) dir_numbers: AtomicU64,
    /// The completions of all units up to this one have run.
    pub(crate) completed_seq: AtomicU64,
    pub(crate) since_checkpoint: AtomicU64,
    pub(crate) unflushed: AtomicU64,
    pub(crate) recent: AtomicU64,
    queued: AtomicU64,
    available: AtomicI64,
    until_space_check: AtomicI64,
    room_wanted: AtomicBool,
    checkpoint_wanted: AtomicBool,
    failed: AtomicBool,
    failure: Mutex<Option<String>>,
    waker: RwLock<Option<Waker>>,
}

impl Shared {
    pub(crate) fn new(parts: SharedParts) -> Self {
        let SharedParts {
            disk,
            dir,
            identity,
            options,
            committer,
            wal,
            reserve_bytes,
        } = parts;
        Self {
            queue: Queue::new(options.unit_bytes),
            completed_seq: AtomicU64::new(committer.last_seq()),
            committer: Mutex::new(committer),
            dir_numbers: AtomicU64::new(1),
            wal,
            large: LargeQueue::new(),
            files: FileCache::new(disk.clone(), options.open_files),
            counters: Counters::default(),
            reserve_bytes,
            since_checkpoint: AtomicU64::new(0),
            unflushed: AtomicU64::new(0),
            recent: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            available: AtomicI64::new(0),
            until_space_check: AtomicI64::new(0),
            room_wanted: AtomicBool::new(false),
            checkpoint_wanted: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            waker: RwLock::new(None),
            disk,
            dir,
            identity,
            options,
        }
    }

    pub(crate) fn set_waker(&self, waker: Waker) {
        *self.waker.write() = Some(waker);
    }

    /// Tells the driver. Never called under a lock.
    pub(crate) fn wake(&self, work: Work) {
        let waker = self.waker.read().clone();
        if let Some(waker) = waker {
            waker(work);
        }
    }

    pub(crate) fn wake_all(&self, works: impl IntoIterator<Item = Work>) {
        works.into_iter().for_each(|work| self.wake(work));
    }

    pub(crate) fn add_queued(&self, bytes: u64) {
        self.queued.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn sub_queued(&self, bytes: u64) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn queued(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }

    pub(crate) fn wal_live_bytes(&self) -> u64 {
        self.wal.live_count() * self.options.wal_file_bytes
    }

    /// Whether half of the write-ahead log, or of the memory for unflushed frames, is in use.
    pub(crate) fn is_half_full(&self) -> bool {
        self.wal_live_bytes() >= self.options.max_wal_bytes / 2
            || self.unflushed.load(Ordering::Relaxed) >= self.options.unflushed_bytes / 2
    }

    /// An append was refused that may be tried again when there is room.
    pub(crate) fn want_room(&self) {
        self.room_wanted.store(true, Ordering::Relaxed);
    }

    fn in_memory(&self) -> u64 {
        self.unflushed.load(Ordering::Relaxed) + self.recent.load(Ordering::Relaxed)
    }

    fn memory_limit(&self) -> u64 {
        self.options.unflushed_bytes + self.options.recent_bytes
    }

    pub(crate) fn needs_checkpoint(&self) -> bool {
        self.since_checkpoint.load(Ordering::Relaxed) >= self.options.checkpoint_wal_bytes
            || self.unflushed.load(Ordering::Relaxed) > self.options.unflushed_bytes / 2
            || self.in_memory() > self.memory_limit() / 2
    }

    /// Asks for a checkpoint round once, until one was run.
    pub(crate) fn want_checkpoint(&self) -> Option<Work> {
        let wanted = self.needs_checkpoint() && !self.checkpoint_wanted.swap(true, Ordering::Relaxed);
        wanted.then_some(Work::Checkpoint)
    }

    pub(crate) fn checkpoint_ran(&self) {
        self.checkpoint_wanted.store(false, Ordering::Relaxed);
    }

    /// Bytes of the reserve that a frame must leave alone.
    pub(crate) fn spared_reserve(&self, kind: FrameKind, payload_bytes: u64) -> u64 {
        match kind {
            FrameKind::Batch => self.reserve_bytes,
            FrameKind::Command if payload_bytes > 0 => self.reserve_bytes / 2,
            FrameKind::Command | FrameKind::Blank | FrameKind::Membership => 0,
        }
    }

    /// Whether an append of `bytes` that leaves `spared` bytes of the reserve alone may be taken.
    pub(crate) fn admit(&self, bytes: u64, spared: u64) -> Result<(), RefusedReason> {
        self.check_failed()
            .map_err(|error| RefusedReason::Failed(error.to_string()))?;
        self.admit_space(bytes, spared)?;
        let queued = self.queued();
        let unflushed = self.unflushed.load(Ordering::Relaxed);
        let would_exceed = |held: u64, limit: u64| held > 0 && held.saturating_add(bytes) > limit;
        let refused = if would_exceed(queued, self.options.queue_bytes) {
            Some((queued, self.options.queue_bytes))
        } else if would_exceed(unflushed, self.options.unflushed_bytes)
            || self.in_memory() > self.memory_limit()
        {
            Some((self.in_memory(), self.memory_limit()))
        } else {
            let live = self.wal_live_bytes();
            (live >= self.options.max_wal_bytes).then_some((live, self.options.max_wal_bytes))
        };
        let Some((queued_bytes, limit_bytes)) = refused else {
            return Ok(());
        };
        self.want_room();
        Err(RefusedReason::WouldExceed {
            queued_bytes,
            limit_bytes,
        })
    }

    fn admit_space(&self, bytes: u64, spared: u64) -> Result<(), RefusedReason> {
        let bytes = bytes as i64;
        let left = self.until_space_check.fetch_sub(bytes, Ordering::Relaxed);
        let reserve = spared as i64;
        let estimate = self.available.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        if left > 0 && estimate >= reserve {
            return Ok(());
        }
        self.refresh_space();
        let available = self.available.load(Ordering::Relaxed);
        if available - bytes >= reserve {
            return Ok(());
        }
        Err(RefusedReason::DiskFull {
            available_bytes: available.max(0) as u64,
            reserve_bytes: spared,
        })
    }

    /// Whether an append of `bytes` would find room on the disk.
    pub(crate) fn has_room(&self, bytes: u64, spared: u64) -> bool {
        let fits = || self.available.load(Ordering::Relaxed) - bytes as i64 >= spared as i64;
        if fits() && self.until_space_check.load(Ordering::Relaxed) > 0 {
            return true;
        }
        self.refresh_space();
        fits()
    }

    /// Asks the disk how much room it has. What is in memory only will still need room.
    pub(crate) fn refresh_space(&self) {
        if let Ok(space) = self.disk.space(&self.dir) {
            let pending = self.unflushed.load(Ordering::Relaxed);
            let available = i64::try_from(space.available_bytes.saturating_sub(pending)).unwrap_or(i64::MAX);
            self.available.store(available, Ordering::Relaxed);
            self.until_space_check.store(SPACE_CHECK_BYTES, Ordering::Relaxed);
        }
    }

    /// Tells refused appenders that there is room again.
    pub(crate) fn tell_room(&self) {
        let low = self.queued() <= self.options.queue_bytes / 2;
        if low && self.room_wanted.load(Ordering::Relaxed) {
            self.room_wanted.store(false, Ordering::Relaxed);
            self.wake(Work::Room);
        }
    }

    pub(crate) fn failure(&self) -> Option<String> {
        if !self.failed.load(Ordering::Acquire) {
            return None;
        }
        self.failure.lock().clone()
    }

    pub(crate) fn check_failed(&self) -> io::Result<()> {
        match self.failure() {
            None => Ok(()),
            Some(text) => Err(io::Error::new(io::ErrorKind::BrokenPipe, text)),
        }
    }

    /// Nothing is acknowledged from now on.
    pub(crate) fn latch(&self, what: &str, error: &io::Error) {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            let text = format!("storage has failed: {what}: {error}; stop the process and check the disk");
            tracing::error!(error = %error, what, "storage has failed, nothing is acknowledged any more");
            *failure = Some(text);
        }
        self.failed.store(true, Ordering::Release);
    }

    /// After a clean shutdown.
    pub(crate) fn latch_closed(&self) {
        let mut failure = self.failure.lock();
        failure.get_or_insert_with(|| "storage is closed".to_owned());
        self.failed.store(true, Ordering::Release);
    }
}

/// What a [`Shared`] is made of.
pub(crate) struct SharedParts {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) options: Options,
    pub(crate) committer: Committer,
    pub(crate) wal: WalFiles,
    pub(crate) reserve_bytes: u64,
}
