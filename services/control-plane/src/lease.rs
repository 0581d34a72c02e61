//! The lease: at most one control plane decides.
//!
//! The store times the lease and fences every write with its epoch, so being wrong about holding it is safe; knowing it
//! early only saves useless work. The holder counts from the moment at which it *asked*, so it never believes longer
//! than the store does, up to the difference of clock speeds.
//!
//! A holder is the name of an instance and the number of its start. An instance that finds its own name with another
//! number when it starts has died before: it gives that lease up, which ends its epoch, and takes one of its own. It does
//! so once only; two processes of one name must not take the lease from each other for ever.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ptah_rpc::MetadataClient;
use ptah_service::{Component, Stopping};
use ptah_types::NodeName;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::error::ControlError;

/// Pause after a failed attempt.
const RETRY: Duration = Duration::from_millis(300);
/// A released lease is noticed this late at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Between the name of an instance and the number of its start; no name has it.
const SEPARATOR: char = '#';

/// Who decides, as far as is known here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// The store was not reached in time.
    Unknown {
        /// Why.
        why: String,
    },
    /// Another control plane decides.
    Following {
        /// Which.
        holder: String,
    },
    /// This one decides.
    Leading {
        /// Under this epoch.
        epoch: u64,
        /// Until then, unless renewed.
        until: Instant,
    },
}

/// What is known about the lease. Cheap to clone.
#[derive(Clone)]
pub struct Lease {
    standing: Arc<watch::Sender<Standing>>,
    takeover: Arc<Mutex<Takeover>>,
    doubt: Arc<Notify>,
}

/// How far this control plane is with taking over.
#[derive(Debug, Default)]
struct Takeover {
    /// Epoch under which everything is known.
    complete_for: u64,
    /// Why the newest attempt failed.
    trouble: Option<String>,
}

impl Lease {
    /// Nothing known yet.
    pub fn new() -> Self {
        let standing = Standing::Unknown {
            why: "the metadata store was not asked yet".to_owned(),
        };
        Self {
            standing: Arc::new(watch::channel(standing).0),
            takeover: Arc::default(),
            doubt: Arc::new(Notify::new()),
        }
    }

    /// The epoch to decide under once everything older is known, or why this control plane does not decide.
    pub fn authority(&self) -> Result<u64, ControlError> {
        let epoch = self.epoch()?;
        let takeover = self.takeover.lock();
        if takeover.complete_for == epoch {
            return Ok(epoch);
        }
        let why = takeover.trouble.clone();
        Err(ControlError::TakingOver {
            why: why.unwrap_or_else(|| "metadata is being read".to_owned()),
        })
    }

    /// Whether another control plane decides.
    pub(crate) fn follows(&self) -> bool {
        matches!(&*self.standing.borrow(), Standing::Following { .. })
    }

    /// Whether the lease is held, but not everything is known yet.
    pub(crate) fn needs_takeover(&self) -> bool {
        self.epoch().is_ok() && self.authority().is_err()
    }

    /// Everything that was decided before this epoch is known.
    pub(crate) fn taken_over(&self, epoch: u64) {
        *self.takeover.lock() = Takeover {
            complete_for: epoch,
            trouble: None,
        };
    }

    /// Taking over failed, and is tried again. Answers whether the reason is a new one.
    pub(crate) fn takeover_failed(&self, why: &str) -> bool {
        self.takeover.lock().trouble.replace(why.to_owned()).as_deref() != Some(why)
    }

    /// The epoch of the lease that is held, or why none is.
    pub fn epoch(&self) -> Result<u64, ControlError> {
        match &*self.standing.borrow() {
            Standing::Leading { epoch, until } if Instant::now() < *until => Ok(*epoch),
            Standing::Leading { .. } => Err(ControlError::NoLease {
                why: "the lease ran out".to_owned(),
            }),
            Standing::Following { holder } => Err(ControlError::NotHolder {
                holder: holder.clone(),
            }),
            Standing::Unknown { why } => Err(ControlError::NoLease { why: why.clone() }),
        }
    }

    /// Tells when the standing changes.
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// A write was refused: the lease may be somebody else's already.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }
}

impl Default for Lease {
    fn default() -> Self {
        Self::new()
    }
}

