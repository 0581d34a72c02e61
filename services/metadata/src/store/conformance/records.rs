//! Records, conditions, deletions and lists.

use super::*;

pub(super) async fn a_commit_is_readable_and_counts_revisions(bench: &Bench) {
    let before = bench.store().info().await.unwrap();
    assert_eq!((before.revision, before.compaction_floor), (0, 0));
    assert_eq!(bench.commit(vec![put("a", "1"), put("b", "1")]).await.unwrap(), 1);
    assert_eq!(bench.commit(vec![put("a", "2")]).await.unwrap(), 2);
    let (record, revision) = bench.store().get(&key("a")).await.unwrap();
    let record = record.unwrap();
    assert_eq!((record.revision, record.created_revision, revision), (2, 1, 2));
    assert_eq!(&record.value[..], b"2");
    let after = bench.store().info().await.unwrap();
    assert_eq!(
        (after.cluster, after.incarnation, after.revision),
        (before.cluster, before.incarnation, 2)
    );
    assert_eq!(bench.store().get(&key("nothing")).await.unwrap(), (None, 2));
}

pub(super) async fn a_failed_condition_changes_nothing(bench: &Bench) {
    bench.commit(vec![put("a", "1")]).await.unwrap();
    let conditions = vec![at("b", 0), at("a", 7)];
    let refused = bench
        .commit_if(conditions, vec![put("a", "2"), put("b", "2")])
        .await;
    assert!(
        matches!(
            refused,
            Err(StoreError::Changed {
                found: 1,
                expected: 7,
                ..
            })
        ),
        "{refused:?}"
    );
    assert_eq!(bench.value("a").await.as_deref(), Some(&b"1"[..]));
    assert_eq!(bench.value("b").await, None);
    let exists = bench.commit_if(vec![at("a", 0)], vec![put("a", "2")]).await;
    assert!(
        matches!(
            exists,
            Err(StoreError::Changed {
                found: 1,
                expected: 0,
                ..
            })
        ),
        "{exists:?}"
    );
    assert_eq!(
        bench.store().info().await.unwrap().revision,
        1,
        "a refused commit uses no revision"
    );
    assert_eq!(
        bench
            .commit_if(vec![at("a", 1), at("b", 0)], vec![put("a", "2")])
            .await
            .unwrap(),
        2
    );
}

pub(super) async fn a_deleted_record_leaves_a_tombstone(bench: &Bench) {
    bench.commit(vec![put("a", "1"), put("b", "1")]).await.unwrap();
    bench
        .commit_if(vec![at("a", 1)], vec![delete("a")])
        .await
        .unwrap();
    assert_eq!(bench.value("a").await, None);
    assert_eq!(bench.store().list(&all()).await.unwrap().records.len(), 1);
    let tombstones = Query {
        tombstones: true,
        ..all()
    };
    let found = bench.store().list(&tombstones).await.unwrap().records;
    let [tombstone] = &found[..] else {
        panic!("one tombstone, not {found:?}")
    };
    assert_eq!(
        (tombstone.revision, tombstone.created_revision, tombstone.deleted),
        (2, 1, true)
    );
    assert_eq!(&tombstone.value[..], b"1", "a tombstone keeps the last value");
    bench
        .commit_if(vec![at("a", 0)], vec![put("a", "3")])
        .await
        .unwrap();
    let record = bench.store().get(&key("a")).await.unwrap().0.unwrap();
    assert_eq!((record.created_revision, record.deleted), (3, false), "made anew");
}

pub(super) async fn deleting_nothing_is_refused(bench: &Bench) {
    bench.commit(vec![put("a", "1")]).await.unwrap();
    let refused = bench.commit(vec![put("b", "1"), delete("nothing")]).await;
    assert!(
        matches!(refused, Err(StoreError::NothingToDelete { .. })),
        "{refused:?}"
    );
    bench.commit(vec![delete("a")]).await.unwrap();
    let refused = bench.commit(vec![delete("a")]).await;
    assert!(
        matches!(refused, Err(StoreError::NothingToDelete { .. })),
        "{refused:?}"
    );
    assert_eq!(bench.value("b").await, None);
}

