//! Sign-in: from Basic credentials to a principal.
//!
//! A password is verified by its argon2 hash, which costs tens of milliseconds on purpose. So verifications are few at a
//! time and off the runtime's threads, and verified passwords are remembered under a keyed hash: ten thousand reconnects
//! cost one verification. The key is drawn per process and the stored hash is part of what is hashed, so that nothing
//! remembered is worth anything elsewhere or after the password was changed.
//!
//! A wrong password and an unknown user cost the same and are answered the same. Users come from the catalog: sign-in works
//! while metadata is down. A gateway that never heard of any user says so, and not that the password is wrong.

mod base64;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use parking_lot::Mutex;
use ptah_service::{Blocking, Ports};
use ptah_types::{Principal, Role, TenantName, UserName};
use ring::hmac;
use tokio::sync::Semaphore;

use crate::catalog::Catalog;
use crate::error::GatewayError;
use crate::metrics::AuthMetrics;

const WRONG: GatewayError = GatewayError::Unauthenticated("user name or password is wrong");
const MISSING: GatewayError = GatewayError::Unauthenticated(
    "credentials are missing; send `authorization: Basic base64(user:password)`",
);
const MALFORMED: GatewayError = GatewayError::Unauthenticated(
    "credentials cannot be read; send `authorization: Basic base64(user:password)`",
);
const DEFAULT_PASSWORD: GatewayError = GatewayError::Unauthenticated(
    "user `root` has the default password, which is refused on a public address; set another one for the control plane \
     (`bootstrap.root_password`)",
);

/// First user and password of a new cluster on a laptop.
const DEFAULT_USER: &str = "root";
const DEFAULT_USER_PASSWORD: &str = "memphis";
/// Longest header that is looked at.
const MAX_CREDENTIALS_BYTES: usize = 2_048;

/// Settings of sign-in.
#[derive(Debug, Clone, Copy)]
pub struct AuthSettings {
    /// Passwords that are verified at the same time.
    pub concurrent_verifications: usize,
    /// Sign-ins that wait for their turn; more are refused.
    pub waiting_verifications: usize,
    /// Verified passwords that are remembered.
    pub cached_passwords: usize,
    /// Whether the default password of a new cluster is taken.
    pub allow_default_password: bool,
}

/// A caller who signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedIn {
    /// Name space of the user.
    pub tenant: TenantName,
    /// Who it is.
    pub principal: Principal,
}

impl SignedIn {
    /// The tenant that a request names; empty means the caller's own. Another one is refused.
    pub fn tenant(&self, wanted: &str) -> Result<TenantName, GatewayError> {
        if wanted.is_empty() || wanted == self.tenant.as_str() {
            return Ok(self.tenant.clone());
        }
        let wanted: TenantName = wanted.parse()?;
        Err(GatewayError::OtherTenant {
            user: self.principal.user.to_string(),
            own: self.tenant.to_string(),
            wanted: wanted.to_string(),
        })
    }
}

type CacheKey = [u8; 32];

/// Remembered passwords, oldest first out.
#[derive(Default)]
struct Cache {
    known: BTreeMap<CacheKey, Role>,
    order: VecDeque<CacheKey>,
}

struct Inner {
    catalog: Catalog,
    settings: AuthSettings,
    metrics: AuthMetrics,
    blocking: Blocking,
    key: hmac::Key,
    cache: Mutex<Cache>,
    running: Semaphore,
    waiting: Semaphore,
    /// Hash of no password, verified for users that do not exist.
    decoy: String,
    /// What is said before the users are known.
    not_known_yet: GatewayError,
}

/// Checks credentials. Cheap to clone.
#[derive(Clone)]
pub struct Auth {
    inner: Arc<Inner>,
}

