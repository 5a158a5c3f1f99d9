//! `imgctl device invite` and `imgctl device list`.

use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::failure::Failure;
use crate::show;

#[derive(Debug, Deserialize)]
struct Invite {
    invite: String,
    expires: String,
}

#[derive(Debug, Deserialize)]
struct Device {
    device: String,
    name: String,
    role: String,
    this: bool,
    revoked: bool,
}

/// Prints an invite as a line and as a QR code.
pub(super) async fn invite(session: &Session) -> Result<(), Failure> {
    let invite = session.api.post("/v1/devices/invite", &json!({})).await?;
    session.output.answer(&invite, render_invite)
}

/// Lists the roster.
pub(super) async fn list(session: &Session) -> Result<(), Failure> {
    let devices = session.api.get("/v1/devices").await?;
    session.output.answer(&devices, render_devices)
}

fn render_invite(invite: &Value) -> Result<String, serde_json::Error> {
    let invite = Invite::deserialize(invite)?;
    // An invite that is too long for a code is still a line to copy.
    let code = QrCode::new(&invite.invite)
        .map(|code| code.render::<Dense1x2>().build())
        .unwrap_or_default();
    Ok(format!(
        "{code}\nOn the new device, until {}:\n\n    imgctl join {}\n",
        show::time(&invite.expires),
        invite.invite
    ))
}

fn render_devices(devices: &Value) -> Result<String, serde_json::Error> {
    let devices = Vec::<Device>::deserialize(devices)?;
    let rows = devices.into_iter().map(|device| {
        let note = match (device.this, device.revoked) {
            (_, true) => "revoked",
            (true, false) => "this device",
            (false, false) => "",
        };
        [
            device.name,
            device.role,
            show::short(&device.device).to_owned(),
            note.to_owned(),
        ]
    });
    Ok(show::table(["NAME", "ROLE", "DEVICE", ""], rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invite_is_a_line_and_a_code() {
        let invite = json!({"invite": "imgctl-invite-AAAA", "expires": "2026-11-21T14:05:00Z"});
        let text = render_invite(&invite).unwrap();
        assert!(text.contains("    imgctl join imgctl-invite-AAAA\n"));
        assert!(text.contains("until 2026-11-21 14:05:00 UTC"));
        assert!(text.contains('█'), "a code is drawn");
    }
}
