//! Where objects lie, and which are complete: themselves here and all their descendants.
//!
//! `missing` counts the distinct children of an object that are not complete; zero means complete.
//! Devices push children first, so that most objects are complete when their row is made; those
//! that are not wait for each such child in `waits` and are counted down when it becomes complete.
//! Whoever needs the children of an object reads them from its header; no table repeats them.

use std::collections::{BTreeMap, BTreeSet};

use img_store::{PackId, Place};
use img_types::ObjectId;
use sqlx::SqliteConnection;

use super::batch::{Batch, Shapes, bind_ids};
use super::{Columns as _, Stop, Tx, big};

/// Names a spool or a pack within this home; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StoreNumber(pub(crate) u64);

/// An object that became durable in a spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewObject {
    pub(crate) id: ObjectId,
    pub(crate) store: StoreNumber,
    pub(crate) place: Place,
    /// What must be here for it to be complete; empty for a trace, whose list is weak.
    pub(crate) children: Vec<ObjectId>,
}

/// Where an object lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) store: StoreNumber,
    /// Nothing while the store is a spool.
    pub(crate) pack: Option<PackId>,
    pub(crate) place: Place,
}

static INSERT: Batch = Batch::new(|| {
    Shapes::groups(
        "INSERT INTO objects (number, id, store, start, len, missing) VALUES",
        6,
        "",
    )
});
static WAIT: Batch =
    Batch::new(|| Shapes::groups("INSERT INTO waits (child, parent) VALUES", 2, ""));
static KNOWN: Batch = Batch::new(|| Shapes::list("SELECT id, missing FROM objects WHERE id IN"));
static WAITING: Batch =
    Batch::new(|| Shapes::list("SELECT child, parent FROM waits WHERE child IN"));
static LOCATE: Batch = Batch::new(|| {
    Shapes::list(
        "SELECT o.id, o.store, s.pack, o.start, o.len FROM objects o \
         JOIN stores s ON s.number = o.store WHERE o.id IN",
    )
});

/// Makes rows for objects that have none and returns how many bytes were new.
pub(crate) async fn insert(tx: &mut Tx, objects: &[NewObject]) -> Result<u64, Stop> {
    let mut fresh: BTreeMap<ObjectId, &NewObject> = BTreeMap::new();
    for object in objects {
        fresh.entry(object.id).or_insert(object);
    }
    let ids: Vec<ObjectId> = fresh.keys().copied().collect();
    for (id, _) in known(tx.sql().await?, &ids).await? {
        fresh.remove(&id);
    }
    let outside: BTreeSet<ObjectId> = fresh
        .values()
        .flat_map(|object| &object.children)
        .filter(|child| !fresh.contains_key(child))
        .copied()
        .collect();
    let outside: Vec<ObjectId> = outside.into_iter().collect();
    let mut complete: BTreeSet<ObjectId> = known(tx.sql().await?, &outside)
        .await?
        .into_iter()
        .filter_map(|(id, missing)| (missing == 0).then_some(id))
        .collect();

    let mut rows = Vec::with_capacity(fresh.len());
    let mut waits = Vec::new();
    let mut ready = Vec::new();
    let mut bytes = 0;
    // In the order of arrival, so that a child in the same batch counts for its parent.
    for object in objects {
        if fresh.remove(&object.id).is_none() {
            continue;
        }
        let number = tx.number_object();
        let wanted: BTreeSet<ObjectId> = object.children.iter().copied().collect();
        let absent: Vec<ObjectId> = wanted.difference(&complete).copied().collect();
        if absent.is_empty() {
            complete.insert(object.id);
            ready.push(object.id);
        }
        rows.push((number, object, absent.len() as u64));
        waits.extend(absent.into_iter().map(|child| (child, number)));
        bytes += u64::from(object.place.len);
    }
    insert_rows(tx, &rows).await?;
    insert_waits(tx, &waits).await?;
    settle(tx, ready).await?;
    Ok(bytes)
}

/// Which of `ids` are here and complete.
pub(crate) async fn complete(
    connection: &mut SqliteConnection,
    ids: &[ObjectId],
) -> sqlx::Result<BTreeSet<ObjectId>> {
    let known = known(connection, ids).await?;
    let complete = known.into_iter().filter(|(_, missing)| *missing == 0);
    Ok(complete.map(|(id, _)| id).collect())
}

