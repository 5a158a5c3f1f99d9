//! Making an image, empty or from a source; what is sealed goes home as it comes.
//!
//! An import that ends early leaves an image without a commit, which nobody sees; asked for again it starts anew,
//! and finds at home what had arrived.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use img_index::{Attributes, Boundary, Edit, Fact, FileKind, Inode, Key, Node, NodeSink, Value};
use img_proto::{Answer, Call, LeaseTerms, Refusal};
use img_records::{CommitKind, DescriptorPrivate, Maps};
use img_seal::{Reference, Sealed};
use img_types::limits::LEASE_TTL_DEFAULT;
use img_types::{CheckoutId, ImageId, ImageName, LeaseMode, RequestId, Token};
use serde_json::{Value as Json, json};

use super::Images;
use crate::commits::OpenCommit;
use crate::error::{ApiError, Kind};
use crate::events::{Phase, Reporter, after, time_in_words};
use crate::home::{CallError, Home};
use crate::import::{Cancel, Import, ImportError, Imported, Skipped, SourceKind, look};
use crate::objects::Objects;
use crate::random::random;
use crate::state::JournaledRequest;
use crate::stream::{Draft, ImportUpload, Sent, UploadError, deliver};

/// An image that is wanted.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Its name.
    pub name: ImageName,
    /// What it is made from; nothing for an empty one.
    pub from: Option<PathBuf>,
    /// What the source is read as; by its content where nothing is said.
    pub form: Option<SourceKind>,
    /// Whether to fail instead of leaving something out.
    pub strict: bool,
}

/// A new image's ids and lease.
#[derive(Debug, Clone, Copy)]
struct Importing {
    image: ImageId,
    checkout: CheckoutId,
    token: Token,
    boundary: Boundary,
}

impl Images {
    /// Makes an image and returns when it is durable at home.
    ///
    /// # Errors
    /// The name is taken, the source cannot be read, or the home is away or refuses.
    pub async fn create(
        &self,
        request: CreateRequest,
        reporter: &Reporter,
    ) -> Result<Json, ApiError> {
        if let Some(from) = &request.from {
            let (path, form) = (from.clone(), request.form);
            let looked = tokio::task::spawn_blocking(move || look(&path, form));
            let looked = looked.await.map_err(ApiError::failed)?;
            looked.map_err(|error| explain_import(&error, from))?;
        }
        let name = request.name.as_str().to_owned();
        let importing = self.begin_image(&name).await?;
        let made = tokio::select! {
            made = self.fill(&importing, request, reporter) => made,
            never = keep_lease(&self.home, &importing, RENEWAL_INTERVAL) => match never {},
        };
        // Whatever became of it, nobody else has to wait for this lease.
        let release = Call::Release {
            image: importing.image,
            checkout: importing.checkout,
            token: importing.token,
        };
        if let Err(error) = self.mutate(release, &name).await {
            tracing::warn!(%error, "the lease of an import lasts until it lapses");
        }
        made
    }

    /// Makes an image without a commit, leased to this import.
    async fn begin_image(&self, name: &str) -> Result<Importing, ApiError> {
        let (image, checkout) = (
            ImageId::from_bytes(random()),
            CheckoutId::from_bytes(random()),
        );
        let private = DescriptorPrivate {
            name: name.to_owned(),
            boundary: random(),
            options: Vec::new(),
        };
        let descriptor = self
            .trusted(|trust| trust.sign_descriptor(self.home.identity(), image, None, &private))
            .map_err(ApiError::failed)?;
        let call = Call::CreateImage {
            descriptor: descriptor.to_bytes().into(),
            checkout,
            terms: LeaseTerms {
                ttl_ms: u64::try_from(LEASE_TTL_DEFAULT.as_millis()).unwrap_or(u64::MAX),
                mode: LeaseMode::Online,
            },
        };
        let created = self.home.mutate(call).await;
        let created = match created {
            Ok(created) => created,
            Err(error) => return Err(self.name_taken(name, self.explain(&error, name)).await),
        };
        let settled = self.home.settle(created.request).await;
        settled.map_err(ApiError::failed)?;
        match created.answer {
            Answer::Granted { token, .. } => Ok(Importing {
                image,
                checkout,
                token,
                boundary: Boundary::from_bytes(private.boundary),
            }),
            _ => Err(self.explain(&CallError::Protocol("no grant"), name)),
        }
    }

