//! The peer of lease calls: a single etcd, driven through its HTTP gateway by kept-alive connections.

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use data_encoding::BASE64;
use e2e::{Program, wait_for};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// An etcd with a folder of its own; it syncs its log before it answers, as it does by default.
#[derive(Debug)]
pub(crate) struct Etcd {
    process: Program,
    address: String,
}

impl Etcd {
    /// Starts one, and waits until it answers.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        let free = || -> Result<String> {
            Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
        };
        let (address, peer) = (free()?, format!("http://{}", free()?));
        let client = format!("http://{address}");
        let data = dir.join("etcd");
        let cluster = format!("bench={peer}");
        let mut process = Program::any(Path::new("etcd"))
            .args(["--name", "bench", "--log-level", "error"])
            .args(["--data-dir", data.to_str().context("UTF-8")?])
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &cluster])
            .log_to(&dir.join("etcd.log"))?;
        process.spawn().context("etcd (package etcd-server)")?;
        let etcd = Self { process, address };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        wait_for("etcd to answer", || {
            let put = async { EtcdClient::connect(&etcd.address).await?.grant().await };
            Ok(runtime.block_on(put).ok())
        })?;
        Ok(etcd)
    }

    /// Where it serves.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Its process id.
    pub(crate) fn process_id(&self) -> Result<u32> {
        self.process.id()
    }
}

/// One kept-alive connection.
#[derive(Debug)]
pub(crate) struct EtcdClient {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl EtcdClient {
    /// Connects.
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with its sender; a failure of it is one of the next request.
        tokio::spawn(connection);
        Ok(Self {
            sender,
            host: address.to_owned(),
        })
    }

    /// Grants a lease of ten minutes; tells its id.
    pub(crate) async fn grant(&mut self) -> Result<String> {
        let granted = self
            .post("/v3/lease/grant", &json!({ "TTL": "600" }))
            .await?;
        Ok(granted["ID"]
            .as_str()
            .context("a lease has an id")?
            .to_owned())
    }

    /// Puts a key under a lease, if nobody has since `revision`; tells the new revision.
    pub(crate) async fn take(&mut self, key: &str, revision: &str, lease: &str) -> Result<String> {
        let key = BASE64.encode(key.as_bytes());
        let transaction = json!({
            "compare": [{ "key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision }],
            "success": [{ "requestPut": { "key": key, "value": BASE64.encode(&[7; 64]), "lease": lease } }],
        });
        let done = self.post("/v3/kv/txn", &transaction).await?;
        ensure!(done["succeeded"] == true, "etcd refused: {done}");
        let revision = done["header"]["revision"].as_str();
        Ok(revision.context("a transaction has a revision")?.to_owned())
    }

    async fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        let request = Request::post(path)
            .header("host", &self.host)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "etcd answered {status}");
        Ok(serde_json::from_slice(&body)?)
    }
}
