//! Who had an image, who took it, and what was refused: the home's log and its audit, put together.

use std::collections::BTreeSet;

use img_proto::call::AdminCommand;
use img_proto::{Answer, AuditRow, Call};
use img_records::{LogEntry, LogKind};
use img_types::bytes::Reader;
use img_types::limits::RECORDS_PER_REPLY_MAX;
use img_types::{DeviceId, ImageId};
use serde_json::{Value, json};

use super::{Image, Images};
use crate::commits::open_reason;
use crate::enrol::revokes;
use crate::error::ApiError;
use crate::events::time;
use crate::home::CallError;

impl Images {
    /// What happened to an image's lease and head, newest first, as `log --audit` shows it.
    ///
    /// # Errors
    /// This device is no admin, or the home is away or refuses.
    pub async fn audit(&self, image: &Image, limit: usize) -> Result<Vec<Value>, ApiError> {
        let name = image.name().as_str();
        let explain = |error| self.explain(&error, name);
        let entries = self.entries(image.row.image, limit).await;
        let entries = entries.map_err(explain)?;
        let mut noted = self.noted(image.row.image, limit).await.map_err(explain)?;
        let had: BTreeSet<_> = entries.iter().map(|entry| entry.device).collect();
        let mut rows: Vec<(i64, Value)> = Vec::new();
        for entry in entries {
            let reason = match entry.kind {
                // The reason stands in the audit, written in the same transaction.
                LogKind::Steal => take_nearest(&mut noted, &entry),
                _ => None,
            };
            let reason = reason
                .map(|row| self.trusted(|trust| open_reason(trust, image.row.image, &row.reason)));
            let row = json!({
                "kind": word(entry.kind),
                "time": time(entry.time),
                "device": self.device_or_home(&entry.device),
                "device_id": entry.device,
                "epoch": entry.epoch,
                "subject": data_encoding::HEXLOWER.encode(&entry.subject),
                "reason": reason,
            });
            rows.push((entry.time.0, row));
        }
        rows.extend(self.revocations(|device| had.contains(device)));
        for row in noted.into_iter().filter(|row| row.refusal.is_some()) {
            let told = json!({
                "kind": "refused",
                "time": time(row.time),
                "device": row.device.map(|device| self.device_name(&device)),
                "device_id": row.device,
                "call": row.call,
                "reason": row.refusal,
            });
            rows.push((row.time.0, told));
        }
        rows.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        rows.truncate(limit);
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }

    /// The revocations of devices that had the image: they ended leases, and stand in the roster with the admin's
    /// signature.
    fn revocations(&self, had: impl Fn(&DeviceId) -> bool) -> Vec<(i64, Value)> {
        let roster = self.home.roster();
        let entries = roster.entries().iter().map(|entry| &entry.record);
        let revoked = entries.filter_map(|entry| {
            let device = revokes(&entry.change).filter(&had)?;
            let told = json!({
                "kind": "revoke",
                "time": time(entry.time),
                "device": self.device_name(&entry.signer),
                "device_id": entry.signer,
                "subject": device,
                "reason": format!("{} was revoked", self.device_name(&device)),
            });
            Some((entry.time.0, told))
        });
        revoked.collect()
    }

    async fn entries(&self, image: ImageId, limit: usize) -> Result<Vec<LogEntry>, CallError> {
        let mut entries = Vec::new();
        let mut before = None;
        while entries.len() < limit {
            let command = AdminCommand::History {
                image,
                before,
                limit: RECORDS_PER_REPLY_MAX as u32,
            };
            let Answer::History {
                entries: page,
                more,
            } = self.home.ask(Call::Admin { command }).await?
            else {
                return Err(CallError::Protocol("no entries of the log"));
            };
            let oldest = page.last().map(|(position, _)| *position);
            for (_, bytes) in &page {
                let entry = LogEntry::decode(&mut Reader::new(bytes));
                entries.push(entry.map_err(|_| CallError::Protocol("a malformed log entry"))?);
            }
            if !more || oldest.is_none() || (before.is_some() && oldest >= before) {
                break;
            }
            before = oldest;
        }
        Ok(entries)
    }

    /// What the audit has of an image.
    async fn noted(&self, image: ImageId, limit: usize) -> Result<Vec<AuditRow>, CallError> {
        let mut noted = Vec::new();
        let mut before = None;
        while noted.len() < limit {
            let command = AdminCommand::Audit {
                before,
                limit: RECORDS_PER_REPLY_MAX as u32,
            };
            let Answer::Audit { entries, more } = self.home.ask(Call::Admin { command }).await?
            else {
                return Err(CallError::Protocol("no audit"));
            };
            let oldest = entries.last().map(|row| row.number);
            noted.extend(entries.into_iter().filter(|row| row.image == Some(image)));
            if !more || oldest.is_none() || (before.is_some() && oldest >= before) {
                break;
            }
            before = oldest;
        }
        Ok(noted)
    }

    fn device_or_home(&self, device: &DeviceId) -> String {
        match *device == DeviceId::from_bytes([0; 32]) {
            true => "the home".to_owned(),
            false => self.device_name(device),
        }
    }
}

/// Takes out the audit's row of a steal that stands in the log.
fn take_nearest(noted: &mut Vec<AuditRow>, entry: &LogEntry) -> Option<AuditRow> {
    let distance = |row: &AuditRow| row.time.0.abs_diff(entry.time.0);
    let own = noted.iter().enumerate().filter(|(_, row)| {
        let steal = row.call == "Steal" && row.refusal.is_none();
        steal && row.device == Some(entry.device) && distance(row) <= SAME_TIME_MS
    });
    let (at, _) = own.min_by_key(|(_, row)| distance(row))?;
    Some(noted.remove(at))
}

fn word(kind: LogKind) -> &'static str {
    match kind {
        LogKind::Commit => "commit",
        LogKind::Grant => "grant",
        LogKind::Steal => "steal",
        LogKind::Release => "release",
        LogKind::Readmit => "readmit",
        LogKind::Roster => "roster",
        LogKind::Descriptor => "name",
        LogKind::Delete => "delete",
        LogKind::Incarnation => "incarnation",
    }
}

/// How far apart the clock may be read for two rows of one transaction.
const SAME_TIME_MS: u64 = 1_000;
