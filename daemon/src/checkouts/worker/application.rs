//! The worker's application: what `imgctl run` started in the checkout, as long as its cgroup is not empty.
//!
//! Whoever started it may be killed; it goes on, and its lease with it. The cgroup stands in the database, so that a
//! daemon that is started again finds it, and lets it go on if the one before died while it was stopped.

use std::path::Path;
use std::time::Duration;

use img_lease::holder::Kind as LeaseKind;
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::Worker;
use crate::cgroup::{Cgroup, NoCgroup};
use crate::checkouts::{processes, work};
use crate::error::{ApiError, Kind};
use crate::state::Stage;

impl Worker {
    /// Takes an application's cgroup for this checkout's, if there is one. Returns its run id.
    pub(super) fn run_application(&mut self, dir: Option<&Path>) -> Result<Value, ApiError> {
        if self.stage != Stage::Open || self.mounted.is_none() {
            return Err(ApiError::new(
                Kind::Busy,
                format!("{} is not mounted here, or is being released.", self.name),
                "Ask again when it is checked out.",
            ));
        }
        let holder = self.shared.keeper.holder(self.checkout);
        match holder.map(|holder| holder.kind()) {
            Some(LeaseKind::Leased | LeaseKind::Lapsed) => {}
            Some(LeaseKind::Orphan) => {
                let (shared, image) = (&self.shared, self.image);
                return Err(work::orphan(shared, image, &self.name, &self.dir));
            }
            _ => {
                return Err(ApiError::usage(format!(
                    "The checkout of {} at {} is read-only: what an application changes there could not be committed.",
                    self.name,
                    self.dir.display()
                )));
            }
        }
        if let Some(running) = &self.application {
            let pids = running.processes();
            if !pids.is_empty() && dir != Some(running.dir()) {
                return Err(processes::running(&self.name, &self.dir, &pids));
            }
        }
        if let Some(dir) = dir {
            let cgroup = Cgroup::of_application(dir).map_err(|error| no_cgroup(dir, &error))?;
            let checkout = self.checkout;
            block_in_place(|| {
                let state = &self.shared.state;
                state.now(|db| db.set_application(checkout, cgroup.dir()))
            })
            .map_err(ApiError::failed)?;
            self.application = Some(cgroup);
            self.show_application();
        }
        let run_id = self.shared.run_ids.of(self.checkout);
        let run_id = run_id
            .map_err(|error| ApiError::failed(format!("the run id cannot be written: {error}")))?;
        Ok(json!({
            "run_id": run_id,
            "run_id_file": self.shared.run_ids.file(self.checkout).display().to_string(),
        }))
    }

    /// The application's last process has ended. The checkout stays: closing it is whoever's that started it.
    pub(super) fn application_ended(&mut self) {
        let Some(cgroup) = self.application.take() else {
            return;
        };
        let checkout = self.checkout;
        let dropped = block_in_place(|| self.shared.state.now(|db| db.drop_application(checkout)));
        if let Err(error) = dropped {
            tracing::warn!(%error, "a cgroup that is gone is looked for once more");
        }
        cgroup.remove();
        tracing::info!(checkout = %self.checkout.short(), "an application has ended");
        self.show_application();
    }

    pub(super) fn show_application(&self) {
        let runs = self.application.is_some();
        self.view.send_modify(|view| view.application = runs);
    }

    /// The state is another life's from here on: it was restored, or has become a branch.
    pub(super) fn renew_run_id(&self) {
        if let Err(error) = self.shared.run_ids.renew(self.checkout) {
            tracing::warn!(checkout = %self.checkout.short(), %error, "a run id is not renewed");
        }
    }
}

/// Waits until nothing runs in a cgroup; for ever if there is none.
pub(super) async fn ended(application: Option<&Cgroup>) {
    let Some(application) = application else {
        return std::future::pending().await;
    };
    while application.is_populated() {
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

fn no_cgroup(dir: &Path, error: &NoCgroup) -> ApiError {
    ApiError::usage(format!(
        "{} cannot be the application's cgroup: {error}.",
        dir.display()
    ))
}

/// How often it is looked whether an application has ended; a small file is read.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
