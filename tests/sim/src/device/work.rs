//! How a wish becomes a commit, a branch or a staged record, step by step.

use img_lease::Proposal;
use img_lease::grantor::Acquire;
use img_lease::holder::{Before, Kind};
use img_testkit::home::Call;
use img_types::{CheckoutId, CommitId, ImageId, Seq, Token};

use super::{Ctx, Device, Fault, Step, naming};
use crate::content::Content;
use crate::process::{Job, Task, Then, Why, Wish};
use crate::stored::{Pending, Stage};
use crate::wire::Ask;

impl Device {
    /// Begins what can be begun for a checkout: at most one thing at a time.
    pub(super) fn advance(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        let Some(process) = self.process.as_ref() else {
            return Ok(());
        };
        let Some(desk) = process.desks.get(&checkout) else {
            return Ok(());
        };
        let wish = desk.wish;
        let idle = desk.task.is_none() && desk.rests_until <= ctx.now;
        if process.connection().is_none() || process.behind || !idle {
            return Ok(());
        }
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return Ok(());
        };
        let stage = row.stage;
        if process.fenced && wish != Some(Wish::Branch) {
            if wish.is_none() && stage == Stage::Open {
                return Ok(());
            }
            // Nothing can be committed from here: a person has to choose another way.
            return self.give_up(ctx, checkout);
        }
        match stage {
            Stage::Opening => return Ok(()),
            Stage::Discarding => return self.farewell(ctx, checkout),
            Stage::Open | Stage::Releasing => {}
        }
        if !process.fenced
            && let Some(pending) = row.pending
        {
            let content = ctx.library.open(pending.proposal.root);
            return self.upload(ctx, checkout, content, Then::Commit);
        }
        match wish {
            Some(Wish::Commit { adopt, .. }) => return self.begin_commit(ctx, checkout, adopt),
            Some(Wish::Branch) => {
                self.cut(ctx, checkout)?;
                self.seal(ctx, checkout)?;
                let content = self.newest(ctx, checkout);
                return self.upload(ctx, checkout, content, Then::Branch);
            }
            Some(Wish::Stage) => {
                self.seal(ctx, checkout)?;
                let content = self.newest(ctx, checkout);
                return self.upload(ctx, checkout, content, Then::Stage);
            }
            None => {}
        }
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return Ok(());
        };
        let tenure = row.holder.as_ref().and_then(|holder| holder.tenure());
        let borrowed = tenure.filter(|tenure| {
            tenure.before == Some(Before::ReadOnly) && row.read_only && !row.keeps_lease
        });
        if let Some(tenure) = borrowed.copied() {
            let image = row.image;
            return self.give_back(ctx, checkout, image, tenure.token, Job::GiveBack(checkout));
        }
        if stage == Stage::Releasing {
            if self.is_unsaved(checkout) {
                self.cut(ctx, checkout)?;
                if let Some(desk) = self.desk(checkout) {
                    desk.wish = Some(Wish::Commit {
                        adopt: false,
                        take_over: false,
                    });
                }
                return self.begin_commit(ctx, checkout, false);
            }
            return self.farewell(ctx, checkout);
        }
        Ok(())
    }

    /// What is to be committed: the newest cut, or the base where there is none.
    fn newest(&self, ctx: &Ctx<'_>, checkout: CheckoutId) -> Content {
        let row = self.disk.read().checkouts.get(&checkout);
        row.map_or_else(Content::default, |row| match row.newest_cut() {
            Some((_, content)) => content.clone(),
            None => ctx.library.open(row.base_root()),
        })
    }

    /// Whether something here is in no commit of this checkout.
    pub(super) fn is_unsaved(&self, checkout: CheckoutId) -> bool {
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return false;
        };
        if row.stage == Stage::Discarding {
            return false;
        }
        let live = self.process.as_ref();
        let live = live.and_then(|process| process.desks.get(&checkout));
        let live = live.map_or(row.content.root(), |desk| desk.live.root());
        let newest = row.newest_cut().map(|(_, content)| content.root());
        let base = row.base_root();
        live != base || newest.is_some_and(|newest| newest != base)
    }

    /// Takes a cut that is durable when this returns, if there is something to cut.
    pub(super) fn cut(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        let Some(live) = self.desk(checkout).map(|desk| desk.live.clone()) else {
            return Ok(());
        };
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return Ok(());
        };
        let last = row
            .newest_cut()
            .map_or(row.base_root(), |(_, content)| content.root());
        let generation = row.generation + 1;
        let is_new = live.root() != last;
        let content = live.clone();
        self.row(ctx, checkout, |row| {
            row.content = content.clone();
            if is_new {
                row.generation = generation;
                row.checkpoints.insert(generation, content);
            }
        })?;
        ctx.truth.durable(live.writes());
        if is_new {
            ctx.truth.cut(self.number, checkout, generation, &live);
        }
        Ok(())
    }

    /// Puts the objects of every cut into the outbox, then says so in the journal.
    pub(super) fn seal(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return Ok(());
        };
        if row.sealed >= row.generation {
            return Ok(());
        }
        let base = ctx.library.open(row.base_root());
        let unsealed = row.checkpoints.range(row.sealed + 1..);
        let mut objects = Vec::new();
        for (_, content) in unsealed {
            ctx.library.keep(content);
            objects.extend(content.beyond(&base));
        }
        let generation = row.generation;
        self.row(ctx, checkout, |row| row.outbox.extend(objects))?;
        self.row(ctx, checkout, |row| row.sealed = generation)
    }

    fn begin_commit(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId, adopt: bool) -> Step {
        self.seal(ctx, checkout)?;
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return Ok(());
        };
        let newest = row.newest_cut();
        let newest = newest.filter(|(_, content)| content.root() != row.base_root());
        let Some((generation, content)) = newest.map(|(at, content)| (at, content.clone())) else {
            // What was cut is what the base has.
            self.row(ctx, checkout, |row| row.checkpoints.clear())?;
            self.finish(checkout);
            return Ok(());
        };
        let kind = row.holder.as_ref().map(|holder| holder.kind());
        let then = match kind {
            Some(Kind::Leased | Kind::Lapsed) => Then::Sign,
            Some(Kind::Orphan) if !adopt => return self.give_up(ctx, checkout),
            Some(Kind::Orphan | Kind::ReadOnly) => Then::Acquire,
            Some(Kind::Closed) | None => return self.give_up(ctx, checkout),
        };
        if let Some(desk) = self.desk(checkout) {
            desk.target = Some((generation, content.clone()));
        }
        self.upload(ctx, checkout, content, then)
    }

    /// Takes the lease for a late commit, which succeeds exactly while its base is the head.
    pub(super) fn acquire_late(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        let wish = self.desk(checkout).and_then(|desk| desk.wish);
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return Ok(());
        };
        let take_over = matches!(
            wish,
            Some(Wish::Commit {
                take_over: true,
                ..
            })
        );
        let call = Call::Acquire {
            image: row.image,
            want: Acquire {
                checkout,
                terms: row.terms,
                expect_head: row.base_commit(),
                take_over,
            },
        };
        if let Some(desk) = self.desk(checkout) {
            desk.task = Some(Task::Waiting);
        }
        self.mutate(ctx, call, Job::Late(checkout))?;
        Ok(())
    }

    /// Signs a commit of the newest cut and writes it down before it is sent.
    pub(super) fn sign(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        let target = self.desk(checkout).and_then(|desk| desk.target.clone());
        let Some((generation, content)) = target else {
            return self.put_off(ctx, checkout);
        };
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return Ok(());
        };
        let token = row.holder.as_ref().and_then(|holder| holder.token());
        let Some(token) = token else {
            return self.give_up(ctx, checkout);
        };
        let staged = row.staged.filter(|staged| {
            staged.root == content.root()
                && staged.parent == row.base_commit()
                && staged.token == Some(token)
        });
        let proposal = match staged {
            // What was staged becomes the commit as it is.
            Some(staged) => staged,
            None => self.record(ctx, checkout, Some(token), &content),
        };
        let pending = Pending {
            proposal,
            generation,
        };
        if self.fault == Some(Fault::CommitSignedAgain) {
            // In memory as it were: it is gone after a restart.
            if let Some(row) = self.disk.repair().checkouts.get_mut(&checkout) {
                row.pending = Some(pending);
            }
        } else {
            self.row(ctx, checkout, |row| row.pending = Some(pending))?;
        }
        self.send_commit(ctx, checkout)
    }

    pub(super) fn send_commit(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        let row = self.disk.read().checkouts.get(&checkout);
        let Some(pending) = row.and_then(|row| row.pending) else {
            return self.put_off(ctx, checkout);
        };
        if let Some(desk) = self.desk(checkout) {
            desk.task = Some(Task::Waiting);
        }
        // The commit's id is its request's: it is the same whenever it is sent.
        let request = img_types::RequestId::from_bytes(*pending.proposal.commit.as_bytes());
        let first = self.moment(ctx);
        let ask = Ask::Mutate(request, Box::new(Call::Commit(pending.proposal)));
        self.ask(ask, Why::Commit(checkout), first);
        Ok(())
    }

    pub(super) fn send_stage(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        content: &Content,
    ) -> Step {
        let row = self.disk.read().checkouts.get(&checkout);
        let Some(token) = row.and_then(|row| row.holder.as_ref()?.token()) else {
            return self.give_up(ctx, checkout);
        };
        let proposal = self.record(ctx, checkout, Some(token), content);
        self.row(ctx, checkout, |row| row.staged = Some(proposal))?;
        if let Some(desk) = self.desk(checkout) {
            desk.task = Some(Task::Waiting);
        }
        self.mutate(ctx, Call::Stage(proposal), Job::Stage(checkout))?;
        Ok(())
    }

    pub(super) fn send_branch(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        content: &Content,
    ) -> Step {
        let image = ImageId::from_bytes(ctx.names.make());
        let record = self.record(ctx, checkout, None, content);
        let first = Proposal {
            image,
            seq: Seq(0),
            ..record
        };
        let row = self.disk.read().checkouts.get(&checkout);
        let Some(terms) = row.map(|row| row.terms) else {
            return Ok(());
        };
        if let Some(desk) = self.desk(checkout) {
            desk.task = Some(Task::Waiting);
        }
        let call = Call::Branch {
            name: naming(image),
            first,
            terms,
        };
        self.mutate(ctx, call, Job::Branch(checkout))?;
        Ok(())
    }

    /// A commit record of a content of a checkout.
    pub(super) fn record(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        token: Option<Token>,
        content: &Content,
    ) -> Proposal {
        ctx.library.keep(content);
        let row = self.disk.read().checkouts.get(&checkout);
        let base = row.and_then(|row| row.base);
        let image = row.map_or(ImageId::from_bytes([0; 32]), |row| row.image);
        let now = self.clocks.moment(ctx.now);
        let instance = self.process.as_ref().map(|process| process.instance);
        let after_base = base.map_or(i64::MIN, |base| base.clock.0.saturating_add(1));
        Proposal {
            commit: CommitId::from_bytes(ctx.names.make()),
            image,
            seq: base.map_or(Seq(0), |base| base.seq.next().unwrap_or(base.seq)),
            parent: base.map(|base| base.commit),
            root: content.root(),
            token,
            device: self.id,
            checkout,
            instance: instance.unwrap_or(img_types::Instance(0)),
            clock: img_types::WallMillis(now.wall.0.max(after_base)),
        }
    }

    fn give_back(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        image: ImageId,
        token: Token,
        job: Job,
    ) -> Step {
        if let Some(desk) = self.desk(checkout) {
            desk.task = Some(Task::Waiting);
        }
        let call = Call::Release {
            image,
            checkout,
            token,
        };
        self.mutate(ctx, call, job)?;
        Ok(())
    }

    /// Ends what the home keeps for a checkout: its lease, or its pin.
    fn farewell(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return Ok(());
        };
        let (image, base) = (row.image, row.base_commit());
        let holder = row.holder.as_ref();
        if let Some(token) = holder.and_then(|holder| holder.token()) {
            return self.give_back(ctx, checkout, image, token, Job::Farewell(checkout));
        }
        let reads = holder.is_some_and(|holder| holder.kind() == Kind::ReadOnly);
        if let Some(commit) = base.filter(|_| reads) {
            if let Some(desk) = self.desk(checkout) {
                desk.task = Some(Task::Waiting);
            }
            let call = Call::Unpin { commit, checkout };
            self.mutate(ctx, call, Job::Farewell(checkout))?;
            return Ok(());
        }
        self.remove(ctx, checkout)
    }
}
