//! Start and stop of a server.

use crate::app::{App, Market, ProgressBoard};
use crate::files::write_private;
use crate::hints::Hints;
use crate::history::Curves;
use crate::http::{auth, imports::Imports, router};
use crate::objects::file::FileStore;
use crate::objects::s3::{BadSetting, S3Config, S3Store};
use crate::objects::{ObjectError, ObjectStore};
use crate::providers::Provider;
use crate::providers::listing::Listing;
use crate::providers::own::OwnMachines;
use crate::providers::vast::Vast;
use crate::sessions::Sessions;
use crate::settings::{Database, ServerConfig};
use crate::tls::Tls;
use crate::workflows::dispose::Disposals;
use crate::{reconcilers, ssh, tls, workflows};
use dumont_store::{InstanceRow, InstanceState, Store};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "cannot use the data directory {path}: {reason}; check its owner and free space, or choose another --data-dir"
    )]
    DataDir { path: PathBuf, reason: String },
    #[error("another dumont server already uses {0}; stop it, or choose another --data-dir")]
    InUse(PathBuf),
    #[error("cannot listen on {addr}: {source}; choose another --listen, or stop what uses that port")]
    Listen {
        addr: SocketAddr,
        source: std::io::Error,
    },
    #[error("TLS: {cert} and {key} cannot be used: {reason}")]
    Tls {
        cert: PathBuf,
        key: PathBuf,
        reason: String,
    },
    #[error(transparent)]
    Store(#[from] dumont_store::Error),
    #[error("provider: {0}")]
    Provider(String),
    #[error(
        "{count} of this installation's contracts at {provider} have not ended, and it has no key for it"
    )]
    Unreachable { provider: String, count: usize },
    #[error("the inventory of machines cannot be used: {0}")]
    Inventory(String),
    #[error(transparent)]
    Setting(#[from] BadSetting),
    #[error(transparent)]
    Objects(#[from] ObjectError),
    #[error("the server stopped: {0}")]
    Stopped(String),
}

/// What a request under way gets at the end.
const GRACE: std::time::Duration = std::time::Duration::from_secs(3);

/// A running server.
pub struct Server {
    app: Arc<App>,
    addr: SocketAddr,
    serving: JoinHandle<std::io::Result<()>>,
    tasks: Vec<JoinHandle<()>>,
    /// Held as long as the server lives; the kernel frees it if the process dies.
    _lock: fs::File,
}

/// Opens the data directory, resumes what was left, and serves.
pub async fn start(config: ServerConfig) -> Result<Server, ServerError> {
    let vast = config.vast.clone();
    begin(config, |store| {
        let Some(vast) = vast else { return Ok(None) };
        let vast = Vast::shared(vast, store).map_err(|e| ServerError::Provider(e.to_string()))?;
        Ok(Some(Arc::new(vast)))
    })
    .await
}

/// `start` with another marketplace: a measurement of the server must not time a provider.
pub async fn start_with(config: ServerConfig, provider: Arc<dyn Provider>) -> Result<Server, ServerError> {
    begin(config, |_| Ok(Some(provider))).await
}

/// Replicas share a provider's limits through the database, so that comes first.
async fn begin(
    config: ServerConfig,
    provider: impl FnOnce(Store) -> Result<Option<Arc<dyn Provider>>, ServerError>,
) -> Result<Server, ServerError> {
    crate::metrics::install();
    let lock = open_data_dir(&config.data_dir)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| ServerError::Listen {
            addr: config.listen,
            source,
        })?;
    let addr = listener.local_addr().map_err(|source| ServerError::Listen {
        addr: config.listen,
        source,
    })?;
    let tls = match &config.tls {
        Some(files) => Some(tls::load(files).await?),
        None => None,
    };
    let app = Arc::new(assemble(config, provider, addr).await?);

    let dir = &app.config.data_dir;
    let failed = |reason: String| ServerError::DataDir {
        path: dir.clone(),
        reason,
    };
    auth::ensure_admin(&app.store, &dir.join("admin.token"), app.now())
        .await
        .map_err(failed)?;
    let about = serde_json::json!({ "url": app.public_url, "pid": std::process::id() });
    write_private(&dir.join("server.json"), about.to_string().as_bytes())
        .map_err(|e| failed(e.to_string()))?;

    free_predecessor(&app, &app.config.data_dir.join("process.id")).await?;
    let tasks = vec![
        tokio::spawn(register_key(app.clone())),
        tokio::spawn(workflows::engine::run(app.clone())),
        tokio::spawn(reconcilers::monitor::run(app.clone())),
        tokio::spawn(reconcilers::reaper::run(app.clone())),
        tokio::spawn(reconcilers::retention::run(app.clone())),
        tokio::spawn(reconcilers::uploads::run(app.clone())),
        tokio::spawn(reconcilers::schedule::run(app.clone())),
        tokio::spawn(reconcilers::models::run(app.clone())),
        tokio::spawn(reconcilers::history::run(app.clone())),
        tokio::spawn(reconcilers::leases::run(app.clone())),
    ];
    let serving = tokio::spawn(serve(app.clone(), listener, tls));
    tracing::info!(url = %app.public_url, data_dir = %app.config.data_dir.display(), "serving");
    Ok(Server {
        app,
        addr,
        serving,
        tasks,
        _lock: lock,
    })
}

