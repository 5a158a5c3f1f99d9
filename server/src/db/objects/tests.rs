//! Completeness against a naive model: any objects, in any order, in any batches.

use std::collections::{BTreeMap, BTreeSet};

use img_store::Place;
use img_types::{Incarnation, ObjectId};
use proptest::prelude::*;

use super::{NewObject, StoreNumber, absent_below, complete, insert};
use crate::db::{self, Address, Database, NewHome};

const OBJECTS: usize = 16;

fn id(number: usize) -> ObjectId {
    ObjectId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

/// An object with its number and children; a child may be one that never comes.
fn object(number: usize, children: &[usize]) -> NewObject {
    NewObject {
        id: id(number),
        store: StoreNumber(1),
        place: Place { offset: 0, len: 10 },
        children: children.iter().map(|child| id(*child)).collect(),
    }
}

fn model_complete(here: &BTreeMap<usize, Vec<usize>>, number: usize) -> bool {
    here.get(&number)
        .is_some_and(|children| children.iter().all(|child| model_complete(here, *child)))
}

async fn check<'a>(
    database: &Database,
    batches: impl Iterator<Item = &'a [(usize, Vec<usize>)]>,
) -> Result<(), TestCaseError> {
    let mut here = BTreeMap::new();
    let ids: Vec<_> = (0..OBJECTS).map(id).collect();
    for batch in batches {
        let rows: Vec<_> = batch
            .iter()
            .map(|(number, children)| object(*number, children))
            .collect();
        let fresh: BTreeSet<_> = batch.iter().map(|(number, _)| *number).collect();
        let fresh = fresh.iter().filter(|n| !here.contains_key(*n)).count();
        let new_bytes = database
            .writer()
            .call(move |tx| Box::pin(async move { insert(tx, &rows).await }))
            .await
            .unwrap();
        prop_assert_eq!(new_bytes, 10 * fresh as u64);
        here.extend(batch.iter().cloned());
        let mut connection = database.reads().acquire().await.unwrap();
        let found = complete(&mut connection, &ids).await.unwrap();
        for number in 0..OBJECTS {
            let expected = model_complete(&here, number);
            prop_assert_eq!(found.contains(&id(number)), expected, "object {}", number);
            let absent = absent_below(&mut connection, id(number), 1_000).await;
            prop_assert_eq!(absent.unwrap().is_empty(), expected);
        }
    }
    Ok(())
}

/// Objects with the numbers of their children, in the order of arrival.
type Arrivals = Vec<(usize, Vec<usize>)>;

/// Objects whose children have smaller numbers, so that nothing names itself. Some never come, some
/// come twice, and all come in any order.
fn arrivals() -> impl Strategy<Value = Arrivals> {
    let children = (1..OBJECTS).map(|number| proptest::collection::vec(0..number, 0..4));
    let objects = children.collect::<Vec<_>>().prop_map(|children| {
        let leaf = (0, Vec::new());
        let parents = (1..OBJECTS).zip(children);
        std::iter::once(leaf).chain(parents).collect::<Arrivals>()
    });
    objects.prop_flat_map(|objects| {
        let first = proptest::sample::subsequence(objects.clone(), OBJECTS / 2..=OBJECTS);
        let again = proptest::sample::subsequence(objects, 0..OBJECTS / 2);
        let all = (first, again).prop_map(|(first, again)| [first, again].concat());
        all.prop_shuffle()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn complete_is_what_a_naive_walk_says(arrivals in arrivals(), width in 1usize..6) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
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
            let outcome = check(&database, arrivals.chunks(width)).await;
            database.close().await;
            outcome
        })?;
    }
}
