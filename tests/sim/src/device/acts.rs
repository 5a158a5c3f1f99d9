//! What people do at a device.

use img_lease::grantor::{Acquire, Expectation};
use img_lease::holder::{Holder, Kind};
use img_lease::{Proposal, Terms};
use img_testkit::home::Call;
use img_types::{CheckoutId, CommitId, ImageId, Instance, RequestId, Seq, Token};

use super::{Ctx, Device, Step, naming};
use crate::content::Content;
use crate::ids::short;
use crate::process::{Desk, Job, Why, Wish};
use crate::stored::{Row, Stage};
use crate::wire::{Ask, View};

/// How a checkout is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Takes the lease.
    Lease {
        /// Also over staged work of another.
        take_over: bool,
    },
    /// Takes none.
    ReadOnly,
    /// Takes somebody's lease.
    Steal {
        /// What the loser had becomes a branch.
        branch: bool,
    },
    /// Makes the image.
    Create,
}

impl Device {
    /// Opens a checkout of an image as it was listed.
    pub fn open(&mut self, ctx: &mut Ctx<'_>, image: ImageId, terms: Terms, how: Opening) -> Step {
        let Some(process) = self.process.as_ref() else {
            return Ok(());
        };
        let view = process.images.get(&image).cloned();
        let rows = self.disk.read().checkouts.values();
        let second = rows
            .filter(|row| !row.read_only)
            .any(|row| row.image == image);
        // Nothing is promised to a home that is not there.
        if process.connection().is_none() || process.fenced || process.behind {
            return Ok(());
        }
        if how != Opening::ReadOnly && second {
            return Ok(());
        }
        let checkout = CheckoutId::from_bytes(ctx.names.make());
        let call = match (how, view) {
            (Opening::Create, _) => Call::CreateImage {
                name: naming(image),
                checkout,
                terms,
            },
            (Opening::ReadOnly, Some(view)) => {
                return self.open_read_only(ctx, checkout, terms, &view);
            }
            (Opening::Lease { take_over }, Some(_)) => Call::Acquire {
                image,
                want: Acquire {
                    checkout,
                    terms,
                    expect_head: None,
                    take_over,
                },
            },
            (Opening::Steal { branch }, Some(view)) => {
                match self.steal_call(ctx, checkout, terms, &view, branch) {
                    Some(call) => call,
                    None => return Ok(()),
                }
            }
            (_, None) => return Ok(()),
        };
        let row = Row::opening(image, terms);
        self.disk.write(ctx.luck, |disk| {
            disk.checkouts.insert(checkout, row);
        })?;
        self.mutate(ctx, call, Job::Open(checkout))?;
        Ok(())
    }

    fn open_read_only(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        terms: Terms,
        view: &View,
    ) -> Step {
        let Some(head) = view.head else {
            return Ok(());
        };
        let (image, content) = (view.state.image, ctx.library.open(head.0.root));
        let mut row = Row::opening(image, terms);
        row.stage = Stage::Open;
        row.read_only = true;
        row.holder = Some(Holder::read_only(image, checkout, Some(head.0.commit)));
        row.base = Some(head.0);
        row.content = content.clone();
        ctx.trace.line(ctx.now, &self.label, || {
            format!("c{} opens read-only", short(checkout.as_bytes()))
        });
        self.disk.write(ctx.luck, |disk| {
            disk.cached.extend(content.objects());
            disk.known.insert(head.0.commit, head);
            disk.checkouts.insert(checkout, row);
        })?;
        if let Some(process) = self.process.as_mut() {
            let desk = Desk {
                live: content,
                ..Desk::default()
            };
            process.desks.insert(checkout, desk);
        }
        let call = Call::Pin {
            commit: head.0.commit,
            checkout,
        };
        self.mutate(ctx, call, Job::Aside)?;
        Ok(())
    }

    fn steal_call(
        &mut self,
        ctx: &mut Ctx<'_>,
        checkout: CheckoutId,
        terms: Terms,
        view: &View,
        branch: bool,
    ) -> Option<Call> {
        let loser = *view.lease()?;
        let staged = view.state.staged_by(&loser.checkout);
        let staged = staged.map(|staged| staged.proposal);
        let expect = Expectation {
            epoch: view.state.epoch,
            head: view.state.head_commit(),
            staged: staged.map(|staged| staged.commit),
        };
        let branch = branch.then(|| {
            let image = ImageId::from_bytes(ctx.names.make());
            let head = view.head.map(|(head, _)| head);
            let empty = Content::default();
            ctx.library.keep(&empty);
            let base_root = head.map_or(empty.root(), |head| head.root);
            let first = Proposal {
                commit: CommitId::from_bytes(ctx.names.make()),
                image,
                seq: Seq(0),
                parent: staged.map_or(loser.base, |staged| staged.parent),
                root: staged.map_or(base_root, |staged| staged.root),
                token: None,
                device: self.id,
                checkout: loser.checkout,
                instance: Instance(0),
                clock: self.clocks.moment(ctx.now).wall,
            };
            (naming(image), first)
        });
        if branch.is_some() && view.head.is_none() {
            return None;
        }
        Some(Call::Steal {
            image: view.state.image,
            checkout,
            terms,
            expect,
            branch,
        })
    }