    /// What is told of a name that is taken: an import that is not done has it too, and no list shows it.
    pub(super) async fn name_taken(&self, name: &str, taken: ApiError) -> ApiError {
        if taken.kind != Kind::NameTaken {
            return taken;
        }
        for row in self.leased().await.unwrap_or_default() {
            if row.head.is_some() {
                continue;
            }
            let Ok(image) = self.verify(row).await else {
                continue;
            };
            if let Some(lease) = &image.row.lease
                && image.name().as_str() == name
            {
                let device = self.device_name(&lease.device);
                let until = time_in_words(after(lease.remaining_ms));
                return ApiError::new(
                    Kind::NameTaken,
                    format!("{device} is importing an image called {name}; it is listed once it is whole."),
                    format!("Choose another name. This one is free again if the import ends without an image, at the latest at {until}."),
                )
                .with("holder", device);
            }
        }
        taken
    }

    /// Reads the source, brings it home and commits it.
    async fn fill(
        &self,
        importing: &Importing,
        request: CreateRequest,
        reporter: &Reporter,
    ) -> Result<Json, ApiError> {
        let name = request.name.as_str().to_owned();
        let (imported, sent) = match request.from {
            Some(from) => {
                let import = Import {
                    from,
                    kind: request.form,
                    strict: request.strict,
                    boundary: importing.boundary,
                    keys: self.home.objects().keyring(),
                };
                self.import(importing.checkout, import, &name, reporter)
                    .await?
            }
            None => self.empty(importing, &name, reporter).await?,
        };
        let draft = Draft {
            image: importing.image,
            checkout: importing.checkout,
            token: importing.token,
            base: None,
            root: imported.root,
            message: String::new(),
            kind: CommitKind::Import,
            maps: Maps::Exact,
            logical_bytes: imported.logical_bytes,
            files: imported.files,
            sealed_bytes: imported.sealed_bytes,
        };
        reporter.phase(Phase::Commit, None);
        let commit = self.commit(&draft, &name, reporter).await?;
        Ok(json!({
            "image": importing.image,
            "commit": commit.id,
            "logical_bytes": imported.logical_bytes,
            "sealed_bytes": imported.sealed_bytes,
            "sent_bytes": sent.bytes,
            "skipped": imported.skipped.iter().map(skipped_json).collect::<Vec<_>>(),
        }))
    }

    /// Signs a commit, writes it down and sends it. If this daemon ends before there is an answer, the next
    /// one sends it again.
    async fn commit(
        &self,
        draft: &Draft,
        name: &str,
        reporter: &Reporter,
    ) -> Result<OpenCommit, ApiError> {
        let commit = draft.sign(&self.home).map_err(ApiError::failed)?;
        let request = JournaledRequest {
            id: RequestId::from_bytes(*commit.id.as_bytes()),
            call: Call::Commit {
                commit: commit.signed.to_bytes().into(),
            },
        };
        let id = request.id;
        let journaled = self.state.with(move |db| db.journal_request(&request));
        journaled.await.map_err(ApiError::failed)?;
        let delivered = deliver(&self.home, &commit, reporter).await;
        // A daemon that was fenced meanwhile does not hear whether the home has it: its next start sends it again.
        if !matches!(delivered, Err(CallError::Refused(Refusal::InstanceFenced))) {
            self.home.settle(id).await.map_err(ApiError::failed)?;
        }
        delivered.map_err(|error| self.explain(&error, name))?;
        Ok(commit)
    }

    async fn import(
        &self,
        checkout: CheckoutId,
        import: Import,
        name: &str,
        reporter: &Reporter,
    ) -> Result<(Imported, Sent), ApiError> {
        let upload = ImportUpload::begin(Arc::clone(&self.home), checkout, reporter.clone());
        let upload = Arc::new(upload);
        let cancel = CancelOnDrop(Cancel::default());
        let from = import.from.clone();
        let (sink, told, cancelled) = (Arc::clone(&upload), reporter.clone(), cancel.0.clone());
        let imported = tokio::task::spawn_blocking(move || import.run(&*sink, &told, &cancelled));
        let imported = imported.await.map_err(ApiError::failed)?;
        let upload = Arc::into_inner(upload)
            .ok_or_else(|| ApiError::failed("an import still runs that has ended"))?;
        match imported {
            Ok(imported) => {
                let sent = upload.finish().await;
                let sent = sent.map_err(|error| self.explain_upload(&error, name))?;
                Ok((imported, sent))
            }
            // The upload knows why.
            Err(ImportError::Sink(_)) => Err(match upload.finish().await {
                Err(error) => self.explain_upload(&error, name),
                Ok(_) => ApiError::failed("the upload ended early"),
            }),
            Err(error) => Err(explain_import(&error, &from)),
        }
    }