async fn serve(app: Arc<App>, listener: TcpListener, tls: Option<Tls>) -> std::io::Result<()> {
    let service = router(app.clone());
    let stopping = app.stopping.clone();
    let Some(tls) = tls else {
        return axum::serve(listener, service)
            .with_graceful_shutdown(async move { stopping.cancelled().await })
            .await;
    };
    let config = tls.config.clone();
    let reloading = tokio::spawn(tls::reload_on_hangup(tls, stopping.clone()));
    let handle = axum_server::Handle::new();
    let ending = handle.clone();
    tokio::spawn(async move {
        stopping.cancelled().await;
        ending.graceful_shutdown(Some(GRACE));
    });
    let ended = axum_server::from_tcp_rustls(listener.into_std()?, config)?
        .handle(handle)
        .serve(service.into_make_service())
        .await;
    reloading.abort();
    ended
}

impl Server {
    pub fn url(&self) -> &str {
        &self.app.public_url
    }

    /// Contracts that cost money or may: everything not yet seen to be gone.
    pub async fn owes(&self) -> Result<u64, ServerError> {
        let open = self.app.store.list_open_instances().await?;
        Ok(open.iter().filter(|row| may_cost(row)).count() as u64)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until the listener fails or `shutdown` is called elsewhere.
    pub async fn wait(&mut self) -> Result<(), ServerError> {
        match (&mut self.serving).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(ServerError::Stopped(e.to_string())),
            Err(e) => Err(ServerError::Stopped(e.to_string())),
        }
    }

    /// Stops taking work. What runs is taken up again by the next start.
    pub async fn shutdown(mut self) {
        self.app.stopping.cancel();
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
        let _ = tokio::time::timeout(GRACE, &mut self.serving).await;
        self.serving.abort();
        self.app.store.close().await;
    }
}

