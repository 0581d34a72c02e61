//! Sign-in before anything is known.

use ptah_types::{Boundary as _, ErrorKind};

use super::*;

#[tokio::test]
async fn a_gateway_that_knows_no_users_yet_asks_for_patience_and_does_not_blame_the_password() {
    let settings = AuthSettings {
        concurrent_verifications: 1,
        waiting_verifications: 1,
        cached_passwords: 1,
        allow_default_password: true,
    };
    let catalog = Catalog::new();
    let auth = Auth::new(
        catalog.clone(),
        &["metadata:6224".to_owned()],
        settings,
        &Ports::seeded(1),
        AuthMetrics::default(),
    );
    // root:memphis
    let credentials = Some(b"Basic cm9vdDptZW1waGlz".as_slice());
    let refused = auth.sign_in(credentials).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.kind().is_retryable());
    let text = refused.to_string();
    assert!(
        text.contains("users are not known yet") && text.contains("`metadata:6224`"),
        "{text}"
    );
    let missing = auth.sign_in(None).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Unauthenticated);

    catalog.replace(crate::catalog::CatalogView::default(), 1, 1);
    let refused = auth.sign_in(credentials).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthenticated);
}