pub(super) async fn senseless_commits_are_refused(bench: &Bench) {
    let refused = [
        vec![],
        vec![put("a", "1"), put("a", "2")],
        vec![put("", "1")],
        vec![put("a\nb", "1")],
        vec![put(&"k".repeat(2_000), "1")],
        vec![put("a", &"v".repeat(MAX_VALUE_BYTES + 1))],
        (0..=MAX_WRITES).map(|n| put(&n.to_string(), "1")).collect(),
        (0..60)
            .map(|n| put(&n.to_string(), &"v".repeat(MAX_VALUE_BYTES)))
            .collect(),
    ];
    for writes in refused {
        let outcome = bench.commit(writes).await;
        let expected = matches!(outcome, Err(StoreError::Invalid(_) | StoreError::TooLarge(_)));
        assert!(expected, "{outcome:?}");
    }
    assert_eq!(bench.store().info().await.unwrap().revision, 0);
}

pub(super) async fn pages_are_in_order_and_complete(bench: &Bench) {
    let texts = ["01/a", "01/b", "02/a", "02/b", "02/c", "10/a"];
    bench
        .commit(texts.iter().rev().map(|text| put(text, "1")).collect())
        .await
        .unwrap();
    let other = Key {
        tenant: "other".to_owned(),
        ..key("02/a")
    };
    bench
        .commit(vec![Write {
            key: other,
            value: Some(Bytes::new()),
        }])
        .await
        .unwrap();
    bench
        .commit(vec![Write {
            key: Key {
                kind: 3,
                ..key("02/a")
            },
            value: Some(Bytes::new()),
        }])
        .await
        .unwrap();
    let mut found = Vec::new();
    let mut query = Query { limit: 4, ..all() };
    loop {
        let page = bench.store().list(&query).await.unwrap();
        assert!(page.records.len() <= 4);
        assert_eq!(page.revision, 3);
        query.after = page
            .records
            .last()
            .map(|record| (record.key.tenant.clone(), record.key.key.clone()));
        found.extend(
            page.records
                .into_iter()
                .map(|record| (record.key.tenant, record.key.key)),
        );
        if !page.more {
            break;
        }
    }
    let mut expected: Vec<_> = texts
        .iter()
        .map(|text| ("default".to_owned(), (*text).to_owned()))
        .collect();
    expected.push(("other".to_owned(), "02/a".to_owned()));
    assert_eq!(found, expected);
    let prefixed = Query {
        key_prefix: "02/".to_owned(),
        tenant: Some("default".to_owned()),
        ..all()
    };
    let found = bench.store().list(&prefixed).await.unwrap();
    let keys: Vec<_> = found
        .records
        .iter()
        .map(|record| record.key.key.as_str())
        .collect();
    assert_eq!((keys, found.more), (vec!["02/a", "02/b", "02/c"], false));
}

pub(super) async fn keys_of_any_characters_are_kept_verbatim(bench: &Bench) {
    let texts = [
        "'; DROP TABLE record; --",
        "a%b_c",
        "A",
        "a",
        "ä",
        "\"q\"",
        "Z",
        "$1",
        "a\u{10FFFE}",
    ];
    bench
        .commit(texts.iter().map(|text| put(text, text)).collect())
        .await
        .unwrap();
    for text in texts {
        assert_eq!(bench.value(text).await.as_deref(), Some(text.as_bytes()));
    }
    let found = bench.store().list(&all()).await.unwrap().records;
    let found: Vec<_> = found.into_iter().map(|record| record.key.key).collect();
    let mut sorted = found.clone();
    sorted.sort();
    assert_eq!(found, sorted, "byte by byte");
    let prefixed = Query {
        key_prefix: "a".to_owned(),
        ..all()
    };
    assert_eq!(
        bench.store().list(&prefixed).await.unwrap().records.len(),
        3,
        "a%b_c, a and the last one"
    );
}
