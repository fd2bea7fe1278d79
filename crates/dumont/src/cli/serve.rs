//! `dumont serve`: the controller.

use crate::config::Globals;
use crate::fail::{fail, usage};
use crate::output;
use crate::settings::Settings;
use anyhow::Result;
use clap::Args;
use dumont_agent_embed::{AGENT_DIGEST, AGENT_GZ};
use dumont_core::history::Reason;
use dumont_core::lease;
use dumont_core::spending::Caps;
use dumont_server::objects::s3::S3Config;
use dumont_server::providers::vast::VastConfig;
use dumont_server::tls::TlsFiles;
use dumont_server::{AgentBinary, CrashPoint, ServerConfig, ServerError, StoreError, Timing, WebhookSecret};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Listen beyond this machine without TLS. Tokens, which can rent machines and read every
    /// workspace, then cross the network in the clear
    #[arg(long)]
    pub allow_remote: bool,
    /// Serve HTTPS with this certificate (PEM, the chain after it); read again on SIGHUP
    /// [env: DUMONT_TLS_CERT]
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM, not encrypted)
    /// [env: DUMONT_TLS_KEY]
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// How others call this server, e.g. https://dumont.example.org:7070
    /// [env: DUMONT_PUBLIC_URL]
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// Kill this process hard at that step of a failover (for drills)
    #[arg(long, value_name = "STEP", hide = true)]
    pub crash_at: Option<CrashPoint>,
    /// What ABANDON_AFTER_MINUTES says, in seconds (for drills)
    #[arg(long, value_name = "SECONDS", hide = true)]
    pub abandon_after_s: Option<u64>,
}

pub async fn run(globals: &Globals, args: ServeArgs) -> Result<()> {
    let mut settings = globals.settings()?;
    let path = |p: Option<PathBuf>| p.map(|p| p.display().to_string());
    settings.given("DUMONT_LISTEN", "--listen", args.listen);
    settings.given("DUMONT_TLS_CERT", "--tls-cert", path(args.tls_cert));
    settings.given("DUMONT_TLS_KEY", "--tls-key", path(args.tls_key));
    settings.given("DUMONT_PUBLIC_URL", "--public-url", args.public_url);
    let listen: SocketAddr = settings.required("DUMONT_LISTEN")?;
    let tls = tls_files(&settings)?;
    if !listen.ip().is_loopback() && tls.is_none() && !args.allow_remote {
        return Err(usage(
            format!(
                "{listen} is reachable from other machines, and without TLS every token crosses the network in the clear"
            ),
            "give --tls-cert and --tls-key, keep to 127.0.0.1 behind a TLS proxy, or pass --allow-remote if the network is trusted",
        ));
    }
    let data_dir = globals.data_dir()?;
    let config = config(globals, listen)?;
    let config = ServerConfig {
        abandon_after: args
            .abandon_after_s
            .map(Duration::from_secs)
            .or(config.abandon_after),
        tls,
        public_url: settings.text("DUMONT_PUBLIC_URL").map(public_url).transpose()?,
        crash_at: args.crash_at,
        ..config
    };
    super::log_to_stderr(&settings);
    let told = config.vast_webhook_secret.is_some();
    let (rents, next) = match config.vast {
        Some(_) => (
            "at Vast.ai, and machines of your own",
            "dumont workspace create NAME --from DIR",
        ),
        None => (
            "machines of your own only; at Vast.ai too with VAST_API_KEY",
            "dumont machine add ssh:NAME --host HOST, then dumont deploy NAME --provider ssh --from DIR",
        ),
    };
    let stop = super::until_stopped()?;
    let mut server = dumont_server::start(config).await.map_err(refused)?;
    if globals.json {
        output::json(&serde_json::json!({ "url": server.url(), "data_dir": data_dir }))?;
    } else if !globals.quiet {
        let mut facts = vec![
            ("server", server.url().to_owned()),
            ("data", data_dir.display().to_string()),
            ("rents", rents.into()),
            (
                "token",
                format!(
                    "{} (the CLI on this machine finds it)",
                    data_dir.join("admin.token").display()
                ),
            ),
            ("next", next.into()),
        ];
        if told {
            let webhook = format!(
                "{}/api/v1/providers/vast/webhook (for Vast.ai's notifications)",
                server.url()
            );
            facts.insert(1, ("webhook", webhook));
        }
        output::facts(&facts);
    }
    tokio::select! {
        ended = server.wait() => return ended.map_err(refused),
        () = stop => {}
    }
    server.shutdown().await;
    Ok(())
}

/// What `serve` is told by its surroundings; `dumont doctor` looks at the same.
pub fn config(globals: &Globals, listen: SocketAddr) -> Result<ServerConfig> {
    let settings = globals.settings()?;
    let get = |name: &str| settings.text(name).map(str::to_owned);
    let vast = VastConfig::from_vars(get).map_err(|e| fail("bad_vast_settings", e.message, e.hint))?;
    let s3 = S3Config::from_vars(&get).map_err(|e| fail("bad_store_settings", e.message, e.hint))?;
    Ok(ServerConfig {
        listen,
        tls: None,
        public_url: None,
        data_dir: globals.data_dir()?,
        database: settings.database()?,
        agent: AgentBinary {
            gz: AGENT_GZ,
            digest: AGENT_DIGEST,
        },
        s3,
        vast,
        vast_webhook_secret: get("VAST_WEBHOOK_SECRET").map(WebhookSecret),
        ssh_inventory: settings.text("SSH_INVENTORY").map(PathBuf::from),
        race: dumont_core::plan::RaceSettings::default(),
        adaptive: dumont_core::plan::adaptive::AdaptiveSettings::default(),
        attempt_retention_days: settings.required("ATTEMPT_RETENTION_DAYS")?,
        blacklist: blacklist(&settings)?,
        snapshot_every: Duration::from_secs(
            60 * settings.required::<u64>("PERIODIC_SNAPSHOT_INTERVAL_MINUTES")?,
        ),
        caps: Caps {
            per_day: settings.required("SPENDING_CAP_PER_DAY")?,
            per_month: settings.required("SPENDING_CAP_PER_MONTH")?,
        },
        abandon_after: abandon_after(&settings)?,
        reaper_ceiling: settings.required("REAPER_CEILING")?,
        timing: Timing {
            orphan_grace: Duration::from_secs(settings.required("REAPER_GRACE_SECONDS")?),
            ..Timing::default()
        },
        crash_at: None,
    })
}

