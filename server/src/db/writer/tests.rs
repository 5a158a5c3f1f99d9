//! Groups, savepoints and what is published.

use img_proto::Refusal;
use img_records::{LogEntry, LogKind};
use img_types::{DeviceId, Epoch, Incarnation, LogPosition, WallMillis};
use tokio::sync::oneshot;

use crate::db::{self, Address, Database, NO_IMAGE, NewHome, Stop, Tx, big};

async fn open() -> (tempfile::TempDir, Address, Database) {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::file(&dir.path().join("home.sqlite"));
    let home = NewHome {
        name: "test",
        address: "127.0.0.1:1",
        incarnation: Incarnation::from_bytes([1; 32]),
        founding_hash: [2; 32],
    };
    db::create(&address, &home).await.unwrap();
    let database = Database::open(&address).await.unwrap();
    (dir, address, database)
}

/// What the log itself then cannot write.
const TAKE_A_POSITION: &str = "INSERT INTO log (position, entry, root, image, device) \
     VALUES ($1, x'00', x'00', x'00', x'00')";

async fn append(tx: &mut Tx, subject: u8) -> Result<LogPosition, Stop> {
    let entry = LogEntry {
        kind: LogKind::Grant,
        image: NO_IMAGE,
        subject: [subject; 32],
        device: DeviceId::from_bytes([0; 32]),
        epoch: Epoch(0),
        time: WallMillis(0),
    };
    tx.append_log(&entry).map(|at| at.position)
}

#[tokio::test]
async fn refused_work_leaves_nothing_and_disturbs_nobody_in_its_group() {
    let (_dir, address, database) = open().await;
    let calls = (0..100u8).map(|n| {
        let writer = database.writer().clone();
        async move {
            writer
                .call(move |tx| {
                    Box::pin(async move {
                        let position = append(tx, n).await?;
                        if n % 3 == 0 {
                            return Err(Refusal::Busy.into());
                        }
                        Ok(position)
                    })
                })
                .await
        }
    });
    let answers = futures_util::future::join_all(calls).await;
    let mut kept: Vec<_> = answers.into_iter().filter_map(Result::ok).collect();
    kept.sort();
    let expected: Vec<_> = (1..=66).map(LogPosition).collect();
    assert_eq!(kept, expected, "positions without gaps");
    let published = *database.writer().published().borrow();
    assert_eq!(published.standing.position, LogPosition(66));
    assert!(published.group < 100, "calls share transactions");

    database.close().await;
    let closed = database.writer().call(|tx| Box::pin(append(tx, 0))).await;
    assert!(matches!(closed, Err(Stop::Closing)));
    let database = Database::open(&address).await.unwrap();
    let reopened = *database.writer().published().borrow();
    assert_eq!(reopened.standing, published.standing);
}

#[tokio::test]
async fn a_group_of_refusals_is_no_transaction() {
    let (_dir, _, database) = open().await;
    let before = *database.writer().published().borrow();
    let refused = database.writer().call(|tx| {
        Box::pin(async move {
            append(tx, 1).await?;
            Err::<(), _>(Refusal::Busy.into())
        })
    });
    assert!(matches!(refused.await, Err(Stop::Refused(Refusal::Busy))));
    let after = *database.writer().published().borrow();
    assert_eq!(
        (after.group, after.standing),
        (before.group, before.standing)
    );
    let kept = database.writer().call(|tx| Box::pin(append(tx, 2))).await;
    assert_eq!(kept.unwrap(), LogPosition(1));
}

#[tokio::test]
async fn a_group_that_cannot_be_written_leaves_nothing_and_all_of_it_is_told() {
    let (_dir, _, database) = open().await;
    let writer = database.writer();
    for flushed_within in [false, true] {
        let before = *writer.published().borrow();
        // Holds the writer until the others are queued.
        let (go, wait) = oneshot::channel::<()>();
        let (begin, began) = oneshot::channel::<()>();
        let first = writer.call(move |_| {
            Box::pin(async move {
                begin.send(()).unwrap();
                wait.await.unwrap();
                Ok(())
            })
        });
        let good = writer.call(|tx| Box::pin(async move { append(tx, 1).await.map(drop) }));
        let bad = writer.call(|tx| {
            Box::pin(async move {
                let taken = big(tx.standing().position.0 + 1);
                sqlx::query(TAKE_A_POSITION)
                    .bind(taken)
                    .execute(tx.sql().await?)
                    .await?;
                append(tx, 1).await.map(drop)
            })
        });
        let last = writer.call(move |tx| {
            Box::pin(async move {
                if flushed_within {
                    tx.sql().await?;
                }
                Ok(())
            })
        });
        let others = async {
            began.await.unwrap();
            let release = async { go.send(()).unwrap() };
            tokio::join!(good, bad, last, release)
        };
        let (first, (good, bad, last, ())) = tokio::join!(first, others);
        first.unwrap();
        for lost in [good, bad, last] {
            assert!(matches!(lost, Err(Stop::Broken(_))), "{lost:?}");
        }
        let after = *writer.published().borrow();
        assert_eq!(after.standing, before.standing);
        let kept = writer.call(|tx| Box::pin(append(tx, 2))).await;
        assert_eq!(kept.unwrap().0, before.standing.position.0 + 1);
    }
}

#[tokio::test]
async fn a_full_disk_refuses_the_group_and_the_home_goes_on() {
    let (_dir, _, database) = open().await;
    let limit = |pages: &'static str| {
        database.writer().call(move |tx| {
            Box::pin(async move {
                sqlx::query(pages).execute(tx.sql().await?).await?;
                Ok(())
            })
        })
    };
    limit("PRAGMA max_page_count = 1").await.unwrap();
    let before = *database.writer().published().borrow();
    let mut full = 0;
    for n in 0..200 {
        let call = database.writer().call(move |tx| Box::pin(append(tx, n)));
        match call.await {
            Ok(_) => assert_eq!(full, 0),
            Err(Stop::Refused(Refusal::NoRoom(_))) => full += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(full > 0);
    let stuck = *database.writer().published().borrow();
    limit("PRAGMA max_page_count = 100000").await.unwrap();
    let call = database.writer().call(|tx| Box::pin(append(tx, 0)));
    let position = call.await.unwrap();
    assert_eq!(position.0, stuck.standing.position.0 + 1);
    assert!(stuck.standing.position >= before.standing.position);
}

#[tokio::test]
async fn only_a_known_kind_of_database_of_this_version_opens() {
    for bad in ["postgres://somewhere", "sqlite:", "/a/path"] {
        let parsed = Address::parse(bad);
        assert!(matches!(parsed, Err(db::OpenError::UnknownAddress(_))));
    }
    let (_dir, address, database) = open().await;
    database.close().await;
    let mut connection = db::connect(&address).await.unwrap();
    sqlx::query("UPDATE home SET schema_version = 4")
        .execute(&mut connection)
        .await
        .unwrap();
    drop(connection);
    let other = db::connect(&address).await;
    assert!(matches!(other, Err(db::OpenError::OtherVersion(4))));
}