    /// An image with nothing but its root directory, which belongs to who runs this daemon.
    async fn empty(
        &self,
        importing: &Importing,
        name: &str,
        reporter: &Reporter,
    ) -> Result<(Imported, Sent), ApiError> {
        let (objects, boundary) = (Arc::clone(self.home.objects()), importing.boundary);
        let made = tokio::task::spawn_blocking(move || empty_tree(&objects, &boundary));
        let (root, sealed) = made.await.map_err(ApiError::failed)??;
        let upload =
            ImportUpload::begin(Arc::clone(&self.home), importing.checkout, reporter.clone());
        let sealed_bytes = sealed.iter().map(|sealed| sealed.bytes.len() as u64).sum();
        let objects = sealed.len() as u64;
        for sealed in sealed {
            if upload.put_async(sealed).await.is_err() {
                break;
            }
        }
        let sent = upload.finish().await;
        let sent = sent.map_err(|error| self.explain_upload(&error, name))?;
        let imported = Imported {
            root,
            files: 0,
            logical_bytes: 0,
            sealed_bytes,
            objects,
            skipped: Vec::new(),
        };
        Ok((imported, sent))
    }

    fn explain_upload(&self, error: &UploadError, name: &str) -> ApiError {
        match error {
            UploadError::Call(error) => self.explain(error, name),
            error => ApiError::failed(error),
        }
    }
}

/// Renews the lease of an import for as long as this is awaited. Without the home it goes on asking: a lease that
/// lapsed without a rival is no loss.
async fn keep_lease(home: &Home, importing: &Importing, interval: Duration) -> Infallible {
    loop {
        tokio::time::sleep(interval).await;
        home.reachable().await;
        let renewal = Call::Renew {
            image: importing.image,
            checkout: importing.checkout,
            token: importing.token,
            terms: None,
        };
        let renewed = match home.mutate(renewal).await {
            Ok(renewed) => home.settle(renewed.request).await.map_err(CallError::from),
            Err(error) => Err(error),
        };
        if let Err(error) = renewed {
            tracing::warn!(%error, "the lease of an import is not renewed");
        }
    }
}

/// Ends an import when its caller has gone.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Gathers the few nodes of an empty tree.
#[derive(Default)]
struct Gather(Vec<Sealed>);

impl NodeSink for Gather {
    fn put(&mut self, sealed: Sealed, _: Arc<Node>) {
        self.0.push(sealed);
    }
}

fn empty_tree(
    objects: &Objects,
    boundary: &Boundary,
) -> Result<(Reference, Vec<Sealed>), ApiError> {
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let now = crate::tree::timestamp(std::time::SystemTime::now());
    let root = Attributes {
        kind: FileKind::Directory,
        mode: 0o755,
        uid,
        gid,
        nlink: 2,
        size: 0,
        mtime: now,
        ctime: now,
        rdev: 0,
        extents: None,
    };
    let totals = Value::Totals {
        files: 0,
        logical_bytes: 0,
    };
    let mut edits = vec![
        (Key::fact(Fact::NextInode), Value::Number(Inode::ROOT.0 + 1)),
        (Key::fact(Fact::Totals), totals),
        (Key::fact(Fact::Owner), Value::Owner { uid, gid }),
        (Key::attributes(Inode::ROOT), Value::Attributes(root)),
    ];
    edits.sort_by(|a, b| a.0.cmp(&b.0));
    let edits = edits.into_iter().map(|(key, value)| Edit::Put(key, value));
    let mut sink = Gather::default();
    let mut sealer = objects.keyring().sealer();
    let root = img_index::apply(objects, &mut sink, &mut sealer, boundary, None, edits);
    Ok((root.map_err(ApiError::failed)?, sink.0))
}

