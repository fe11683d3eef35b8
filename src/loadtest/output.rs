//! What is left of a run: a table, and files for machines and browsers.

use std::fs::File;
use std::io::{Write, stdout};
use std::path::Path;

use anyhow::Context;
use loadtest::clock::{self, SECOND};
use loadtest::experiment::{Measured, Timetable};
use loadtest::generator::n_processors;
use loadtest::kernel;
use loadtest::report::{self, Report, html, table};

use super::{Args, Scene};

/// The files, opened before anything is measured: then a wrong path costs no time.
#[derive(Debug)]
pub(super) struct Outputs {
    json: Option<File>,
    html: Option<File>,
}

impl Outputs {
    /// # Errors
    /// A file cannot be written.
    pub(super) fn open(args: &Args) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            File::create(path).with_context(|| format!("writing to {}", path.display()))
        };
        Ok(Self {
            json: args.json.as_deref().map(open).transpose()?,
            html: args.html.as_deref().map(open).transpose()?,
        })
    }

    /// Writes the report to each of them, and as a table to standard output.
    ///
    /// # Errors
    /// One cannot be written.
    pub(super) fn write(mut self, report: &Report) -> anyhow::Result<()> {
        if let Some(file) = &mut self.json {
            serde_json::to_writer_pretty(&mut *file, report).context("writing the JSON")?;
            file.write_all(b"\n").context("writing the JSON")?;
        }
        if let Some(file) = &mut self.html {
            file.write_all(html::render(report).as_bytes()).context("writing the HTML")?;
        }
        write!(stdout(), "{}", table::render(report)).context("writing the table")
    }
}

/// The report of what was measured.
///
/// # Errors
/// The time cannot be told.
pub(super) fn report(
    args: &Args,
    scene: &Scene,
    timetable: Timetable,
    measured: &Measured,
) -> anyhow::Result<Report> {
    let begin = measured.rounds.iter().flatten().map(|round| round.tally.begin).min();
    let effects = scene.churn.as_ref().map(|churn| churn.effects.clone()).unwrap_or_default();
    let marks = effects.iter().map(|effect| {
        let at = effect.change.at.saturating_sub(begin.unwrap_or_default());
        let what = if effect.change.is_added { "added" } else { "removed" };
        (at as f64 / SECOND as f64, format!("{} {what}", effect.change.endpoint))
    });
    let mut doubts = measured.doubts.clone();
    doubts.extend(scene.churn.iter().flat_map(|churn| churn.failures.clone()));
    if measured.is_cut_short {
        doubts.push("the run was interrupted before its end".to_owned());
    }
    let seconds = i64::try_from(clock::wall() / SECOND)?;
    Ok(Report {
        target: scene.label.clone(),
        command: super::command_line(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: jiff::Timestamp::from_second(seconds)?.to_string(),
        machine: format!("Linux {}, {} processors", kernel::release(), n_processors()),
        settings: settings(args, scene, timetable),
        arms: report::arms(&scene.arms, &measured.rounds),
        marks: marks.collect(),
        changes: effects,
        doubts,
    })
}

/// What was sent, in words.
fn settings(args: &Args, scene: &Scene, timetable: Timetable) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut say = |name: &str, value: String| settings.push((name.to_owned(), value));
    if let Some(arm) = scene.arms.first() {
        say("requests", arm.load.kind.to_string());
        let bound = match arm.load.requests_per_connection {
            0 => "no bound".to_owned(),
            n => n.to_string(),
        };
        say("requests on a connection", bound);
    }
    let pace = args.rate.map_or_else(
        || "as soon as the one before has ended (closed loop)".to_owned(),
        |rate| format!("{rate} a second, latency from when each was due (open loop)"),
    );
    say("pace", pace);
    say("under way at once", args.concurrency.to_string());
    say("payload", format!("{} bytes", args.payload));
    let slice = report::time(timetable.slice as f64);
    say("rounds", format!("{}, slices of {slice}", timetable.n_rounds));
    if scene._stage.is_some() {
        say("Services", format!("{}, {} endpoints each", args.services, args.endpoints));
    }
    if args.churn > 0.0 {
        say("changes of endpoints", format!("{} a second", args.churn));
    }
    settings
}
