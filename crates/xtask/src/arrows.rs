//! The crate map as a check: who may import whom.
//!
//! The table is the one of `docs/architecture.md`. Tests may also import `img-testkit`, and what their
//! crate's own imports may import.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::shell;

/// Each crate of the workspace and the crates of the workspace that it may import.
const MAY_IMPORT: [(&str, &[&str]); 20] = [
    ("img-types", &[]),
    ("img-proto", &["img-types"]),
    ("img-lease", &["img-types"]),
    ("img-records", &["img-types"]),
    ("img-seal", &["img-types"]),
    ("img-index", &["img-types", "img-seal"]),
    ("img-overlay", &["img-types", "img-index"]),
    ("img-store", &["img-types"]),
    ("img-net", &["img-types", "img-proto", "img-records"]),
    (
        "imgd",
        &[
            "img-types",
            "img-proto",
            "img-lease",
            "img-records",
            "img-seal",
            "img-index",
            "img-overlay",
            "img-store",
            "img-net",
        ],
    ),
    ("imgctl", &["img-types", "img-proto"]),
    (
        "imghome",
        &[
            "img-types",
            "img-proto",
            "img-records",
            "img-lease",
            "img-store",
            "img-net",
        ],
    ),
    (TESTKIT, &["img-types", "img-lease", "img-records"]),
    ("e2e", &[]),
    (
        "bench",
        &["e2e", "contend", "img-types", "img-proto", "img-net"],
    ),
    (
        "contend",
        &["e2e", "img-types", "img-proto", "img-records", "img-net"],
    ),
    ("crash", &["e2e"]),
    ("model", &["img-types", "img-lease", "img-testkit"]),
    ("sim", &["img-types", "img-lease", "img-testkit"]),
    ("xtask", &[]),
];

const TESTKIT: &str = "img-testkit";

/// One import between crates of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Arrow {
    from: String,
    to: String,
    for_tests: bool,
}

/// Reads the workspace and refuses what the map does not allow.
pub(crate) fn check() -> Result<()> {
    let metadata = MetadataCommand::new()
        .current_dir(shell::workspace())
        .no_deps()
        .exec()
        .context("cargo metadata")?;
    let packages = metadata.workspace_packages();
    let names: BTreeSet<_> = packages
        .iter()
        .map(|package| package.name.to_string())
        .collect();
    let mut arrows = Vec::new();
    for package in &packages {
        for dependency in &package.dependencies {
            if names.contains(&dependency.name) {
                arrows.push(Arrow {
                    from: package.name.to_string(),
                    to: dependency.name.clone(),
                    for_tests: dependency.kind == DependencyKind::Development,
                });
            }
        }
    }
    let mut problems = unlisted(&names);
    problems.extend(
        arrows
            .iter()
            .filter(|arrow| !is_allowed(arrow))
            .map(refusal),
    );
    if !problems.is_empty() {
        bail!("the crate map does not hold:\n  {}", problems.join("\n  "));
    }
    shell::say(&format!(
        "{} imports between {} crates are all on the map.",
        arrows.len(),
        names.len()
    ));
    Ok(())
}

fn unlisted(names: &BTreeSet<String>) -> Vec<String> {
    let listed = map();
    let unlisted = names
        .iter()
        .filter(|name| !listed.contains_key(name.as_str()));
    unlisted
        .map(|name| format!("{name} is not on the map"))
        .collect()
}

fn is_allowed(arrow: &Arrow) -> bool {
    let Some(allowed) = map().get(arrow.from.as_str()).copied() else {
        return true; // Told as unlisted.
    };
    let to = arrow.to.as_str();
    if arrow.for_tests {
        to == TESTKIT || reachable(&arrow.from).contains(to)
    } else {
        allowed.contains(&to)
    }
}

fn refusal(arrow: &Arrow) -> String {
    let tests = if arrow.for_tests {
        " for its tests"
    } else {
        ""
    };
    format!("{} may not import {}{tests}", arrow.from, arrow.to)
}

/// Everything that a crate may be linked with.
fn reachable(from: &str) -> BTreeSet<&'static str> {
    let map = map();
    let mut found = BTreeSet::new();
    let mut next: Vec<_> = map.get(from).copied().unwrap_or_default().to_vec();
    while let Some(name) = next.pop() {
        if found.insert(name) {
            next.extend(map.get(name).copied().unwrap_or_default());
        }
    }
    found
}

fn map() -> BTreeMap<&'static str, &'static [&'static str]> {
    MAY_IMPORT.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrow(from: &str, to: &str, for_tests: bool) -> Arrow {
        Arrow {
            from: from.into(),
            to: to.into(),
            for_tests,
        }
    }

    #[test]
    fn the_home_has_not_got_the_code_to_decrypt() {
        let linked = reachable("imghome");
        for crate_with_keys in ["img-seal", "img-index", "img-overlay"] {
            assert!(!linked.contains(crate_with_keys));
        }
    }

    #[test]
    fn nothing_is_linked_with_itself() {
        for (name, _) in MAY_IMPORT {
            assert!(!reachable(name).contains(name), "{name}");
        }
    }

    #[test]
    fn imports_beyond_the_map_are_refused() {
        assert!(is_allowed(&arrow("img-index", "img-seal", false)));
        assert!(!is_allowed(&arrow("imghome", "img-seal", false)));
        assert!(!is_allowed(&arrow("imgctl", "img-store", true)));
        assert!(!is_allowed(&arrow("img-overlay", "img-seal", false)));
        assert!(is_allowed(&arrow("img-overlay", "img-seal", true)));
        assert!(is_allowed(&arrow("img-store", TESTKIT, true)));
        assert!(!is_allowed(&arrow("img-store", TESTKIT, false)));
        assert_eq!(unlisted(&BTreeSet::from(["new".into()])).len(), 1);
    }

    #[test]
    fn this_workspace_follows_the_map() {
        check().unwrap();
    }
}