impl Auth {
    /// Sign-in for the users of the catalog, which come from the metadata service at `metadata_addresses`.
    pub fn new(
        catalog: Catalog,
        metadata_addresses: &[String],
        settings: AuthSettings,
        ports: &Ports,
        metrics: AuthMetrics,
    ) -> Self {
        let random = &ports.random;
        let mut key = [0; 32];
        random.fill(&mut key);
        let mut salt = [0; 16];
        random.fill(&mut salt);
        let mut nobodys_password = [0; 32];
        random.fill(&mut nobodys_password);
        let decoy = Argon2::default().hash_password_with_salt(&nobodys_password, &salt);
        let inner = Inner {
            catalog,
            settings,
            metrics,
            blocking: ports.blocking,
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            cache: Mutex::default(),
            running: Semaphore::new(settings.concurrent_verifications),
            waiting: Semaphore::new(settings.waiting_verifications),
            decoy: decoy.map(|hash| hash.to_string()).unwrap_or_default(),
            not_known_yet: GatewayError::Unavailable(
                format!(
                    "users are not known yet: metadata at `{}` does not answer; try again",
                    metadata_addresses.join(", ")
                )
                .into(),
            ),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Signs a caller in by the value of its `authorization` header.
    pub async fn sign_in(&self, authorization: Option<&[u8]>) -> Result<SignedIn, GatewayError> {
        let header = authorization.ok_or(MISSING)?;
        let (user, password) = parse(header).ok_or(MALFORMED)?;
        if !self.inner.catalog.position().loaded {
            return Err(self.inner.not_known_yet.clone());
        }
        let tenant = TenantName::default_tenant();
        let known = user.parse::<UserName>().ok();
        let known = known.and_then(|name| self.inner.catalog.with(|view| view.user(&tenant, &name).cloned()));
        let hash = known
            .as_ref()
            .map_or(self.inner.decoy.as_str(), |record| record.password_hash.expose());
        let cache_key = self.cache_key(&tenant, &user, &password, hash);
        let remembered = known.is_some() && self.inner.cache.lock().known.contains_key(&cache_key);
        if remembered {
            self.inner.metrics.cached.inc();
        } else {
            let fits = self.verify(hash.to_owned(), password.clone()).await?;
            if !fits || known.is_none() {
                self.inner.metrics.failed.inc();
                return Err(WRONG);
            }
        }
        let Some(record) = known else { return Err(WRONG) };
        if !self.inner.settings.allow_default_password
            && user == DEFAULT_USER
            && password == DEFAULT_USER_PASSWORD
        {
            self.inner.metrics.failed.inc();
            return Err(DEFAULT_PASSWORD);
        }
        self.remember(cache_key, record.role);
        let principal = Principal {
            user: record.name.clone(),
            role: record.role,
        };
        Ok(SignedIn { tenant, principal })
    }

    /// Verifies off the runtime, a few at a time. Who comes when too many wait is refused.
    async fn verify(&self, hash: String, password: String) -> Result<bool, GatewayError> {
        let Ok(_place) = self.inner.waiting.try_acquire() else {
            self.inner.metrics.rejected.inc();
            return Err(GatewayError::Exhausted {
                what: "too many sign-ins wait for their passwords to be verified",
            });
        };
        let Ok(_turn) = self.inner.running.acquire().await else {
            return Ok(false);
        };
        self.inner.metrics.verified.inc();
        let verification = self.inner.blocking.run(move || {
            let parsed = PasswordHash::new(&hash);
            parsed.is_ok_and(|parsed| {
                Argon2::default()
                    .verify_password(password.as_bytes(), &parsed)
                    .is_ok()
            })
        });
        Ok(verification.await.unwrap_or(false))
    }

    fn cache_key(&self, tenant: &TenantName, user: &str, password: &str, hash: &str) -> CacheKey {
        let mut context = hmac::Context::with_key(&self.inner.key);
        for part in [tenant.as_str(), user, password, hash] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut key = CacheKey::default();
        key.copy_from_slice(context.sign().as_ref());
        key
    }

    fn remember(&self, key: CacheKey, role: Role) {
        let mut cache = self.inner.cache.lock();
        if cache.known.insert(key, role).is_none() {
            cache.order.push_back(key);
        }
        while cache.order.len() > self.inner.settings.cached_passwords {
            if let Some(oldest) = cache.order.pop_front() {
                cache.known.remove(&oldest);
            }
        }
    }
}

/// User and password of a Basic header.
fn parse(header: &[u8]) -> Option<(String, String)> {
    if header.len() > MAX_CREDENTIALS_BYTES {
        return None;
    }
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(base64::decode(encoded.trim())?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests;
