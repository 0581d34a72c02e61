//! The cluster's secret: who has it belongs to the cluster.

use std::fmt;

use ptah_service::{ClusterConfig, ConfigError, Random, Secret};
use ring::hmac;
use tonic::metadata::{Ascii, MetadataValue};

/// Metadata key under which the proof travels.
pub(crate) const SECRET_HEADER: &str = "ptah-cluster-proof";
/// What is signed with the secret. The version belongs to the scheme, not to the wire protocol.
const PROOF_OF: &[u8] = b"ptah internal call v1";

/// The secret, as a key. What goes over the wire is a signature made with it, never the secret itself; whoever can
/// read the wire can use the signature, though, so that untrusted networks need TLS.
#[derive(Clone)]
pub struct ClusterSecret {
    key: hmac::Key,
    header: MetadataValue<Ascii>,
}

impl ClusterSecret {
    /// Takes the setting `cluster.secret`; refuses one that is missing or short.
    pub fn new(secret: &Secret) -> Result<Self, ConfigError> {
        let section = ClusterConfig {
            secret: secret.clone(),
        };
        section.validate()?;
        Ok(Self::of(secret.expose().as_bytes()))
    }

    /// A secret that nobody else has, for services that share a process, and for tests.
    pub fn generate(random: &dyn Random) -> Self {
        let mut bytes = [0; 32];
        random.fill(&mut bytes);
        Self::of(&bytes)
    }

    fn of(secret: &[u8]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let proof = hmac::sign(&key, PROOF_OF);
        let text: String = proof.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut header = MetadataValue::try_from(text).expect("hexadecimal digits are ASCII");
        header.set_sensitive(true);
        Self { key, header }
    }

    pub(crate) fn proof(&self) -> MetadataValue<Ascii> {
        self.header.clone()
    }

    /// Whether `proof` was made with the same secret. The time taken tells nothing about how much of it is right.
    pub(crate) fn verifies(&self, proof: &[u8]) -> bool {
        // 32 bytes as 64 digits; anything else is refused before it costs more.
        let mut bytes = [0; 32];
        if proof.len() != 2 * bytes.len() {
            return false;
        }
        for (byte, digits) in bytes.iter_mut().zip(proof.chunks_exact(2)) {
            let (Some(high), Some(low)) = (hex_digit(digits[0]), hex_digit(digits[1])) else {
                return false;
            };
            *byte = high << 4 | low;
        }
        hmac::verify(&self.key, PROOF_OF, &bytes).is_ok()
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(***)")
    }
}

#[cfg(test)]
mod tests {
    use ptah_service::SeededRandom;

    use super::*;

    fn secret(text: &str) -> ClusterSecret {
        ClusterSecret::new(&Secret::new(text)).unwrap()
    }

    #[test]
    fn only_the_same_secret_verifies_a_proof() {
        let ours = secret("a secret of the cluster");
        assert!(ours.verifies(secret("a secret of the cluster").proof().as_bytes()));
        assert!(!ours.verifies(secret("a secret of the clusteR").proof().as_bytes()));
        let cut = &ours.proof().as_bytes()[..62].to_vec();
        for wrong in [&b""[..], b"zz", cut] {
            assert!(!ours.verifies(wrong));
        }
    }

    #[test]
    fn the_secret_is_neither_printed_nor_sent() {
        let ours = secret("a secret of the cluster");
        assert_eq!(format!("{ours:?}"), "ClusterSecret(***)");
        assert!(!format!("{:?}", ours.proof()).contains("secret of"));
        assert!(ours.proof().is_sensitive());
    }

    #[test]
    fn a_short_secret_is_refused_by_its_key() {
        let refused = ClusterSecret::new(&Secret::new("short")).unwrap_err().to_string();
        assert!(
            refused.starts_with("setting `cluster.secret` is too short"),
            "{refused}"
        );
    }

    #[test]
    fn generated_secrets_differ() {
        let random = SeededRandom::new(1);
        let (a, b) = (ClusterSecret::generate(&random), ClusterSecret::generate(&random));
        assert!(!a.verifies(b.proof().as_bytes()));
    }
}
