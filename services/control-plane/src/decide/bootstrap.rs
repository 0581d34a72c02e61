//! Taking over: before the first decision under a new epoch the view must have everything that was decided under older
//! ones, and the cluster must have what every cluster has.

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use ptah_rpc::records::{ClusterRecord, Counter, RecordKey, RecordValue, UserRecord};
use ptah_service::Secret;
use ptah_types::{ErrorKind, Role, TenantName, UserName};
use tracing::{info, warn};

use super::station::put_counter;
use super::{Change, Decider, Step, VIEW_DEADLINE};
use crate::error::ControlError;
use crate::view::View;

/// Feature level of a new cluster.
const FEATURE_LEVEL: u32 = 1;
/// Ids to skip after a restored backup: more than were given out between the backup and the loss.
const ID_JUMP: u64 = 1 << 20;
/// Length of the salt, as recommended for argon2.
const SALT_BYTES: usize = 16;

impl Decider {
    /// Prepares for deciding, if this control plane holds the lease and is not prepared.
    pub(super) async fn take_over(&mut self) {
        if self.parts.lease.follows() {
            // Nothing is expected of this one but to stand by.
            self.parts.component.ready();
        }
        if !self.parts.lease.needs_takeover() {
            return;
        }
        let Ok(epoch) = self.parts.lease.epoch() else {
            return;
        };
        match self.prepare(epoch).await {
            Ok(()) => {
                info!(epoch, "takeover complete");
                self.parts.lease.taken_over(epoch);
                self.parts.component.ready();
                self.parts.nodes.wake_all();
                self.record_progress().await;
            }
            Err(error) => {
                let why = match error {
                    ControlError::TakingOver { why } => why,
                    other => other.to_string(),
                };
                // Tried twice a second: say it once.
                if self.parts.lease.takeover_failed(&why) {
                    warn!(epoch, %why, "takeover is not complete; trying again");
                }
                self.parts.component.not_ready(why);
            }
        }
    }

    async fn prepare(&self, epoch: u64) -> Result<(), ControlError> {
        // After this call nobody under an older epoch can write any more, so this revision is their last at most.
        let info = self
            .parts
            .client
            .info()
            .await
            .map_err(ControlError::metadata("take over"))?;
        if !self.parts.metadata.wait_for(info.revision, VIEW_DEADLINE).await {
            return Err(ControlError::TakingOver {
                why: "metadata is being read".to_owned(),
            });
        }
        self.decide_under(epoch, "check the cluster's settings", |view| Ok(settings(view)))
            .await?;
        self.ensure_root(epoch).await
    }

    async fn ensure_root(&self, epoch: u64) -> Result<(), ControlError> {
        let tenant = TenantName::default_tenant();
        let name: UserName = "root"
            .parse()
            .map_err(|_| ControlError::Invalid("user name `root`".to_owned()))?;
        let stored = self
            .parts
            .metadata
            .read(|view| view.user(&tenant, &name).cloned())
            .flatten();
        if let Some(stored) = stored {
            return self.replace_default_password(epoch, &tenant, stored).await;
        }
        let user = UserRecord {
            name,
            role: Role::Root,
            password_hash: self.root_password_hash().await?,
        };
        let key = RecordKey::user(&tenant, &user.name);
        let made = self.decide_under(epoch, "make user root", |view| {
            if view.user(&tenant, &user.name).is_some() {
                return Ok(Step::Done(false));
            }
            let mut change = Change::new(|_| true);
            change.put(key.clone(), 0, RecordValue::User(user.clone()));
            Ok(Step::Commit(change))
        });
        if made.await? {
            info!("user root made");
        }
        Ok(())
    }

    /// A cluster that was made with the password that everybody knows gets the one that is configured by now. Any other
    /// password stays: whoever set it knows it, and a setting left over from the first start must not undo that.
    async fn replace_default_password(
        &self,
        epoch: u64,
        tenant: &TenantName,
        stored: UserRecord,
    ) -> Result<(), ControlError> {
        let bootstrap = &self.parts.bootstrap;
        let is_configured = !bootstrap.root_password_hash.is_empty()
            || (!bootstrap.root_password.is_empty()
                && bootstrap.root_password.expose() != crate::config::DEFAULT_ROOT_PASSWORD);
        if !is_configured || !self.is_of_default(stored.password_hash.clone()).await? {
            return Ok(());
        }
        let wanted = self.root_password_hash().await?;
        if self.is_of_default(wanted.clone()).await? {
            return Ok(());
        }
        let key = RecordKey::user(tenant, &stored.name);
        let user = UserRecord {
            password_hash: wanted,
            ..stored.clone()
        };
        let replaced = self.decide_under(epoch, "replace the default password of root", |view| {
            if view.user(tenant, &stored.name) != Some(&stored) {
                return Ok(Step::Done(false));
            }
            let mut change = Change::new(|_| true);
            change.put(
                key.clone(),
                view.revision_of(&key),
                RecordValue::User(user.clone()),
            );
            Ok(Step::Commit(change))
        });
        if replaced.await? {
            info!("user root has the configured password instead of the default one");
        }
        Ok(())
    }

