//! The log on disk: a row for each version, in `SQLite`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, params};

use super::{Event, OpenStoreError, State};
use crate::kinds::{KINDS, Kind};
use crate::object::{Key, Object};

/// The database. One process at a time: it is locked exclusively.
#[derive(Debug)]
pub(super) struct Disk {
    connection: Connection,
}

/// What compaction takes out: the rows that nothing needs once history up to a revision is gone.
#[derive(Debug)]
pub(super) struct Obsolete {
    pub(super) revision: u64,
    pub(super) rows: Vec<u64>,
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS log (
    revision  INTEGER PRIMARY KEY,
    kind      TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    deleted   INTEGER NOT NULL,
    json      BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;
";

impl Disk {
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        // A process that was killed has let go already; one that lives will not.
        connection.busy_timeout(Duration::from_millis(500))?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // FULL: the log is synced at each commit, so that an answered write survives a power cut.
        connection.pragma_update(None, "synchronous", "FULL")?;
        // Often and little: whoever waits for a checkpoint waits for a millisecond.
        connection.pragma_update(None, "wal_autocheckpoint", 128)?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self { connection })
    }

    /// Reads everything back.
    pub(super) fn load(&self) -> Result<State, OpenStoreError> {
        let mut state = State::empty();
        let compacted = self.counter("compacted")?;
        let mut query = self.connection.prepare(
            "SELECT revision, kind, namespace, name, deleted, json FROM log ORDER BY revision",
        )?;
        let mut rows = query.query([])?;
        let mut begun = false;
        while let Some(row) = rows.next()? {
            let revision = row.get::<_, i64>(0)?.cast_unsigned();
            if revision > compacted && !begun {
                state.history.begin_at(compacted);
                begun = true;
            }
            let event = read_event(&state, row, revision)?;
            state.apply(event);
            if revision <= compacted {
                state.history.compact(revision);
            }
        }
        if !begun {
            state.history.begin_at(compacted);
        }
        state.revision = state.revision.max(compacted).max(1);
        Ok(state)
    }

    /// Writes a batch of changes and takes out what compaction made obsolete, all or none.
    pub(super) fn append(
        &mut self,
        events: &[Event],
        obsolete: Option<&Obsolete>,
    ) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO log VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
            for event in events {
                let kind = KINDS.get(event.key.kind).map(Kind::resource);
                insert.execute(params![
                    event.object.revision.cast_signed(),
                    kind,
                    &*event.key.namespace,
                    &*event.key.name,
                    event.deleted,
                    &event.object.json[..],
                ])?;
            }
        }
        if let Some(Obsolete { revision, rows }) = obsolete {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO counter VALUES ('compacted', ?1)")?
                .execute([revision.cast_signed()])?;
            let mut delete = transaction.prepare_cached("DELETE FROM log WHERE revision = ?1")?;
            for row in rows {
                delete.execute([row.cast_signed()])?;
            }
        }
        transaction.commit()
    }

    fn counter(&self, name: &str) -> rusqlite::Result<u64> {
        let mut query = self.connection.prepare("SELECT value FROM counter WHERE name = ?1")?;
        let mut rows = query.query([name])?;
        let value = rows.next()?.map(|row| row.get::<_, i64>(0)).transpose()?;
        Ok(value.unwrap_or(0).cast_unsigned())
    }
}

fn read_event(
    state: &State,
    row: &rusqlite::Row<'_>,
    revision: u64,
) -> Result<Event, OpenStoreError> {
    let corrupt = |reason: String| OpenStoreError::Corrupt { revision, reason };
    let resource: String = row.get(1)?;
    let kind = KINDS
        .iter()
        .position(|kind| kind.resource() == resource)
        .ok_or_else(|| corrupt(format!("kind {resource} is not known to this version")))?;
    let key = Key::new(kind, &row.get::<_, String>(2)?, &row.get::<_, String>(3)?);
    let json = Bytes::from(row.get::<_, Vec<u8>>(5)?);
    let object = Object::open(kind, json, revision).map_err(|error| corrupt(error.to_string()))?;
    let previous = state.get(&key);
    Ok(Event { key, object: Arc::new(object), previous, deleted: row.get(4)? })
}
