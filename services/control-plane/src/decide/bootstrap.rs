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
        let exists = self
            .parts
            .metadata
            .read(|view| view.user(&tenant, &name).is_some());
        if exists == Some(true) {
            return Ok(());
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
        if self.parts.bootstrap.allow_default_password {
            return Ok(hash);
        }
        let given = hash.clone();
        let is_default = self.parts.ports.blocking.run(move || {
            let parsed = PasswordHash::new(given.expose()).map_err(|error| error.to_string())?;
            let default = crate::config::DEFAULT_ROOT_PASSWORD.as_bytes();
            Ok::<bool, String>(
                argon2::Argon2::default()
                    .verify_password(default, &parsed)
                    .is_ok(),
            )
        });
        match is_default.await {
            Ok(Ok(false)) => Ok(hash),
            Ok(Ok(true)) => Err(ControlError::TakingOver {
                why: "`bootstrap.root_password_hash` is of the well-known default password; choose another one, or set \
                      `bootstrap.allow_default_password` where every public address is a loopback address"
                    .to_owned(),
            }),
            Ok(Err(why)) => Err(ControlError::TakingOver {
                why: format!("`bootstrap.root_password_hash` cannot be read: {why}"),
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
                at.value.saturating_add(ID_JUMP),
            );
        }
    }
    Step::Commit(change)
}
