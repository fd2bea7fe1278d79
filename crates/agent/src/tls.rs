//! TLS by the controller's word: its time, its addresses, its authority.
//!
//! A rented host's clock may be off by hours or years and cannot always be set, and its owner
//! is a stranger. So certificates are judged at the time that the controller named in its
//! hello, carried on by the kernel's monotonic clock; the roots are embedded, the host's own
//! are not looked at. The HTTP client brings a TLS connector, but none whose clock can be
//! given; this is that connector with our configuration.

use dumont_core::time::Timestamp;
use rustls::client::ClientConnection;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, StreamOwned};
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

/// Whom and when to believe. Cheap to clone. Without a configuration, every handshake fails.
#[derive(Clone)]
pub struct Trust(Option<Arc<ClientConfig>>);

impl Trust {
    /// `now` is the controller's; `ca` is PEM, for certificates of a private authority.
    pub fn new(now: Timestamp, ca: Option<&str>) -> Self {
        let mut roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        let private = ca.map_or(&[][..], str::as_bytes);
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(private).filter_map(Result::ok));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clock = Arc::new(Clock {
            then: Instant::now(),
            unix: Duration::from_micros(u64::try_from(now.0).unwrap_or(0)),
        });
        let config = ClientConfig::builder_with_details(provider, clock)
            .with_safe_default_protocol_versions()
            .map(|builder| builder.with_root_certificates(roots).with_no_client_auth());
        Self(config.ok().map(Arc::new))
    }
}

impl Default for Trust {
    /// Before the hello there is only the host's clock.
    fn default() -> Self {
        Self::new(crate::facts::now(), None)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

#[derive(Debug)]
struct Clock {
    then: Instant,
    unix: Duration,
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.unix + self.then.elapsed()))
    }
}

/// Wraps a connection to an `https` URL; others pass as they are.
#[derive(Debug)]
pub struct Tls(pub Trust);

impl<In: Transport> Connector<In> for Tls {
    type Out = Either<In, Wrapped>;

    fn connect(&self, details: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or("");
        let name = ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']').to_owned())
            .map_err(|_| Error::BadUri(format!("{host:?} is not a name for a certificate")))?;
        let config = self
            .0
            .0
            .clone()
            .ok_or(Error::Tls("no version of it is built in"))?;
        let mut conn = ClientConnection::new(config, name).map_err(Error::Rustls)?;
        let mut sock = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        sock.set_timeout(details.timeout);
        conn.complete_io(&mut sock).map_err(unwrapped)?;
        let (input, output) = (
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        Ok(Some(Either::B(Wrapped {
            buffers: LazyBuffers::new(input, output),
            stream: StreamOwned { conn, sock },
        })))
    }
}

/// What TLS itself refuses is told apart from a broken connection: it does not get better.
fn unwrapped(error: io::Error) -> Error {
    match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(refusal) => Error::Rustls(refusal.clone()),
        None => Error::Io(error),
    }
}

pub struct Wrapped {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wrapped")
    }
}

impl Transport for Wrapped {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        Ok(self.stream.write_all(output)?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let amount = self.stream.read(input)?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
