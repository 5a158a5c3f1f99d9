//! Making an image, empty or from a source; what is sealed goes home as it comes.
//!
//! An import that ends early leaves an image without a commit, which nobody sees; asked for again it starts anew,
//! and finds at home what had arrived.

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Arc;

use img_index::{Attributes, Boundary, Edit, Fact, FileKind, Inode, Key, Node, NodeSink, Value};
use img_proto::{Answer, Call, LeaseTerms};
use img_records::{CommitKind, DescriptorPrivate};
use img_seal::{Reference, Sealed};
use img_types::limits::LEASE_TTL_DEFAULT;
use img_types::{CheckoutId, ImageId, ImageName, LeaseMode, Token};
use serde_json::{Value as Json, json};

use super::Images;
use crate::error::{ApiError, Kind};
use crate::events::{Phase, Reporter};
use crate::home::CallError;
use crate::import::{Cancel, Import, ImportError, Imported, Skipped, SourceKind};
use crate::objects::Objects;
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
            let source = std::fs::metadata(from).map_err(|error| {
                let message = format!("{} cannot be read: {error}.", from.display());
                ApiError::not_found(message, "Say what to import with --from PATH.")
            })?;
            // Opening a pipe would wait for whoever writes to it, perhaps for ever.
            let kind = source.file_type();
            if !(kind.is_dir() || kind.is_file() || kind.is_block_device()) {
                return Err(ApiError::usage(format!(
                    "{} is no folder, file or block device.",
                    from.display()
                )));
            }
        }
        let name = request.name.as_str().to_owned();
        let importing = self.begin_image(&name).await?;
        let made = self.fill(&importing, request, reporter).await;
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
        let created = created.map_err(|error| self.explain(&error, name))?;
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
            logical_bytes: imported.logical_bytes,
            files: imported.files,
            sealed_bytes: imported.sealed_bytes,
        };
        reporter.phase(Phase::Commit, None);
        // Not written down: an import that is interrupted is made anew, and has no outbox to go on from.
        let commit = draft.sign(&self.home).map_err(ApiError::failed)?;
        let delivered = deliver(&self.home, &commit, reporter).await;
        delivered.map_err(|error| self.explain(&error, &name))?;
        Ok(json!({
            "image": importing.image,
            "commit": commit.id,
            "logical_bytes": imported.logical_bytes,
            "sealed_bytes": imported.sealed_bytes,
            "sent_bytes": sent.bytes,
            "skipped": imported.skipped.iter().map(skipped_json).collect::<Vec<_>>(),
        }))
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
            Err(error) => Err(explain_import(&error)),
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

fn explain_import(error: &ImportError) -> ApiError {
    match error {
        ImportError::EmptyDisk => ApiError::usage("A disk image of size 0 cannot be imported."),
        ImportError::OtherKind(kind) => {
            ApiError::usage(format!("The source is not {kind}, which --as says it is."))
        }
        ImportError::Source(error) if error.kind() == std::io::ErrorKind::NotFound => {
            ApiError::not_found(format!("The source cannot be read: {error}."), "")
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

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel has randomness once a daemon runs");
    bytes
}
