//! `imgctl export`.

use serde::Deserialize;
use serde_json::json;

use super::Session;
use crate::args::{ExportArgs, Form};
use crate::failure::Failure;
use crate::{show, values};

#[derive(Debug, Deserialize)]
struct Exported {
    files: u64,
    bytes: u64,
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
        let exported = Exported::deserialize(exported)?;
        Ok(format!(
            "{} written to {dest}: {} files, {}.",
            args.name,
            exported.files,
            show::bytes(exported.bytes)
        ))
    })
}