/// Some of the objects for which an incomplete object waits, or the object itself if it is absent.
pub(crate) async fn absent_below(
    connection: &mut SqliteConnection,
    root: ObjectId,
    limit: u32,
) -> sqlx::Result<Vec<ObjectId>> {
    let rows = sqlx::query(
        "WITH RECURSIVE open_node(id) AS (SELECT $1 UNION \
           SELECT w.child FROM open_node n JOIN objects o ON o.id = n.id \
           JOIN waits w ON w.parent = o.number) \
         SELECT n.id FROM open_node n LEFT JOIN objects o ON o.id = n.id \
         WHERE o.id IS NULL LIMIT $2",
    )
    .bind(&root.as_bytes()[..])
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    let ids = rows.iter().map(|row| row.id(0, ObjectId::from_bytes));
    ids.collect()
}

/// Finds objects; those that are not here are left out.
pub(crate) async fn locate(
    connection: &mut SqliteConnection,
    ids: &[ObjectId],
) -> sqlx::Result<BTreeMap<ObjectId, Located>> {
    let mut found = BTreeMap::new();
    for (sql, part, fill) in LOCATE.padded(ids) {
        for row in bind_ids(sql, part, fill, ObjectId::as_bytes)
            .fetch_all(&mut *connection)
            .await?
        {
            let located = Located {
                store: StoreNumber(row.number(1)?),
                pack: row.id_opt(2, PackId::from_bytes)?,
                place: Place {
                    offset: row.number(3)?,
                    len: u32::try_from(row.number(4)?).unwrap_or(u32::MAX),
                },
            };
            found.insert(row.id(0, ObjectId::from_bytes)?, located);
        }
    }
    Ok(found)
}

/// Forgets an object whose bytes are damaged where its row says, so that it counts as absent. What was complete
/// with it stays so: new work upon it can still be committed, and a device that has the object sends it again.
pub(crate) async fn lose(tx: &mut Tx, id: ObjectId, located: Located) -> Result<(), Stop> {
    let row = sqlx::query(
        "DELETE FROM objects WHERE id = $1 AND store = $2 AND start = $3 RETURNING number",
    )
    .bind(&id.as_bytes()[..])
    .bind(big(located.store.0))
    .bind(big(located.place.offset))
    .fetch_optional(tx.sql().await?)
    .await?;
    if let Some(row) = row {
        sqlx::query("DELETE FROM waits WHERE parent = $1")
            .bind(big(row.number(0)?))
            .execute(tx.sql().await?)
            .await?;
    }
    Ok(())
}

/// Moves objects from a spool into a pack.
pub(crate) async fn relocate(
    tx: &mut Tx,
    from: StoreNumber,
    to: StoreNumber,
    places: &[(ObjectId, Place)],
) -> Result<(), Stop> {
    for (id, place) in places {
        sqlx::query("UPDATE objects SET store = $3, start = $4 WHERE id = $1 AND store = $2")
            .bind(&id.as_bytes()[..])
            .bind(big(from.0))
            .bind(big(to.0))
            .bind(big(place.offset))
            .execute(tx.sql().await?)
            .await?;
    }
    Ok(())
}

/// Registers a spool, or a pack that objects move into.
pub(crate) async fn add_store(
    tx: &mut Tx,
    store: StoreNumber,
    pack: Option<PackId>,
) -> Result<(), Stop> {
    sqlx::query(
        "INSERT INTO stores (number, pack) VALUES ($1, $2) ON CONFLICT (number) DO NOTHING",
    )
    .bind(big(store.0))
    .bind(pack.map(|pack| pack.as_bytes().to_vec()))
    .execute(tx.sql().await?)
    .await?;
    Ok(())
}

/// Forgets a store that holds nothing any more.
pub(crate) async fn remove_store(tx: &mut Tx, store: StoreNumber) -> Result<(), Stop> {
    sqlx::query("DELETE FROM stores WHERE number = $1")
        .bind(big(store.0))
        .execute(tx.sql().await?)
        .await?;
    Ok(())
}

/// The highest number ever given to a store.
pub(crate) async fn newest_store(connection: &mut SqliteConnection) -> sqlx::Result<StoreNumber> {
    sqlx::query("SELECT COALESCE(MAX(number), 0) FROM stores")
        .fetch_one(connection)
        .await?
        .number(0)
        .map(StoreNumber)
}