fn skipped_json(skipped: &Skipped) -> Json {
    super::paths::with_path(json!({ "reason": skipped.reason }), &skipped.path)
}

fn explain_import(error: &ImportError, from: &Path) -> ApiError {
    let from = from.display();
    match error {
        ImportError::EmptyDisk => ApiError::new(
            Kind::Usage,
            format!("{from} is empty: a disk image of size 0 cannot be imported."),
            "Without --from an empty image is made.",
        ),
        ImportError::OtherKind(kind) => ApiError::usage(format!("{from} is not {kind}.")),
        ImportError::Form { what, hint } => {
            ApiError::new(Kind::Usage, format!("{from} is {what}."), *hint)
        }
        ImportError::Archive { .. } => ApiError::new(
            Kind::Failed,
            format!("{from} cannot be imported: {error}. Nothing was made."),
            "`tar -tvf` shows how far it can be read. Get it once more, or unpack what can be read and import the folder.",
        ),
        ImportError::Source(error) if error.kind() == std::io::ErrorKind::NotFound => {
            ApiError::not_found(
                format!("{from} cannot be read: {error}."),
                "Say what to import with --from PATH.",
            )
        }
        ImportError::Strict(skipped) => ApiError::new(
            Kind::Failed,
            format!(
                "{} cannot be imported: {}. Nothing was made.",
                skipped.path.display(),
                skipped.reason
            ),
            "Without --strict it is left out and listed.",
        ),
        error => ApiError::failed(error),
    }
}

/// How often an import's lease is renewed, as that of a checkout: every third of its time.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(LEASE_TTL_DEFAULT.as_secs() / 3);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::stream::fake::{CHECKOUT, Device, FakeHome, IMAGE};

    async fn scene() -> (tempfile::TempDir, FakeHome, Device, Importing) {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeHome::start().await;
        let device = Device::enrol(dir.path(), &fake, LeaseMode::Online).await;
        let importing = Importing {
            image: IMAGE,
            checkout: CHECKOUT,
            token: device.token(),
            boundary: Boundary::from_bytes([3; 32]),
        };
        (dir, fake, device, importing)
    }

    #[tokio::test]
    async fn the_lease_of_a_long_import_is_renewed() {
        let (_dir, fake, device, importing) = scene().await;
        let renewals = async {
            let renewed = || {
                let calls = &fake.lock().calls;
                calls.iter().filter(|call| **call == "renew").count()
            };
            while renewed() < 3 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = renewals => {}
            never = keep_lease(&device.home, &importing, Duration::from_millis(1)) => match never {},
        }
    }

    #[tokio::test]
    async fn the_commit_of_an_import_is_written_down_before_it_is_sent() {
        let (_dir, fake, device, importing) = scene().await;
        let (root, sealed) = empty_tree(device.home.objects(), &importing.boundary).unwrap();
        for sealed in sealed {
            let mut inner = fake.lock();
            inner
                .objects
                .insert(sealed.reference.id, sealed.bytes.into());
        }
        let draft = Draft {
            image: IMAGE,
            checkout: CHECKOUT,
            token: importing.token,
            base: None,
            root,
            message: String::new(),
            kind: CommitKind::Import,
            maps: Maps::Exact,
            logical_bytes: 0,
            files: 0,
            sealed_bytes: 0,
        };
        let seen = Arc::new(AtomicBool::new(false));
        let (state, witnessed) = (device.state.clone(), Arc::clone(&seen));
        fake.lock().witness = Some(Box::new(move |record| {
            let requests = state.now(|db| db.journaled_requests()).unwrap();
            let written = requests.iter().any(
                |request| matches!(&request.call, Call::Commit { commit } if commit[..] == *record),
            );
            witnessed.store(written, Ordering::SeqCst);
        }));
        let images = Images::new(Arc::clone(&device.home), device.state.clone());
        let reporter = Reporter::new(Phase::Commit);
        images.commit(&draft, "vm", &reporter).await.unwrap();
        assert!(seen.load(Ordering::SeqCst));
        let left = device.state.now(|db| db.journaled_requests()).unwrap();
        assert_eq!(left, [], "it is answered");
    }
}