/// None for 0.
fn abandon_after(settings: &Settings) -> Result<Option<Duration>> {
    let after = Duration::from_secs(60 * settings.required::<u64>("ABANDON_AFTER_MINUTES")?);
    if after.is_zero() {
        return Ok(None);
    }
    if after < lease::LEAST {
        let least = lease::LEAST.as_secs() / 60;
        return Err(usage(
            format!(
                "ABANDON_AFTER_MINUTES is shorter than {least} minutes: a slow boot would look like absence"
            ),
            format!("set it to {least} or more, or to 0 for machines that never stop by themselves"),
        ));
    }
    Ok(Some(after))
}

/// Both, or neither.
fn tls_files(settings: &Settings) -> Result<Option<TlsFiles>> {
    let file = |name| settings.text(name).map(PathBuf::from);
    match (file("DUMONT_TLS_CERT"), file("DUMONT_TLS_KEY")) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(usage(
            "there is a certificate, but no private key for it",
            "give --tls-key (DUMONT_TLS_KEY) as well",
        )),
        (None, Some(_)) => Err(usage(
            "there is a private key, but no certificate",
            "give --tls-cert (DUMONT_TLS_CERT) as well",
        )),
    }
}

/// An address of a server, without a path.
fn public_url(text: &str) -> Result<String> {
    let whole = reqwest::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.path() == "/"
            && url.query().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    });
    if whole {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    Err(usage(
        "--public-url (DUMONT_PUBLIC_URL) is not the address of a server",
        "write it like https://dumont.example.org:7070",
    ))
}

/// The rules, with the thresholds that are set.
pub fn blacklist(settings: &Settings) -> Result<dumont_core::blacklist::Settings> {
    Ok(dumont_core::blacklist::Settings {
        rules: settings.required("BLACKLIST_RULES")?,
        min_attempts: settings.required("MIN_ATTEMPTS_FOR_BLACKLIST")?,
        min_success_rate: settings.required("MIN_SUCCESS_RATE")?,
        automatic_days: settings.required("AUTOMATIC_BLACKLIST_DAYS")?,
        temporary_hours: settings.required("TEMPORARY_BLACKLIST_HOURS")?,
        consecutive_failures: settings.required("CONSECUTIVE_FAILURES_FOR_BLACKLIST")?,
        interrupts: settings.required("INTERRUPTS_FOR_BLACKLIST")?,
        interrupt_days: settings.required("INTERRUPT_WINDOW_DAYS")?,
        critical: critical(settings.text("CRITICAL_FAILURE_REASONS").unwrap_or_default()),
        release_when_below: settings.optional("RELEASE_BLACKLIST_BELOW")?,
    })
}

fn critical(words: &str) -> Vec<Reason> {
    let words = words.split(',').map(str::trim);
    words
        .filter(|w| !w.is_empty() && *w != "none")
        .map(Reason::from)
        .collect()
}

fn refused(e: ServerError) -> anyhow::Error {
    let (code, hint) = match &e {
        ServerError::DataDir { .. } => (
            "data_dir",
            "check its owner and free space, or choose another --data-dir",
        ),
        ServerError::InUse(_) => (
            "data_dir_in_use",
            "`dumont workspace list` talks to the one that runs",
        ),
        ServerError::Listen { .. } => (
            "cannot_listen",
            "choose another port with --listen 127.0.0.1:PORT",
        ),
        ServerError::Tls { .. } => (
            "bad_certificate",
            "both are PEM: the certificate with its chain, and its own private key, not encrypted",
        ),
        ServerError::Inventory(_) => (
            "bad_inventory",
            "correct the file that SSH_INVENTORY names: [[machines]] with machine = \"ssh:NAME\" and host",
        ),
        ServerError::Provider(_) => ("provider", "check VAST_URL and VAST_API_KEY"),
        ServerError::Unreachable { .. } => (
            "provider_not_configured",
            "they cost money until they are ended: set VAST_API_KEY to the key of that account and start again",
        ),
        ServerError::Objects(e) => return fail(e.code(), e.to_string(), e.hint().to_owned()),
        ServerError::Setting(e) => return fail("bad_store_settings", e.message.clone(), e.hint.clone()),
        ServerError::Store(StoreError::Unavailable(_)) => (
            "database_unavailable",
            "check that PostgreSQL runs and that DATABASE_URL or DB_* lead to it (`dumont config show`)",
        ),
        ServerError::Store(StoreError::BadUrl(_)) => (
            "bad_database_url",
            "correct DATABASE_URL or DB_* (`dumont config show`)",
        ),
        ServerError::Store(StoreError::Database(_)) => (
            "database",
            "check the user, the password and the name of the database (`dumont config show`)",
        ),
        _ => ("server_failed", "look at the log above"),
    };
    fail(code, e.to_string(), hint)
}