/// Objects whose rows say that they lie in a store.
pub(crate) async fn held_by(
    connection: &mut SqliteConnection,
    store: StoreNumber,
) -> sqlx::Result<Vec<(ObjectId, Place)>> {
    let rows = sqlx::query("SELECT id, start, len FROM objects WHERE store = $1 ORDER BY start")
        .bind(big(store.0))
        .fetch_all(connection)
        .await?;
    let held = rows.iter().map(|row| {
        let place = Place {
            offset: row.number(1)?,
            len: u32::try_from(row.number(2)?).unwrap_or(u32::MAX),
        };
        Ok((row.id(0, ObjectId::from_bytes)?, place))
    });
    held.collect()
}

/// Bytes of all objects.
pub(crate) async fn bytes(connection: &mut SqliteConnection) -> sqlx::Result<u64> {
    sqlx::query("SELECT CAST(COALESCE(SUM(len), 0) AS BIGINT) FROM objects")
        .fetch_one(connection)
        .await?
        .number(0)
}

/// Every pack with its number.
pub(crate) async fn packs(
    connection: &mut SqliteConnection,
) -> sqlx::Result<Vec<(StoreNumber, PackId)>> {
    let rows =
        sqlx::query("SELECT number, pack FROM stores WHERE pack IS NOT NULL ORDER BY number")
            .fetch_all(connection)
            .await?;
    let packs = rows
        .iter()
        .map(|row| Ok((StoreNumber(row.number(0)?), row.id(1, PackId::from_bytes)?)));
    packs.collect()
}

async fn known(
    connection: &mut SqliteConnection,
    ids: &[ObjectId],
) -> sqlx::Result<Vec<(ObjectId, u64)>> {
    let mut known = Vec::new();
    for (sql, part, fill) in KNOWN.padded(ids) {
        for row in bind_ids(sql, part, fill, ObjectId::as_bytes)
            .fetch_all(&mut *connection)
            .await?
        {
            known.push((row.id(0, ObjectId::from_bytes)?, row.number(1)?));
        }
    }
    Ok(known)
}

async fn insert_rows(tx: &mut Tx, rows: &[(u64, &NewObject, u64)]) -> sqlx::Result<()> {
    for (sql, part) in INSERT.exact(rows) {
        let mut query = sqlx::query(sql);
        for (number, object, missing) in part {
            query = query
                .bind(big(*number))
                .bind(&object.id.as_bytes()[..])
                .bind(big(object.store.0))
                .bind(big(object.place.offset))
                .bind(i64::from(object.place.len))
                .bind(big(*missing));
        }
        query.execute(tx.sql().await?).await?;
    }
    Ok(())
}

async fn insert_waits(tx: &mut Tx, waits: &[(ObjectId, u64)]) -> sqlx::Result<()> {
    for (sql, part) in WAIT.exact(waits) {
        let mut query = sqlx::query(sql);
        for (child, parent) in part {
            query = query.bind(&child.as_bytes()[..]).bind(big(*parent));
        }
        query.execute(tx.sql().await?).await?;
    }
    Ok(())
}

/// Counts down those who waited for objects that have become complete, level by level.
async fn settle(tx: &mut Tx, mut ready: Vec<ObjectId>) -> sqlx::Result<()> {
    while !ready.is_empty() {
        let mut waiting = Vec::new();
        for (sql, part, fill) in WAITING.padded(&ready) {
            for row in bind_ids(sql, part, fill, ObjectId::as_bytes)
                .fetch_all(tx.sql().await?)
                .await?
            {
                waiting.push((row.id(0, ObjectId::from_bytes)?, row.number(1)?));
            }
        }
        ready.clear();
        for (child, parent) in waiting {
            sqlx::query("DELETE FROM waits WHERE child = $1 AND parent = $2")
                .bind(&child.as_bytes()[..])
                .bind(big(parent))
                .execute(tx.sql().await?)
                .await?;
            let row = sqlx::query(
                "UPDATE objects SET missing = missing - 1 WHERE number = $1 RETURNING id, missing",
            )
            .bind(big(parent))
            .fetch_one(tx.sql().await?)
            .await?;
            if row.number(1)? == 0 {
                ready.push(row.id(0, ObjectId::from_bytes)?);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
