//! The home's folder never holds a name or a content.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use e2e::World;

const CONTENT: &str = "planted-content-7f3a9c";
const FILE: &str = "planted-file-name-51d2";
const FOLDER: &str = "planted-folder-e90b";
const IMAGE: &str = "planted-image-name-c4";
const DEVICE: &str = "planted-device-name-08";
const MESSAGE: &str = "planted message 66ab";
const XATTR: &str = "user.planted-xattr-3b";

#[test]
fn the_home_learns_no_names_and_no_contents() -> Result<()> {
    let mut world = World::new()?;
    let source = world.path("source");
    fs::create_dir_all(source.join(FOLDER))?;
    fs::write(source.join(FILE), CONTENT)?;
    fs::write(source.join(FOLDER).join("big"), CONTENT.repeat(10_000))?;
    std::os::unix::fs::symlink(CONTENT, source.join("link"))?;
    rustix::fs::setxattr(
        source.join(FILE),
        XATTR,
        CONTENT.as_bytes(),
        rustix::fs::XattrFlags::empty(),
    )?;
    let a = world.founder(DEVICE)?;
    a.json(&["create", IMAGE, "--from", source.to_str().unwrap()])?;
    let mount = a.checkout(IMAGE, &[])?;
    fs::write(mount.join("later"), CONTENT)?;
    a.json(&["commit", IMAGE, "-m", MESSAGE])?;
    world.joined("planted-device-name-09", &a)?;
    let secret_files = files_below(&a.state())?
        .into_iter()
        .filter(|path| path.ends_with("keys") || path.to_string_lossy().contains("identity"))
        .collect::<Vec<_>>();
    ensure!(
        !secret_files.is_empty(),
        "the device keeps its keys in a file"
    );
    world.home.stop()?;

    let mut searched = 0;
    for path in files_below(world.home.dir())? {
        let bytes = fs::read(&path)?;
        searched += bytes.len();
        for planted in [
            CONTENT,
            FILE,
            FOLDER,
            IMAGE,
            DEVICE,
            MESSAGE,
            XATTR,
            "planted-device-name-09",
        ] {
            ensure!(
                !contains(&bytes, planted.as_bytes()),
                "{} holds {planted:?}",
                path.display()
            );
        }
    }
    ensure!(
        searched > 10_000,
        "the home's folder holds {searched} bytes"
    );
    Ok(())
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

pub(crate) fn files_below(root: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}