/// The task that takes and renews the lease.
pub struct LeaseKeeper {
    /// The store.
    pub client: MetadataClient,
    /// Whom to tell.
    pub lease: Lease,
    /// Name of the instance: the same after a restart.
    pub instance: NodeName,
    /// Number of this start, which no other has.
    pub start: u64,
    /// How long the lease shall hold.
    pub ttl: Duration,
    /// Where to tell readiness.
    pub component: Component,
}

impl LeaseKeeper {
    /// Keeps asking until the service stops, then gives the lease up.
    pub async fn run(self, stopping: Stopping) {
        let mut may_succeed_itself = true;
        loop {
            let pause = self.ask(&mut may_succeed_itself).await;
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                () = self.lease.doubt.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.release().await;
    }

    fn holder(&self) -> String {
        format!("{}{SEPARATOR}{:016x}", self.instance, self.start)
    }

    /// Whether a holder is another start of this instance.
    fn is_another_start(&self, holder: &str) -> bool {
        let instance = holder.rsplit_once(SEPARATOR).map(|(instance, _)| instance);
        instance == Some(self.instance.as_str()) && holder != self.holder()
    }

    /// Asks once; answers how long to wait until the next time.
    async fn ask(&self, may_succeed_itself: &mut bool) -> Duration {
        let asked_at = Instant::now();
        let client = self.client.clone().with_deadline(self.ttl / 2);
        let answer = match client.acquire_lease(&self.holder(), self.ttl, false).await {
            Ok(answer) => answer,
            Err(error) => {
                self.failed(&error.to_string());
                return RETRY;
            }
        };
        let succeeds_itself = std::mem::take(may_succeed_itself);
        if answer.acquired {
            self.tell(Standing::Leading {
                epoch: answer.epoch,
                until: asked_at + self.ttl,
            });
            self.component.ready();
            return self.ttl / 3;
        }
        let pause = LOOK_INTERVAL.min(self.ttl / 3);
        let holder = answer.holder;
        let another_start = self.is_another_start(&holder);
        if another_start && succeeds_itself {
            info!(%holder, "this control plane was started again and succeeds itself");
            return match client.acquire_lease(&holder, self.ttl, true).await {
                Ok(_) => Duration::ZERO,
                Err(error) => {
                    *may_succeed_itself = true;
                    self.failed(&error.to_string());
                    RETRY
                }
            };
        }
        self.tell(Standing::Following { holder });
        if another_start {
            let why = format!(
                "another process decides under the name of this one, `{}`; give each control plane its own `name`",
                self.instance
            );
            self.component.not_ready(why);
        } else {
            self.component.ready();
        }
        pause
    }

    fn failed(&self, why: &str) {
        let still_leads = matches!(
            &*self.lease.standing.borrow(),
            Standing::Leading { until, .. } if Instant::now() < *until
        );
        self.component
            .not_ready(format!("the lease cannot be asked for: {why}"));
        if !still_leads {
            self.tell(Standing::Unknown { why: why.to_owned() });
        }
    }

    fn tell(&self, standing: Standing) {
        let before = self.lease.standing.send_replace(standing.clone());
        match (&before, &standing) {
            (Standing::Leading { epoch: old, .. }, Standing::Leading { epoch, .. }) if old == epoch => {}
            (_, Standing::Leading { epoch, .. }) => info!(epoch, "this control plane decides"),
            (Standing::Leading { .. }, Standing::Following { holder }) => {
                warn!(%holder, "another control plane decides now");
            }
            (Standing::Leading { .. }, Standing::Unknown { why }) => {
                warn!(%why, "the lease is lost; nothing is decided until the metadata store answers");
            }
            _ => {}
        }
    }

    /// Lets a successor begin at once.
    async fn release(&self) {
        if self.lease.epoch().is_err() {
            return;
        }
        let stopping = Standing::Unknown {
            why: "this control plane is stopping".to_owned(),
        };
        self.lease.standing.send_replace(stopping);
        let client = self.client.clone().with_deadline(Duration::from_secs(2));
        if let Err(error) = client.acquire_lease(&self.holder(), self.ttl, true).await {
            warn!(%error, "the lease could not be given up; it ends by itself");
        }
    }
}
