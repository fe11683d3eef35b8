//! `/healthz`, `/livez` and `/metrics`, at kube-proxy's ports.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use pages::{Page, Text};
use proxy::backend::ebpf::usage;
use proxy::health::{Moment, Report};
use proxy::metrics::{kernel, process};
use proxy::observer::Observer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};

/// How often an address is tried that somebody else has.
const AGAIN: Duration = Duration::from_secs(5);

/// Where the pages are.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PageArgs {
    /// Where /healthz and /livez are asked; "" is nowhere.
    #[arg(long, value_name = "ADDR[:PORT]", default_value = "0.0.0.0:10256")]
    healthz_bind_address: String,
    /// Where /metrics is read, and /proxyMode; "" is nowhere.
    #[arg(long, value_name = "ADDR[:PORT]", default_value = "127.0.0.1:10249")]
    metrics_bind_address: String,
    /// End when such an address cannot be had; otherwise it is tried again.
    #[arg(long)]
    bind_address_hard_fail: bool,
}

/// The pages of one proxy.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    pub(super) observer: Observer,
    pub(super) mode: String,
    /// Where the maps of the eBPF mode are pinned.
    pub(super) bpffs: Option<PathBuf>,
    pub(super) sync_period: Duration,
    /// UDP sockets that were ended, and UDP flows that were removed, since their endpoint had gone.
    pub(super) n_stale: [watch::Receiver<u64>; 2],
}

impl PageArgs {
    /// Where each is.
    ///
    /// # Errors
    /// A text that is no address.
    pub(super) fn addresses(&self) -> anyhow::Result<[Option<SocketAddr>; 2]> {
        let healthz = &self.healthz_bind_address;
        let metrics = &self.metrics_bind_address;
        Ok([
            address(healthz, 10256).with_context(|| format!("--healthz-bind-address={healthz}"))?,
            address(metrics, 10249).with_context(|| format!("--metrics-bind-address={metrics}"))?,
        ])
    }

    /// Serves the pages for ever.
    ///
    /// # Errors
    /// An address cannot be had, and `--bind-address-hard-fail` is given.
    pub(super) async fn serve(
        &self,
        [healthz, metrics]: [Option<SocketAddr>; 2],
        of: Pages,
    ) -> anyhow::Result<()> {
        let health = async {
            let listener = self.listen(healthz, "health").await?;
            let pages = of.clone();
            pages::serve(listener, move |path| std::future::ready(pages.health(&path))).await;
            anyhow::Ok(())
        };
        let counted = async {
            let listener = self.listen(metrics, "metrics").await?;
            let pages = of.clone();
            pages::serve(listener, move |path| pages.clone().answer(path)).await;
            anyhow::Ok(())
        };
        tokio::try_join!(health, counted).map(drop)
    }

    async fn listen(&self, at: Option<SocketAddr>, what: &str) -> anyhow::Result<TcpListener> {
        let Some(at) = at else { return std::future::pending().await };
        let mut warned = false;
        loop {
            match TcpListener::bind(at).await {
                Ok(listener) => {
                    info!("{what} at {at}");
                    return Ok(listener);
                }
                Err(error) if self.bind_address_hard_fail => {
                    return Err(error).with_context(|| format!("cannot serve {what} at {at}"));
                }
                Err(error) => {
                    if !std::mem::replace(&mut warned, true) {
                        warn!("no {what} at {at} as yet: {error}; trying again");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

impl Pages {
    fn health(&self, path: &str) -> Page {
        // Behind for as long as that, a proxy is not well.
        let longest = self.sync_period * 2;
        match path {
            "/healthz" => page(&self.observer.healthz(Moment::now(), longest)),
            "/livez" => page(&self.observer.livez(Moment::now(), longest)),
            _ => Page::not_found(),
        }
    }

    async fn answer(self, path: String) -> Page {
        match path.as_str() {
            "/metrics" => {
                // The maps of a large cluster take a while to read.
                let text = tokio::task::spawn_blocking(move || self.metrics()).await;
                Page::text(text.unwrap_or_default())
            }
            "/proxyMode" => Page::text(self.mode),
            "/healthz" => Page::text("ok"),
            _ => Page::not_found(),
        }
    }

    fn metrics(&self) -> String {
        let mut text = Text::default();
        let written = self.write(&mut text);
        text.finish(written)
    }

    fn write(&self, text: &mut Text) -> fmt::Result {
        self.observer.write(&self.mode, text)?;
        if let Some(bpffs) = &self.bpffs {
            self.write_kernel(bpffs, text)?;
        }
        let [sockets, flows] = self.n_stale.each_ref().map(|n| *n.borrow());
        let name = "fairlead_sockets_destroyed_total";
        text.head(name, "counter", "Connected UDP sockets ended because their endpoint had gone.")?;
        text.sample(name, "", sockets)?;
        let name = "kubeproxy_conntrack_reconciler_deleted_entries_total";
        text.head(name, "counter", "Stale UDP flows removed from conntrack, of both families.")?;
        text.sample(name, "", flows)?;
        let name = "kubernetes_build_info";
        text.head(name, "gauge", "What runs here.")?;
        let version = env!("CARGO_PKG_VERSION");
        text.sample(
            name,
            &format!("git_version=\"fairlead-{version}\",mode=\"{}\"", self.mode),
            1,
        )?;
        process::write(text)
    }

    /// What the programs counted.
    fn write_kernel(&self, bpffs: &Path, text: &mut Text) -> fmt::Result {
        let counters = load::pinned::Pinned::under(bpffs).counters().unwrap_or_default();
        kernel::write_counters(&counters, text)?;
        match (usage::usage(bpffs), self.observer.plan()) {
            (Ok(Some(usage)), Some(plan)) => kernel::write_usage(&usage, &plan, text),
            _ => Ok(()),
        }
    }
}

fn page(report: &Report) -> Page {
    Page::json(report.json()).with_status(report.status())
}

/// An address, whose port may be missing; none where there is no text.
fn address(text: &str, port: u16) -> anyhow::Result<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let of_ip = || bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
    let address = text.parse().ok().or_else(of_ip);
    address.context("is no address; write it as 192.0.2.1:10256 or [2001:db8::1]:10256").map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_port_is_the_usual_one() {
        for (text, expected) in [
            ("", None),
            ("0.0.0.0", Some("0.0.0.0:10256")),
            ("127.0.0.1:1", Some("127.0.0.1:1")),
            ("::", Some("[::]:10256")),
            ("[::1]", Some("[::1]:10256")),
            ("[::1]:1", Some("[::1]:1")),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(address(text, 10256).unwrap(), expected, "{text}");
        }
        address("here", 10256).unwrap_err();
    }
}
