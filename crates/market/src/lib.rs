//! A GPU marketplace for tests and drills: Vast.ai's protocol in front, real
//! machines behind.
//!
//! Whoever rents here talks the same HTTP as with Vast.ai and then logs in over
//! SSH to a machine with processes and a disk of its own. An operator's port,
//! loopback only, kills machines, arms faults and keeps the ledger that says
//! what was rented, for how long and for how much. Nothing here knows who the
//! client is.

// The rows have a hundred fields, and `json!` recurses once for each.
#![recursion_limit = "512"]

mod admin;
mod api;
mod asked;
mod board;
mod boot;
mod cell;
mod config;
mod course;
mod error;
mod faults;
mod hardware;
mod instance;
mod limits;
mod machine;
mod market;
mod money;
mod net;
mod offers;
mod order;
mod outfit;
mod presets;
mod proxy;
mod query;
mod results;
mod rng;
mod rows;
mod sshd;
mod state;
mod switches;
mod tides;
mod view;
mod volumes;
mod weather;
mod webhook;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use config::{ClockHook, Isolation, MarketConfig, Sshd};
pub use error::{MachineError, MarketError};
pub use limits::Limits;
pub use presets::Preset;
pub use switches::{SWITCHES, Switch, Switches};
pub use webhook::Webhook;

use crate::market::Inner;
use crate::net::{CuttableListener, Peer};

/// A market that is open.
pub struct Market {
    inner: Arc<Inner>,
    addr: SocketAddr,
    admin_addr: SocketAddr,
    servers: Vec<JoinHandle<()>>,
}

impl Market {
    /// Where the Vast protocol is served: what `VAST_URL` is set to.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Where the operator's side is served.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin_addr)
    }

    /// The isolation in force: `namespace`, `user-namespace` or `directory`.
    pub fn isolation(&self) -> &'static str {
        self.inner.kind.as_str()
    }

    /// Closes the market and ends every machine; returns when they are gone.
    pub async fn shutdown(mut self) {
        self.close();
        self.inner.end_all().await;
    }

    fn close(&mut self) {
        self.inner.stop.cancel();
        for server in self.servers.drain(..) {
            server.abort();
        }
    }
}

impl Drop for Market {
    /// The machines go with it too, a little later: their lifelines close.
    fn drop(&mut self) {
        self.close();
        self.inner.abandon();
    }
}

/// Opens a market on the current tokio runtime.
pub async fn start(config: MarketConfig) -> Result<Market, MarketError> {
    config.check()?;
    let listener = listen(config.listen).await?;
    let admin_listener = listen(config.admin_listen).await?;
    let inner = Inner::new(config).await?;
    let local = |l: &TcpListener| {
        l.local_addr().map_err(|source| MarketError::Listen {
            addr: inner.config.listen,
            source,
        })
    };
    let (addr, admin_addr) = (local(&listener)?, local(&admin_listener)?);
    inner.run_course();
    let servers = vec![
        serve(&inner, listener, api::router(Arc::clone(&inner))),
        serve(&inner, admin_listener, admin::router(Arc::clone(&inner))),
    ];
    Ok(Market {
        inner,
        addr,
        admin_addr,
        servers,
    })
}

async fn listen(addr: SocketAddr) -> Result<TcpListener, MarketError> {
    TcpListener::bind(addr)
        .await
        .map_err(|source| MarketError::Listen { addr, source })
}

fn serve(inner: &Inner, listener: TcpListener, router: axum::Router) -> JoinHandle<()> {
    let listener = CuttableListener {
        listener,
        all: inner.stop.clone(),
    };
    tokio::spawn(async move {
        let service = router.into_make_service_with_connect_info::<Peer>();
        if let Err(error) = axum::serve(listener, service).await {
            tracing::error!(%error, "the market's server ended");
        }
    })
}
