//! Which checkout a word means where a wrong guess would drop work, or hand the wrong work in.

use std::sync::Arc;

use super::{Checkout, Checkouts, Which};
use crate::error::ApiError;
use crate::keeper::word;

impl Checkouts {
    /// The checkout whose work is to be dropped: the leased one is not preferred, as the other may be meant.
    ///
    /// # Errors
    /// There is none, or the word can mean more than one.
    pub fn find_to_discard(&self, which: &Which) -> Result<Arc<Checkout>, ApiError> {
        let meant = self.meant(which);
        match meant.as_slice() {
            [] => self.find(which),
            [only] => Ok(Arc::clone(only)),
            [..] => Err(say_which(which, &meant, "release DIR --discard")),
        }
    }

    /// The orphan that is to be adopted: a leased checkout of its name is in nobody's way.
    ///
    /// # Errors
    /// There is none, the word can mean more than one, or what it means is no orphan.
    pub fn find_orphan(&self, which: &Which) -> Result<Arc<Checkout>, ApiError> {
        let mut orphans = self.meant(which);
        orphans.retain(|checkout| checkout.is_lost());
        match orphans.as_slice() {
            [] => Err(no_orphan(self.find(which)?.as_ref())),
            [only] => Ok(Arc::clone(only)),
            [..] => Err(say_which(which, &orphans, "commit DIR --adopt-orphan")),
        }
    }

    /// All checkouts that a word can mean, by name and by folder.
    fn meant(&self, which: &Which) -> Vec<Arc<Checkout>> {
        let (name, dir) = (which.name(), which.dir());
        let mut meant = self.shared.list();
        meant.retain(|checkout| {
            name.is_some_and(|name| checkout.name() == name.as_str())
                || Some(&checkout.dir) == dir.as_ref()
        });
        meant.sort_by_key(|checkout| (!checkout.has_token(), checkout.opened));
        meant
    }
}

fn say_which(which: &Which, meant: &[Arc<Checkout>], verb: &str) -> ApiError {
    let name = which.name().map(ToString::to_string).unwrap_or_default();
    let folders = meant.iter().map(|checkout| {
        let holder = checkout.shared.keeper.holder(checkout.id);
        let state = holder.map_or("closed", |holder| word(holder.kind()));
        let dir = checkout.dir.display();
        match checkout.name() {
            same if same == name => format!("{dir} ({state})"),
            // The word is its folder's name.
            other => format!("{dir} ({state}, of {other})"),
        }
    });
    let folders: Vec<_> = folders.collect();
    let mut error = ApiError::usage(format!(
        "{name} is checked out in more than one folder here: {}.",
        folders.join(", ")
    ));
    error.hint = format!("Say which: `imgctl {verb}`.");
    error
}

fn no_orphan(checkout: &Checkout) -> ApiError {
    let (name, dir) = (checkout.name(), checkout.dir.display());
    let mut error = ApiError::usage(format!(
        "The checkout of {name} at {dir} is not orphaned: there is nothing to adopt."
    ));
    error.hint = format!("`imgctl commit {dir}` commits it.");
    error
}