    /// An application writes.
    pub fn write(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        let open = self.disk.read().checkouts.get(&checkout);
        if open.is_none_or(|row| row.stage != Stage::Open) {
            return Ok(());
        }
        let write = ctx.truth.next_write();
        if let Some(desk) = self.desk(checkout) {
            desk.live = desk.live.with(write);
            ctx.trace.line(ctx.now, &self.label, || {
                format!("c{} writes {write}", short(checkout.as_bytes()))
            });
        }
        Ok(())
    }

    /// An application calls fsync.
    pub fn sync(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        if row_is_ending(self, checkout) {
            return Ok(());
        }
        let Some(live) = self.desk(checkout).map(|desk| desk.live.clone()) else {
            return Ok(());
        };
        let content = live.clone();
        self.row(ctx, checkout, |row| row.content = content)?;
        ctx.truth.durable(live.writes());
        Ok(())
    }

    /// A person takes a checkpoint.
    pub fn checkpoint(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        if row_is_ending(self, checkout) {
            return Ok(());
        }
        self.cut(ctx, checkout)
    }

    /// A person wants something of a checkout; one wish at a time.
    pub fn wish(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId, wish: Wish) -> Step {
        let row = self.disk.read().checkouts.get(&checkout);
        let Some(kind) = row.and_then(|row| Some(row.holder.as_ref()?.kind())) else {
            return Ok(());
        };
        let adopts = matches!(wish, Wish::Commit { adopt: true, .. } | Wish::Branch);
        if kind == Kind::Orphan && !adopts {
            return Ok(());
        }
        let busy = self
            .desk(checkout)
            .is_none_or(|desk| desk.wish.is_some() || desk.task.is_some());
        if busy || row_is_ending(self, checkout) {
            return Ok(());
        }
        self.cut(ctx, checkout)?;
        ctx.trace.line(ctx.now, &self.label, || {
            format!("c{} wishes {wish:?}", short(checkout.as_bytes()))
        });
        if let Some(desk) = self.desk(checkout) {
            desk.wish = Some(wish);
            desk.rests_until = 0;
        }
        Ok(())
    }

    /// A person keeps the lease of a late commit.
    pub fn keep_lease(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        self.row(ctx, checkout, |row| row.keeps_lease = true)
    }