fn open_data_dir(dir: &Path) -> Result<fs::File, ServerError> {
    let failed = |e: std::io::Error| ServerError::DataDir {
        path: dir.to_owned(),
        reason: e.to_string(),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed)?;
    let lock = fs::File::create(dir.join("server.lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(ServerError::InUse(dir.to_owned())),
        Err(fs::TryLockError::Error(e)) => Err(failed(e)),
    }
}

async fn assemble(
    config: ServerConfig,
    provider: impl FnOnce(Store) -> Result<Option<Arc<dyn Provider>>, ServerError>,
    addr: SocketAddr,
) -> Result<App, ServerError> {
    let dir = config.data_dir.clone();
    let failed = |reason: String| ServerError::DataDir {
        path: dir.clone(),
        reason,
    };
    let store = match &config.database {
        Database::Embedded => Store::open(dir.join("dumont.db")).await?,
        Database::Postgres { url } => Store::connect(url).await?,
    };
    let provider = provider(store.clone())?;
    let fresh = Ulid::generate().to_string().to_lowercase();
    let controller_id = store.meta_get_or_insert("controller_id", &fresh[14..]).await?;
    let (objects, object_routes) = match &config.s3 {
        Some(s3) => (open_bucket(s3, &store).await?, None),
        None => {
            let secret = signing_secret(&dir.join("objects.key")).map_err(|e| failed(e.to_string()))?;
            let files = FileStore::open(dir.join("objects"), secret).map_err(|e| failed(e.to_string()))?;
            let files = Arc::new(files);
            let routes = files.clone().router();
            (files as Arc<dyn ObjectStore>, Some(routes))
        }
    };
    let key = ssh::load_or_create(&dir.join("id_ed25519")).map_err(|e| failed(e.to_string()))?;
    let public_key = ssh::public_line(key.public_key()).map_err(|e| failed(e.to_string()))?;
    let key = Arc::new(key);
    let own = OwnMachines::new(
        store.clone(),
        key.clone(),
        public_key.clone(),
        config.ssh_inventory.clone(),
    );
    own.check_file().map_err(ServerError::Inventory)?;
    let own = Arc::new(own);
    let market = |provider: Arc<dyn Provider>| {
        let listing = Listing::new(provider.clone(), config.timing.listing);
        (provider.name(), Market { provider, listing })
    };
    let markets: BTreeMap<_, _> = provider
        .into_iter()
        .chain([own.clone() as _])
        .map(market)
        .collect();
    nothing_is_left_elsewhere(&store, &markets).await?;
    Ok(App {
        object_routes,
        objects,
        store,
        markets,
        own,
        ssh_key: key,
        public_key,
        controller_id,
        process_id: Ulid::generate().to_string(),
        sessions: Sessions::default(),
        disposals: Disposals::default(),
        progress: ProgressBoard::default(),
        imports: Imports::default(),
        token_uses: auth::Uses::default(),
        curves: Curves::default(),
        passes: Semaphore::new(1),
        work: Notify::new(),
        preempted: Notify::new(),
        reap: Notify::new(),
        watch: Notify::new(),
        orphans: std::sync::atomic::AtomicU64::new(0),
        renting: tokio::sync::Mutex::default(),
        hints: Hints::default(),
        public_url: public_url(&config, addr),
        stopping: CancellationToken::new(),
        config,
    })
}

/// What is rented costs money until somebody with the account's key ends it.
async fn nothing_is_left_elsewhere(
    store: &Store,
    markets: &BTreeMap<&'static str, Market>,
) -> Result<(), ServerError> {
    let open = store.list_open_instances().await?;
    let elsewhere = |row: &&InstanceRow| !markets.contains_key(row.machine.provider.as_str());
    let mut left = open
        .iter()
        .filter(elsewhere)
        .filter(|row| may_cost(row))
        .peekable();
    let Some(first) = left.peek() else { return Ok(()) };
    Err(ServerError::Unreachable {
        provider: first.machine.provider.clone(),
        count: left.count(),
    })
}

fn may_cost(row: &InstanceRow) -> bool {
    row.state != InstanceState::Failed || row.instance_id.is_some()
}

/// As it was said, else the address that is listened on; on all addresses, the nearest one.
fn public_url(config: &ServerConfig, addr: SocketAddr) -> String {
    if let Some(url) = &config.public_url {
        return url.trim_end_matches('/').to_owned();
    }
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let mut near = addr;
    if addr.ip().is_unspecified() {
        near.set_ip(match addr {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("{scheme}://{near}")
}

/// Tries the bucket out. What only a person can put right ends the start; a store that is
/// away comes back, and the workspaces need their controller meanwhile.
async fn open_bucket(config: &S3Config, store: &Store) -> Result<Arc<dyn ObjectStore>, ServerError> {
    let bucket = S3Store::new(config.clone(), Some(store.clone()))?;
    let tried = match bucket.ping().await {
        Ok(()) => bucket.abilities().await.map(drop),
        Err(error) => Err(error),
    };
    match tried {
        Ok(()) => {}
        Err(ObjectError::Store(refusal)) if refusal.transient => {
            tracing::warn!(error = %refusal, hint = refusal.hint, "the object store does not answer yet");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(Arc::new(bucket))
}

/// What the last process of this data directory held is free at once: we have the lock, so
/// that one is dead. Nobody else's leases are touched; other controllers may live on the same
/// database. Our own name is on disk before we hold anything.
async fn free_predecessor(app: &App, file: &Path) -> Result<(), ServerError> {
    if let Ok(predecessor) = fs::read_to_string(file) {
        let freed = app.store.free_workflows_of(predecessor.trim()).await?;
        if freed > 0 {
            tracing::info!(workflows = freed, "takes up what the last process left");
        }
    }
    write_private(file, app.process_id.as_bytes()).map_err(|e| ServerError::DataDir {
        path: app.config.data_dir.clone(),
        reason: e.to_string(),
    })
}

/// The key that signs URLs of the embedded store: made once, kept.
fn signing_secret(path: &Path) -> std::io::Result<[u8; 32]> {
    if let Ok(bytes) = fs::read(path)
        && let Ok(secret) = bytes.try_into()
    {
        return Ok(secret);
    }
    let mut secret = [0; 32];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut secret);
    write_private(path, &secret)?;
    Ok(secret)
}

/// The account must know our key before anything is rented; repeated until it does.
async fn register_key(app: Arc<App>) {
    let mut pause = std::time::Duration::from_millis(500);
    for market in app.markets.values() {
        while let Err(error) = market.provider.register_key(&app.public_key).await {
            tracing::warn!(provider = market.provider.name(), %error, "cannot register the SSH key yet");
            tokio::select! {
                () = app.stopping.cancelled() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(std::time::Duration::from_secs(60)),
            }
        }
    }
}
