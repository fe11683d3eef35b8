//! The Kubernetes API of the demo's companion, in its own words: JSON.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use http::{Method, Request, header};
use model::source::kube::{Connection, KubeConfig};
use sandbox::netns::Netns;
use serde_json::Value;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(20);

/// A client of the companion, which serves on its node's loopback only.
#[derive(Debug)]
pub(super) struct Api {
    netns: Netns,
    kubeconfig: PathBuf,
}

impl Api {
    /// The API that `kubeconfig` leads to from a node.
    pub(super) fn new(netns: &Netns, kubeconfig: &Path) -> Self {
        Self { netns: netns.clone(), kubeconfig: kubeconfig.to_owned() }
    }

    /// The object or the list at `path`.
    pub(super) fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::GET, path, "application/json", Vec::new())
    }

    /// Makes an object in the collection at `path`.
    pub(super) fn create(&self, path: &str, object: &Value) -> anyhow::Result<Value> {
        self.send(Method::POST, path, "application/json", object.to_string().into())
    }

    /// Merges a patch into the object at `path`.
    pub(super) fn merge(&self, path: &str, patch: &Value) -> anyhow::Result<Value> {
        self.send(Method::PATCH, path, "application/merge-patch+json", patch.to_string().into())
    }

    /// Deletes the object at `path`, which may take its time to go.
    pub(super) fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.send(Method::DELETE, path, "application/json", Vec::new())
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> anyhow::Result<Value> {
        let what = format!("{method} {path}");
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header::CONTENT_TYPE, content_type).body(body)?;
        // Sockets are those of the namespace in which they are opened.
        let answered = self.netns.run(|| self.ask(request));
        answered.context("entering the node's network").flatten().context(what)
    }

    fn ask(&self, request: Request<Vec<u8>>) -> anyhow::Result<Value> {
        let config = KubeConfig { kubeconfig: Some(self.kubeconfig.clone()), master: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let connection = Connection::find(&config).await?;
            let answer = connection.client().request(request);
            let late = || format!("no answer within {} s", WITHIN.as_secs());
            Ok(tokio::time::timeout(WITHIN, answer).await.with_context(late)??)
        })
    }
}
