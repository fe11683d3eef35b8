//! Health, readiness and metrics over HTTP, where CoreDNS has them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{ListenError, Names, tcp};

/// Where each is asked; `None` is nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// `/health`: whether the process lives.
    pub health: Option<SocketAddr>,
    /// `/ready`: whether it should be sent questions.
    pub ready: Option<SocketAddr>,
    /// `/metrics`.
    pub metrics: Option<SocketAddr>,
}

/// The pages and what they say.
#[derive(Debug)]
pub struct Admin {
    tasks: JoinSet<()>,
    lameduck: Arc<AtomicBool>,
    addresses: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug)]
enum Page {
    Health,
    Ready,
    Metrics,
}

impl Admin {
    /// Serves the pages about these names. Needs a tokio runtime.
    ///
    /// # Errors
    /// An address cannot be had.
    pub fn start(ports: Ports, names: &Names) -> Result<Self, ListenError> {
        let lameduck = Arc::new(AtomicBool::new(false));
        let mut admin = Self { tasks: JoinSet::new(), lameduck, addresses: Vec::new() };
        for (page, address) in [
            (Page::Health, ports.health),
            (Page::Ready, ports.ready),
            (Page::Metrics, ports.metrics),
        ] {
            let Some(address) = address else { continue };
            let error = |source| ListenError { listen: address, transport: "HTTP", source };
            let listener = TcpListener::from_std(tcp::bind(address)?).map_err(error)?;
            admin.addresses.push(listener.local_addr().map_err(error)?);
            let (names, lameduck) = (names.clone(), Arc::clone(&admin.lameduck));
            admin.tasks.spawn(pages::serve(listener, move |path: String| {
                std::future::ready(respond(&path, page, &names, &lameduck))
            }));
        }
        Ok(admin)
    }

    /// Says from now on that no questions should be sent here.
    pub fn retire(&self) {
        self.lameduck.store(true, Ordering::Relaxed);
    }

    /// Where the pages are, ports filled in: health, readiness, metrics.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Ends.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

fn respond(path: &str, page: Page, names: &Names, lameduck: &AtomicBool) -> pages::Page {
    let unavailable = |text: &str| pages::Page::text(text).with_status(503);
    match (page, path) {
        (Page::Health, "/health") => pages::Page::text("OK"),
        (Page::Ready, "/ready") if lameduck.load(Ordering::Relaxed) => unavailable("lameduck\n"),
        (Page::Ready, "/ready") if names.is_synced() => pages::Page::text("OK"),
        (Page::Ready, "/ready") => unavailable("kubernetes\n"),
        (Page::Metrics, "/metrics") => pages::Page::text(names.metrics()),
        _ => pages::Page::not_found(),
    }
}
