//! TLS of the API: a certificate and its key from files, read again on SIGHUP.
//!
//! Renewal must not need a restart: certificates live for weeks, races and snapshots run at any
//! hour. Files that cannot be used leave the certificate in force as it is and say so in the log.

use crate::startup::ServerError;
use axum_server::tls_rustls::RustlsConfig;
use std::path::PathBuf;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those of the authorities between it and the root.
    pub cert: PathBuf,
    pub key: PathBuf,
}

fn unusable(files: &TlsFiles, e: &std::io::Error) -> ServerError {
    ServerError::Tls {
        cert: files.cert.clone(),
        key: files.key.clone(),
        reason: e.to_string(),
    }
}

/// A certificate in force, and the signal that has it read again: from here on it ends nothing.
pub struct Tls {
    files: TlsFiles,
    pub config: RustlsConfig,
    hangup: Signal,
}

pub async fn load(files: &TlsFiles) -> Result<Tls, ServerError> {
    let unusable = |e| unusable(files, &e);
    let hangup = signal(SignalKind::hangup()).map_err(unusable)?;
    let config = RustlsConfig::from_pem_file(&files.cert, &files.key).await;
    Ok(Tls {
        files: files.clone(),
        config: config.map_err(unusable)?,
        hangup,
    })
}

/// Reads the files again at each SIGHUP, until the server stops.
pub async fn reload_on_hangup(tls: Tls, stopping: CancellationToken) {
    let Tls {
        files,
        config,
        mut hangup,
    } = tls;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            asked = hangup.recv() => if asked.is_none() { return },
        }
        match config.reload_from_pem_file(&files.cert, &files.key).await {
            Ok(()) => tracing::info!(cert = %files.cert.display(), "the certificate was read again"),
            Err(e) => tracing::error!("{}; the old one stays in force", unusable(&files, &e)),
        }
    }
}
