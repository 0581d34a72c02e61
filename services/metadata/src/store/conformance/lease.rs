//! The lease, and what it fences.

use super::*;

pub(super) async fn the_lease_fences_every_write(bench: &Bench) {
    let write = |lease_epoch| Commit {
        preconditions: Vec::new(),
        writes: vec![put("a", "1")],
        lease_epoch,
    };
    let early = bench.store().commit(write(0)).await;
    assert!(
        matches!(early, Err(StoreError::StaleEpoch { .. })),
        "nobody has the lease: {early:?}"
    );
    let first = bench.acquire("one").await;
    assert!(first.acquired && first.epoch > 0);
    let other = bench.acquire("two").await;
    assert_eq!(
        (other.acquired, other.holder.as_str(), other.epoch),
        (false, "one", first.epoch)
    );
    bench.advance(Duration::from_secs(11)).await;
    bench.store().commit(write(first.epoch)).await.unwrap();
    let second = bench.acquire("two").await;
    assert!(second.acquired && second.epoch > first.epoch);
    let stale = bench.store().commit(write(first.epoch)).await;
    assert!(matches!(stale, Err(StoreError::StaleEpoch { .. })), "{stale:?}");
    bench.store().commit(write(second.epoch)).await.unwrap();
    let request = LeaseRequest {
        holder: "two".to_owned(),
        ttl: Duration::ZERO,
        release: true,
    };
    assert!(!bench.store().lease(request).await.unwrap().acquired);
    let released = bench.store().commit(write(second.epoch)).await;
    assert!(
        matches!(released, Err(StoreError::StaleEpoch { .. })),
        "{released:?}"
    );
    let third = bench.acquire("one").await;
    assert!(
        third.acquired && third.epoch > second.epoch,
        "free at once after a release"
    );
}

pub(super) async fn the_lease_ends_by_the_clock(bench: &Bench) {
    let first = bench.acquire("one").await;
    assert_eq!(first.remaining, Duration::from_secs(10));
    bench.advance(Duration::from_secs(6)).await;
    assert_eq!(bench.acquire("two").await.remaining, Duration::from_secs(4));
    let renewed = bench.acquire("one").await;
    assert_eq!(
        (renewed.epoch, renewed.remaining),
        (first.epoch, Duration::from_secs(10))
    );
    bench.advance(Duration::from_secs(9)).await;
    assert!(!bench.acquire("two").await.acquired, "renewed");
    bench.advance(Duration::from_secs(1)).await;
    assert!(bench.acquire("two").await.acquired);
    for bad in [Duration::ZERO, Duration::from_secs(61)] {
        let request = LeaseRequest {
            holder: "x".to_owned(),
            ttl: bad,
            release: false,
        };
        assert!(matches!(
            bench.store().lease(request).await,
            Err(StoreError::Invalid(_))
        ));
    }
}

pub(super) async fn a_clock_that_jumps_back_does_not_keep_a_lease_for_ever(bench: &Bench) {
    bench.acquire("dead").await;
    bench.set_clock(Timestamp::from_millis(1)).await;
    assert!(bench.acquire("two").await.remaining <= Duration::from_secs(60));
    bench.advance(Duration::from_secs(60)).await;
    assert!(bench.acquire("two").await.acquired);
}
