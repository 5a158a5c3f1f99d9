//! The calls of members that are answered with one reply.

use std::sync::Arc;

use img_proto::call::AdminCommand;
use img_proto::{Answer, Call, Refusal};
use img_types::{RequestId, UploadId};

use super::{Daemon, enrol, read, transaction, wait};
use crate::db::{Stop, uploads};
use crate::home::Home;

/// Answers one call of a daemon that has said Hello.
pub(super) async fn answer(
    home: &Arc<Home>,
    daemon: Daemon,
    id: Option<RequestId>,
    call: Call,
) -> Result<Answer, Stop> {
    if call.mutates() {
        let id = id.ok_or_else(|| Refusal::Malformed("a request id is missing".to_owned()))?;
        return transaction::mutate(home, daemon, id, call).await;
    }
    match call {
        Call::Roster { from } => enrol::roster(home, from).await,
        Call::PendingJoins => wait::pending_joins(home, daemon.device).await,
        Call::Watch { after } => wait::watch(home, after).await,
        Call::Images { after } => read::images(home, after).await,
        Call::Leases { device, after } => read::leases(home, device, after).await,
        Call::Log {
            image,
            before,
            limit,
        } => read::log(home, image, before, limit).await,
        Call::StolenBy { image, checkout } => read::stolen_by(home, image, checkout).await,
        Call::Prove { commit, seed } => read::prove(home, commit, &seed).await,
        Call::OpenUpload { checkout } => {
            let fresh = UploadId::from_bytes(
                crate::random().map_err(|error| Stop::Broken(error.to_string()))?,
            );
            let open = home.db.writer().call(move |tx| {
                Box::pin(async move { uploads::open(tx, daemon.device, checkout, fresh).await })
            });
            let upload = open.await?;
            Ok(Answer::Upload { upload })
        }
        Call::Missing { upload, ids } => read::missing(home, daemon.device, upload, &ids).await,
        Call::CloseUpload { upload } => {
            let close = home.db.writer().call(move |tx| {
                Box::pin(async move { uploads::close(tx, upload, daemon.device).await })
            });
            close.await.map(|()| Answer::Done)
        }
        Call::Admin { command } => {
            if !home.roster()?.is_admin(&daemon.device) {
                return Err(Refusal::NotAdmin.into());
            }
            match command {
                AdminCommand::Usage => read::usage(home).await,
                AdminCommand::Audit { before, limit } => read::audit(home, before, limit).await,
                AdminCommand::History {
                    image,
                    before,
                    limit,
                } => read::history(home, image, before, limit).await,
            }
        }
        _ => Err(Refusal::Malformed("this call needs a stream of its own".to_owned()).into()),
    }
}
