//! Calls that share a transaction: each sees what those before it left, and nothing of what was refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures_util::future::{BoxFuture, join_all};
use img_lease::{Effect, ImageState, Lease, Logged};
use img_proto::{Answer, Call, Refusal};
use img_types::{Epoch, ImageId, LeaseMode, LogPosition, RequestId};

use super::TestHome;
use super::flow::{image, stage};
use super::tree::tree;
use crate::db::images::{self, Image};
use crate::db::requests::{self, RequestKey};
use crate::db::{Needs, Stop, Tx, effects};

/// Pieces of work; more than one group takes.
const WORKS: u64 = 600;

/// What was left by the works that were kept.
#[derive(Debug, Default)]
struct Kept {
    /// Epoch and, while it is leased, the ttl, which is another in each work.
    images: BTreeMap<ImageId, (Epoch, Option<u64>)>,
    answered: BTreeSet<RequestKey>,
    lines: u64,
}

/// One piece of work.
#[derive(Debug, Clone, Copy)]
struct Plan {
    number: u64,
    needs: Needs,
    foretold: bool,
    releases: bool,
    looks_at_rows: bool,
    is_refused: bool,
}

#[tokio::test]
async fn what_a_group_remembers_is_what_its_rows_say() {
    let (mut home, founder) = TestHome::founded().await;
    let second = home.second(&founder).await;
    let mut ids = Vec::new();
    for name in 1..=3 {
        let (draft, head, token) = image(&home, &founder, name).await;
        let work = tree(20, 1, 3);
        let upon = draft.after(head, work.root, token);
        stage(&home, &founder, &upon, &work).await.unwrap();
        stage(&home, &second, &upon, &work).await.unwrap();
        ids.push(draft.image);
    }
    let kept = Arc::new(Mutex::new(Kept::default()));
    let before = home.standing().position;
    let mut luck = blake3::Hasher::new().finalize_xof();
    let works = (0..WORKS).map(|number| {
        let mut dice = [0; 5];
        luck.fill(&mut dice);
        let key = (
            founder.device.id(),
            RequestId::from_bytes([dice[0] / 2; 32]),
        );
        let plan = Plan {
            number,
            needs: Needs {
                request: key,
                image: Some(ids[usize::from(dice[1]) % ids.len()]),
            },
            foretold: dice[2] > 60,
            releases: dice[2] % 4 == 0,
            looks_at_rows: dice[3] < 40,
            is_refused: dice[4] < 80,
        };
        let (writer, kept) = (home.running().home.db.writer().clone(), Arc::clone(&kept));
        async move {
            match plan.foretold {
                true => writer.call_needing(plan.needs, work(plan, kept)).await,
                false => writer.call(work(plan, kept)).await,
            }
        }
    });
    for (number, done) in join_all(works).await.into_iter().enumerate() {
        let fine = matches!(done, Ok(()) | Err(Stop::Refused(Refusal::Busy)));
        assert!(fine, "{number}: {done:?}");
    }
    home.restart().await;
    let kept = std::mem::take(&mut *kept.lock().unwrap());
    assert_eq!(home.standing().position, LogPosition(before.0 + kept.lines));
    let ours = &home.running().home;
    let mut connection = ours.db.reads().acquire().await.unwrap();
    for (id, left) in &kept.images {
        let image = images::load(&mut connection, ours.moment().unwrap(), *id);
        assert_eq!(summary(&image.await.unwrap().unwrap().state), *left);
    }
}

fn work(
    plan: Plan,
    kept: Arc<Mutex<Kept>>,
) -> impl for<'a> FnOnce(&'a mut Tx) -> BoxFuture<'a, Result<(), Stop>> + Send {
    move |tx| Box::pin(async move { run(tx, plan, &kept).await })
}

async fn run(tx: &mut Tx, plan: Plan, kept: &Mutex<Kept>) -> Result<(), Stop> {
    let Plan { needs, number, .. } = plan;
    let id = needs.image.unwrap();
    let image = tx.image(id).await?.unwrap();
    if let Some(left) = kept.lock().unwrap().images.get(&id) {
        assert_eq!(summary(&image.state), *left, "{plan:?}");
    }
    let hash = requests::hash(&Call::Roster { from: 0 }).unwrap();
    let earlier = requests::outcome(tx, needs.request, hash).await?;
    let answered = kept.lock().unwrap().answered.contains(&needs.request);
    assert_eq!(earlier, answered.then_some(Answer::Done), "{plan:?}");

    let state = changed(&image, number, plan.releases, needs);
    let effect = Effect {
        log: vec![Logged::Grant(state.staged[0].proposal.checkout)],
        image: state.clone(),
        loser: None,
    };
    effects::apply(tx, &effect, needs.request.0).await?;
    if plan.looks_at_rows {
        let remembered = tx.image(id).await?;
        let moment = tx.moment()?;
        let rows = images::load(tx.sql().await?, moment, id).await?;
        assert_eq!(format!("{remembered:?}"), format!("{rows:?}"), "{plan:?}");
    }
    if earlier.is_none() {
        requests::keep(tx, needs.request, hash, &Answer::Done)?;
    }
    if plan.is_refused {
        return Err(Refusal::Busy.into());
    }
    let mut kept = kept.lock().unwrap();
    kept.images.insert(id, summary(&state));
    kept.answered.insert(needs.request);
    kept.lines += 1;
    Ok(())
}

/// The next grant of an image, or its release.
fn changed(image: &Image, number: u64, releases: bool, needs: Needs) -> ImageState {
    let epoch = image.state.epoch.next().unwrap();
    let lease = Lease {
        device: needs.request.0,
        checkout: image.state.staged[0].proposal.checkout,
        epoch,
        mode: LeaseMode::Online,
        ttl_ms: 1_000_000 + number,
        remaining_ms: 1_000_000,
        lapsed: false,
        base: image.state.head_commit(),
    };
    ImageState {
        epoch,
        lease: (!releases).then_some(lease),
        ..image.state.clone()
    }
}

fn summary(state: &ImageState) -> (Epoch, Option<u64>) {
    (state.epoch, state.lease.map(|lease| lease.ttl_ms))
}
