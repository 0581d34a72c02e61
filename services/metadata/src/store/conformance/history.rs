//! History, compaction, and the order of commits.

use super::*;

pub(super) async fn history_is_complete_and_in_order(bench: &Bench) {
    bench.commit(vec![put("b", "1"), put("a", "1")]).await.unwrap();
    bench.commit(vec![put("a", "2")]).await.unwrap();
    bench.commit(vec![delete("b"), put("c", "3")]).await.unwrap();
    let history = bench.store().changes(0).await.unwrap();
    assert_eq!(history.complete_to, 3);
    let seen: Vec<_> = history
        .transactions
        .iter()
        .flat_map(|t| {
            t.changes
                .iter()
                .map(move |c| (t.revision, c.key.key.as_str(), &c.value[..], c.deleted))
        })
        .collect();
    let expected: Vec<(u64, &str, &[u8], bool)> = vec![
        (1, "a", b"1", false),
        (1, "b", b"1", false),
        (2, "a", b"2", false),
        (3, "b", b"1", true),
        (3, "c", b"3", false),
    ];
    assert_eq!(seen, expected, "every version, not only the newest");
    let tail = bench.store().changes(2).await.unwrap();
    assert_eq!(tail.transactions.len(), 1);
    assert_eq!(tail.transactions[0], history.transactions[2]);
    assert!(bench.store().changes(3).await.unwrap().transactions.is_empty());
    let ahead = bench.store().changes(4).await;
    assert!(
        matches!(ahead, Err(StoreError::Ahead { after: 4, newest: 3 })),
        "{ahead:?}"
    );
}

pub(super) async fn large_history_comes_in_whole_transactions(bench: &Bench) {
    let large = "v".repeat(MAX_VALUE_BYTES);
    let count = 2 * MAX_CHANGES_BYTES / (3 * MAX_VALUE_BYTES) + 2;
    for _ in 0..count {
        bench
            .commit(vec![put("a", &large), put("b", &large), put("c", &large)])
            .await
            .unwrap();
    }
    let (mut after, mut reads, mut seen) = (0, 0, 0);
    let newest = bench.store().info().await.unwrap().revision;
    while after < newest {
        let history = bench.store().changes(after).await.unwrap();
        assert!(history.complete_to > after, "a read gets on");
        for transaction in &history.transactions {
            seen += 1;
            assert_eq!((transaction.revision, transaction.changes.len()), (seen, 3));
        }
        after = history.complete_to;
        reads += 1;
    }
    assert_eq!(seen, newest);
    assert!(reads > 1, "one read is bounded");
}

pub(super) async fn old_history_goes_and_is_refused(bench: &Bench) {
    for number in 0..HISTORY_CHANGES * 2 {
        bench.commit(vec![put("a", &number.to_string())]).await.unwrap();
    }
    let newest = u64::from(HISTORY_CHANGES) * 2;
    // A store may trim after it answered, and so move its floor while it is looked at.
    let trimmed = async {
        loop {
            let floor = bench.store().info().await.unwrap().compaction_floor;
            assert!(floor <= newest - u64::from(HISTORY_CHANGES), "{floor}");
            match bench.store().changes(floor).await {
                Ok(kept) if floor > 0 => return (floor, kept),
                Ok(_) | Err(StoreError::Compacted { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let (floor, kept) = tokio::time::timeout(Duration::from_secs(20), trimmed)
        .await
        .unwrap();
    assert_eq!(kept.transactions[0].revision, floor + 1);
    let refused = bench.store().changes(floor - 1).await;
    assert!(
        matches!(refused, Err(StoreError::Compacted { .. })),
        "{refused:?}"
    );
}

pub(super) async fn compaction_drops_tombstones_up_to_the_floor_only(bench: &Bench) {
    bench
        .commit(vec![put("a", "1"), put("b", "1"), put("c", "1")])
        .await
        .unwrap();
    bench.commit(vec![delete("a")]).await.unwrap();
    bench.commit(vec![delete("b")]).await.unwrap();
    let epoch = bench.acquire("suite").await.epoch;
    assert_eq!(bench.store().compact(2, epoch).await.unwrap(), 2);
    let tombstones = Query {
        tombstones: true,
        ..all()
    };
    let left = bench.store().list(&tombstones).await.unwrap().records;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].key, key("b"));
    assert_eq!(
        bench.value("c").await.as_deref(),
        Some(&b"1"[..]),
        "live records stay"
    );
    assert!(matches!(
        bench.store().changes(1).await,
        Err(StoreError::Compacted { after: 1, floor: 2 })
    ));
    assert_eq!(bench.store().changes(2).await.unwrap().transactions.len(), 1);
    assert_eq!(
        bench.store().compact(1, epoch).await.unwrap(),
        2,
        "the floor never goes back"
    );
    assert_eq!(
        bench.store().compact(99, epoch).await.unwrap(),
        3,
        "nor ahead of the store"
    );
    let stale = bench.store().compact(3, epoch + 1).await;
    assert!(matches!(stale, Err(StoreError::StaleEpoch { .. })), "{stale:?}");
}

pub(super) async fn concurrent_writers_of_one_record_do_not_lose_updates(bench: &Bench) {
    let lease_epoch = bench.acquire("suite").await.epoch;
    let store = bench.subject.store.clone();
    let add_ten = |store: Arc<dyn Store>| async move {
        for _ in 0..10 {
            loop {
                let found = store.get(&key("counter")).await.unwrap().0;
                let (revision, count) = found.map_or((0, 0), |r| {
                    (
                        r.revision,
                        std::str::from_utf8(&r.value).unwrap().parse::<u32>().unwrap(),
                    )
                });
                let commit = Commit {
                    preconditions: vec![at("counter", revision)],
                    writes: vec![put("counter", &(count + 1).to_string())],
                    lease_epoch,
                };
                match store.commit(commit).await {
                    Ok(_) => break,
                    Err(StoreError::Changed { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    futures_util::future::join_all((0..4).map(|_| add_ten(store.clone()))).await;
    assert_eq!(bench.value("counter").await.as_deref(), Some(&b"40"[..]));
    let history = bench.store().changes(0).await.unwrap();
    let revisions: Vec<_> = history
        .transactions
        .iter()
        .map(|transaction| transaction.revision)
        .collect();
    assert_eq!(revisions, (1..=40).collect::<Vec<_>>());
}

pub(super) async fn readers_are_told_of_new_revisions(bench: &Bench) {
    let mut newest = bench.store().newest();
    let revision = bench.commit(vec![put("a", "1")]).await.unwrap();
    let told = tokio::time::timeout(
        Duration::from_secs(10),
        newest.wait_for(|newest| *newest >= revision),
    )
    .await;
    assert!(told.is_ok(), "the hint comes");
}