    /// A person closes a checkout; refused while it holds what cannot be committed.
    pub fn release(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return Ok(());
        };
        let kind = row.holder.as_ref().map(|holder| holder.kind());
        let saves = matches!(kind, Some(Kind::Leased | Kind::Lapsed));
        if row.stage != Stage::Open || (!saves && self.is_unsaved(checkout)) {
            return Ok(());
        }
        self.sync(ctx, checkout)?;
        ctx.trace.line(ctx.now, &self.label, || {
            format!("c{} is released", short(checkout.as_bytes()))
        });
        self.row(ctx, checkout, |row| row.stage = Stage::Releasing)
    }

    /// A person closes a checkout and drops what changed.
    pub fn discard(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return Ok(());
        };
        if row.stage == Stage::Opening {
            return Ok(());
        }
        let cuts = row.checkpoints.values();
        let cuts = cuts.flat_map(|content| content.writes().iter().copied());
        let mut dropped: Vec<_> = cuts.chain(row.content.writes().iter().copied()).collect();
        let live = self.process.as_ref();
        let live = live.and_then(|process| process.desks.get(&checkout));
        dropped.extend(live.into_iter().flat_map(|desk| desk.live.writes()));
        let base = ctx.library.open(row.base_root());
        dropped.retain(|write| !base.writes().contains(write));
        ctx.truth.excuse(dropped);
        ctx.trace.line(ctx.now, &self.label, || {
            format!("c{} is discarded", short(checkout.as_bytes()))
        });
        self.row(ctx, checkout, |row| row.stage = Stage::Discarding)?;
        if let Some(desk) = self.desk(checkout) {
            desk.wish = None;
            desk.task = None;
        }
        Ok(())
    }

    /// A person goes back to an earlier content, and gives up what came after it.
    pub fn restore(&mut self, ctx: &mut Ctx<'_>, checkout: CheckoutId) -> Step {
        let Some(row) = self.disk.read().checkouts.get(&checkout) else {
            return Ok(());
        };
        let base = ctx.library.open(row.base_root());
        let is_open = row.stage == Stage::Open && row.pending.is_none();
        let Some(live) = self.desk(checkout).map(|desk| desk.live.clone()) else {
            return Ok(());
        };
        if !is_open || base.writes().is_empty() {
            return Ok(());
        }
        let count = ctx.luck.below(base.writes().len() as u64) + 1;
        let earlier = base.first(usize::try_from(count).unwrap_or(1));
        self.cut(ctx, checkout)?;
        let row = self.disk.read().checkouts.get(&checkout);
        let cuts = row
            .into_iter()
            .flat_map(|row| row.checkpoints.values())
            .flat_map(|content| content.writes().iter().copied());
        let mut dropped: Vec<_> = cuts.chain(live.writes().iter().copied()).collect();
        dropped.retain(|write| !base.writes().contains(write));
        ctx.truth.excuse(dropped);
        ctx.library.keep(&earlier);
        ctx.trace.line(ctx.now, &self.label, || {
            format!(
                "c{} goes back to {count} writes",
                short(checkout.as_bytes())
            )
        });
        let content = earlier.clone();
        self.row(ctx, checkout, |row| row.content = content)?;
        if let Some(desk) = self.desk(checkout) {
            desk.live = earlier;
        }
        Ok(())
    }

    /// A person deletes an image.
    pub fn delete(&mut self, ctx: &mut Ctx<'_>, image: ImageId, force: bool) -> Step {
        if !self.is_member_connected() {
            return Ok(());
        }
        self.mutate(ctx, Call::DeleteImage { image, force }, Job::Aside)?;
        Ok(())
    }

    /// A person looks at the images.
    pub fn look(&mut self, ctx: &mut Ctx<'_>) -> Step {
        let first = self.moment(ctx);
        let looking = self.process.as_ref().is_some_and(|process| {
            let mut calls = process.calls.values();
            calls.any(|call| matches!(call.why, Why::Look))
        });
        if !looking {
            self.ask(Ask::Images, Why::Look, first);
        }
        Ok(())
    }

    /// A member sends a commit that it may not: under a token that it has only seen, or had before.
    pub fn misuse(&mut self, ctx: &mut Ctx<'_>, image: ImageId, checkout: CheckoutId) -> Step {
        let Some(process) = self.process.as_ref() else {
            return Ok(());
        };
        let (Some(connection), Some(view)) =
            (process.connection(), process.images.get(&image).cloned())
        else {
            return Ok(());
        };
        let Some((head, receipt)) = view.head else {
            return Ok(());
        };
        let held = view.lease().is_some_and(|lease| lease.checkout == checkout);
        let parent = if held {
            // The holder itself, upon a commit of before with the contents of the head.
            let known = self.disk.read().known.values();
            let mut twins = known.filter(|(twin, _)| {
                (twin.image, twin.root) == (image, head.root) && twin.commit != head.commit
            });
            match twins.next() {
                Some((twin, _)) => twin.commit,
                None => return Ok(()),
            }
        } else {
            head.commit
        };
        let (number, before) = (process.number, self.disk.read().seen);
        let content = ctx.library.open(head.root);
        let record = self.record(ctx, checkout, None, &content);
        let forged = Proposal {
            image,
            seq: head.seq.next().unwrap_or(head.seq),
            parent: Some(parent),
            token: Some(Token {
                incarnation: receipt.at.incarnation,
                epoch: view.state.epoch,
            }),
            ..record
        };
        let request = RequestId::from_bytes(*forged.commit.as_bytes());
        ctx.trace
            .line(ctx.now, &self.label, || "misuses a token".to_owned());
        ctx.truth.forged(forged.commit);
        let request = crate::wire::Request {
            from: self.number,
            process: number,
            connection,
            number: u64::MAX,
            before,
            ask: Ask::Mutate(request, Box::new(Call::Commit(forged))),
        };
        ctx.net.to_home(ctx.now, ctx.luck, request);
        Ok(())
    }

    /// A person accepts the home as it is now.
    pub fn accept_restore(&mut self, ctx: &mut Ctx<'_>) -> Step {
        ctx.trace.line(ctx.now, &self.label, || {
            "accepts the restored home".to_owned()
        });
        self.disk.write(ctx.luck, |disk| disk.seen = None)?;
        ctx.truth.accepted(self.number);
        if let Some(process) = self.process.as_mut() {
            process.behind = false;
        }
        Ok(())
    }

    /// A person has this device give back what the home lost.
    pub fn forward(&mut self, ctx: &mut Ctx<'_>) -> Step {
        self.accept_restore(ctx)?;
        ctx.trace.line(ctx.now, &self.label, || {
            "gives back what it knows".to_owned()
        });
        let disk = self.disk.read();
        let mut images: Vec<_> = disk.known.values().map(|(it, _)| it.image).collect();
        images.sort();
        images.dedup();
        let first = self.moment(ctx);
        for image in images {
            let known = self.disk.read().known.values();
            let mut chain: Vec<_> = known
                .filter(|(proposal, _)| proposal.image == image)
                .copied()
                .collect();
            chain.sort_by_key(|(proposal, _)| proposal.seq);
            let objects = chain.iter().flat_map(|(proposal, _)| {
                ctx.library
                    .open(proposal.root)
                    .objects()
                    .collect::<Vec<_>>()
            });
            let ask = Ask::Missing(objects.collect());
            self.ask(ask, Why::Forward(image, chain), first);
        }
        Ok(())
    }

    fn is_member_connected(&self) -> bool {
        self.process.as_ref().is_some_and(|process| {
            process.connection().is_some() && !process.fenced && !process.behind
        })
    }
}

fn row_is_ending(device: &Device, checkout: CheckoutId) -> bool {
    let row = device.disk.read().checkouts.get(&checkout);
    row.is_none_or(|row| row.stage != Stage::Open)
}
