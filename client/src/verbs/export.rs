//! `imgctl export`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use super::create::Skipped;
use crate::args::{ExportArgs, Form};
use crate::failure::Failure;
use crate::{show, values};

#[derive(Debug, Deserialize)]
struct Exported {
    files: u64,
    bytes: u64,
    skipped: Vec<Skipped>,
}

/// Writes an image to a folder, a raw disk or a tar.
pub(super) async fn export(session: &Session, args: ExportArgs) -> Result<(), Failure> {
    let dest = values::absolute(&args.dest)?;
    let dest = dest
        .to_str()
        .ok_or_else(|| Failure::usage("The path to export to is not UTF-8."))?;
    let body = json!({
        "dest": dest,
        "at": args.at,
        "path": args.path,
        "as": args.kind.map(Form::word),
    });
    let path = format!("{}/export", values::image_resource(&args.name));
    let exported = session.stream(&path, &body).await?;
    session.output.answer(&exported, |exported| {
        render(&args.name.to_string(), dest, exported)
    })?;
    match exported["skipped"].as_array().map_or(0, Vec::len) {
        0 => Ok(()),
        count => Err(Failure {
            message: format!(
                "{} not be written as it is in the image; the rest is there.",
                match count {
                    1 => "1 entry could".to_owned(),
                    count => format!("{count} entries could"),
                }
            ),
            ..Failure::skipped(count)
        }),
    }
}

fn render(name: &str, dest: &str, exported: &Value) -> Result<String, serde_json::Error> {
    let exported = Exported::deserialize(exported)?;
    let files = match exported.files {
        1 => "1 file".to_owned(),
        files => format!("{files} files"),
    };
    let mut text = format!(
        "{name} written to {dest}: {files}, {}.\n",
        show::bytes(exported.bytes)
    );
    text.push_str(&Skipped::render(&exported.skipped));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_written_is_named() {
        let exported = json!({
            "files": 1, "bytes": 2048,
            "skipped": [{"path": "run/sock", "reason": "is a socket"}],
        });
        assert_eq!(
            render("vm", "/tmp/vm.tar", &exported).unwrap(),
            "vm written to /tmp/vm.tar: 1 file, 2.00 KiB.\nleft out: run/sock: is a socket\n"
        );
    }
}
