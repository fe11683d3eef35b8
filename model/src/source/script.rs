//! Changes from memory, for tests and benches.

use tokio::sync::mpsc;

use crate::cluster::{Change, Kind};

/// Speaks for a cluster that exists in a test only. Dropping it ends the feed.
#[derive(Clone, Debug)]
pub struct Script {
    out: mpsc::Sender<Vec<Change>>,
}

/// Nobody reads what a script says any more.
#[derive(Debug, thiserror::Error)]
#[error("the cluster that the script speaks to is gone")]
pub struct ScriptError;

impl Script {
    pub(crate) const fn new(out: mpsc::Sender<Vec<Change>>) -> Self {
        Self { out }
    }

    /// Says changes, which arrive together.
    ///
    /// # Errors
    /// Nobody reads them.
    pub async fn say(&self, changes: impl IntoIterator<Item = Change>) -> Result<(), ScriptError> {
        let changes = changes.into_iter().collect();
        self.out.send(changes).await.map_err(|_gone| ScriptError)
    }

    /// Says that these objects are all there are of every kind.
    ///
    /// # Errors
    /// Nobody reads them.
    pub async fn list(&self, objects: impl IntoIterator<Item = Change>) -> Result<(), ScriptError> {
        let begin = Kind::ALL.into_iter().map(Change::ListBegins);
        let done = Kind::ALL.into_iter().map(Change::ListDone);
        self.say(begin.chain(objects).chain(done)).await
    }
}