    async fn root_password_hash(&self) -> Result<Secret, ControlError> {
        let bootstrap = &self.parts.bootstrap;
        if !bootstrap.root_password_hash.is_empty() {
            return self.checked_hash(bootstrap.root_password_hash.clone()).await;
        }
        if bootstrap.root_password.is_empty() {
            let why = "the cluster has no user yet; set `bootstrap.root_password`, or PTAH_BOOTSTRAP__ROOT_PASSWORD";
            return Err(ControlError::TakingOver { why: why.to_owned() });
        }
        self.hash(bootstrap.root_password.clone()).await
    }

    /// A given hash, unless it is one of the default password where that is not allowed.
    async fn checked_hash(&self, hash: Secret) -> Result<Secret, ControlError> {
        if !self.parts.bootstrap.allow_default_password && self.is_of_default(hash.clone()).await? {
            return Err(ControlError::TakingOver {
                why: "`bootstrap.root_password_hash` is of the well-known default password; choose another one, or set \
                      `bootstrap.allow_default_password` where every public address is a loopback address"
                    .to_owned(),
            });
        }
        Ok(hash)
    }

    /// Whether a hash is of the password that everybody knows.
    async fn is_of_default(&self, hash: Secret) -> Result<bool, ControlError> {
        let verified = self.parts.ports.blocking.run(move || {
            let parsed = PasswordHash::new(hash.expose()).map_err(|error| error.to_string())?;
            let default = crate::config::DEFAULT_ROOT_PASSWORD.as_bytes();
            Ok::<bool, String>(
                argon2::Argon2::default()
                    .verify_password(default, &parsed)
                    .is_ok(),
            )
        });
        match verified.await {
            Ok(Ok(is_default)) => Ok(is_default),
            Ok(Err(why)) => Err(ControlError::TakingOver {
                why: format!("the password hash of root cannot be read: {why}"),
            }),
            Err(error) => Err(hash_failed(error.to_string())),
        }
    }

    /// argon2id in PHC form. Takes tens of milliseconds of CPU, so not on the runtime's threads.
    async fn hash(&self, password: Secret) -> Result<Secret, ControlError> {
        let mut salt = [0; SALT_BYTES];
        self.parts.ports.random.fill(&mut salt);
        let hashed = self.parts.ports.blocking.run(move || {
            let hash = argon2::Argon2::default().hash_password_with_salt(password.expose().as_bytes(), &salt);
            hash.map(|hash| Secret::new(hash.to_string()))
                .map_err(|error| error.to_string())
        });
        match hashed.await {
            Ok(Ok(hash)) => Ok(hash),
            Ok(Err(why)) => Err(hash_failed(why)),
            Err(error) => Err(hash_failed(error.to_string())),
        }
    }
}

fn hash_failed(why: String) -> ControlError {
    ControlError::Metadata {
        action: "hash the password of root",
        source: ptah_rpc::RpcError::new(ErrorKind::Internal, why),
    }
}

/// The cluster's record is there, and the id counters are ahead of everything that this history may not know.
pub(super) fn settings(view: &View) -> Step<()> {
    let known = view.settings();
    if known.is_some_and(|settings| settings.incarnation == view.incarnation()) {
        return Step::Done(());
    }
    let record = ClusterRecord {
        feature_level: known.map_or(FEATURE_LEVEL, |settings| settings.feature_level),
        incarnation: view.incarnation(),
    };
    let key = RecordKey::cluster();
    let mut change = Change::new(|_| ());
    let revision = view.revision_of(&key);
    change.put(key, revision, RecordValue::Cluster(record));
    if known.is_some() {
        warn!("metadata is an older copy: ids that may have been given out since are skipped");
        for counter in Counter::ALL {
            let at = view.counter(counter);
            put_counter(
                &mut change,
                counter,
                at.revision,
                // The same backup may be put back twice; the revision from which an incarnation goes on is never the same.
                at.value.saturating_add(ID_JUMP).max(view.revision()),
            );
        }
    }
    Step::Commit(change)
}
