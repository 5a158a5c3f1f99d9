//! `imgctl device invite`, `imgctl device list` and `imgctl device revoke`.

use std::io::{BufRead, IsTerminal, Write};

use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use crate::failure::Failure;
use crate::{show, values};

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
    revoked_at: Option<String>,
    revoked_by: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Revoked {
    name: String,
    time: String,
    by: String,
    already: bool,
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

/// Takes a device off the roster, once a person has typed its name again.
pub(super) async fn revoke(session: &Session, name: &str, yes: bool) -> Result<(), Failure> {
    if !yes {
        confirm(name)?;
    }
    let path = format!("/v1/devices/{}/revoke", values::percent_encode(name));
    let revoked = session.api.post(&path, &json!({})).await?;
    session.output.answer(&revoked, render_revoked)
}

fn confirm(name: &str) -> Result<(), Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage(format!(
            "Revoking {name} cannot be undone, and there is no terminal to ask on. Add --yes."
        )));
    }
    let mut stderr = std::io::stderr();
    // Without a visible question nobody types the name by chance.
    let _ = write!(stderr, "{}", question(name));
    let _ = stderr.flush();
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    read.map_err(|error| Failure::usage(format!("The name cannot be read: {error}.")))?;
    match line.trim() == name {
        true => Ok(()),
        false => Err(Failure::usage(format!(
            "That is not {name}. Nothing was changed."
        ))),
    }
}

fn question(name: &str) -> String {
    format!(
        "Revoking {name} cannot be undone.\n\
         - What it could read until now it can still read: it has the keys of that. What is written from now on it cannot read.\n\
         - Its leases end, and it may commit, stage and branch nothing more. Work there that is not at home can only be exported there.\n\
         - To come back it needs a new identity and an invite.\n\
         Type the name to revoke it: "
    )
}

fn render_revoked(revoked: &Value) -> Result<String, serde_json::Error> {
    let revoked = Revoked::deserialize(revoked)?;
    let (name, by, time) = (revoked.name, revoked.by, show::time(&revoked.time));
    Ok(if revoked.already {
        format!("{name} was revoked by {by} on {time} already.")
    } else {
        format!(
            "{name} is revoked. Its leases have ended, and everything is written with new keys from now on. What it had leased can be checked out: `imgctl ls`."
        )
    })
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
            (_, true) => match (device.revoked_at, device.revoked_by) {
                (Some(at), Some(by)) => format!("revoked {} by {by}", show::time(&at)),
                _ => "revoked".to_owned(),
            },
            (true, false) => "this device".to_owned(),
            (false, false) => String::new(),
        };
        [
            device.name,
            device.role,
            show::short(&device.device).to_owned(),
            note,
        ]
    });
    Ok(show::table(["NAME", "ROLE", "DEVICE", ""], rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revoked_device_is_shown_with_when_and_by_whom() {
        let devices = json!([
            {"device": "ab".repeat(32), "name": "laptop", "role": "admin", "this": true, "revoked": false,
             "revoked_at": null, "revoked_by": null},
            {"device": "cd".repeat(32), "name": "tablet", "role": "member", "this": false, "revoked": true,
             "revoked_at": "2026-11-21T14:05:00Z", "revoked_by": "laptop"},
        ]);
        let text = render_devices(&devices).unwrap();
        assert!(text.contains("this device"), "{text}");
        assert!(
            text.contains("revoked 2026-11-21 14:05:00 UTC by laptop"),
            "{text}"
        );
    }

    #[test]
    fn a_revocation_says_what_it_means_and_what_it_did() {
        let asked = question("tablet");
        for said in [
            "cannot be undone",
            "can still read",
            "leases end",
            "exported there",
        ] {
            assert!(asked.contains(said), "{said}");
        }
        let mut revoked = json!({"name": "tablet", "time": "2026-11-21T14:05:00Z", "by": "laptop",
            "already": false});
        let text = render_revoked(&revoked).unwrap();
        assert!(text.starts_with("tablet is revoked."), "{text}");
        revoked["already"] = json!(true);
        let text = render_revoked(&revoked).unwrap();
        assert_eq!(
            text,
            "tablet was revoked by laptop on 2026-11-21 14:05:00 UTC already."
        );
    }

    #[test]
    fn an_invite_is_a_line_and_a_code() {
        let invite = json!({"invite": "imgctl-invite-AAAA", "expires": "2026-11-21T14:05:00Z"});
        let text = render_invite(&invite).unwrap();
        assert!(text.contains("    imgctl join imgctl-invite-AAAA\n"));
        assert!(text.contains("until 2026-11-21 14:05:00 UTC"));
        assert!(text.contains('█'), "a code is drawn");
    }
}
