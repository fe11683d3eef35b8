//! The report as one page that asks nobody for anything: styles and plots are in it. `[pure]`

use super::{
    ArmReport, Report, count,
    plot::{Axis, Line, Linear, Lines, Logarithmic, Row, Shape, escape, rows},
    table::verdict,
    time,
};
use crate::experiment::Role;
use crate::fairness::{self, Part};

/// Each plot is drawn for a desk and for a phone; the page shows the one that fits.
const WIDTHS: [(&str, f64); 2] = [("wide", 860.0), ("narrow", 360.0)];
const STYLE: &str = include_str!("page.css");

/// The page.
#[must_use]
pub fn render(report: &Report) -> String {
    let title = escape(&format!("Load test of {}", report.target));
    let mut sections = vec![summary(report)];
    sections.push(figure(
        "Latency by percentile",
        "Each step to the right leaves a tenth of the requests.",
        report,
        &|width| by_percentile(report).svg(width),
    ));
    sections.push(figure(
        "Latency over time",
        "The median, and dashed the 99th percentile, of each slice.",
        report,
        &|width| over_time(report).svg(width),
    ));
    if report.arms.iter().any(|arm| arm.ratio.is_some()) {
        let compared = |width| comparison(report, width);
        let caption = "Rate beside the endpoints themselves, with its 95 % interval. An interval \
                       that includes 1 is no difference that this run could see.";
        sections.push(figure("Compared with no Service", caption, report, &compared));
    }
    sections.extend(report.arms.iter().enumerate().filter_map(|(idx, arm)| spread(idx, arm)));
    sections.push(changes(report));
    sections.push(facts(report));
    format!(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content='width=device-width, initial-scale=1'>\
         <link rel=icon href='data:,'><title>{title}</title><style>{STYLE}</style></head>\n\
         <body><main><h1>{title}</h1>\n{}\n</main></body></html>\n",
        sections.join("\n")
    )
}

fn summary(report: &Report) -> String {
    let row = |(idx, arm): (usize, &ArmReport)| {
        let n_failed: u64 = arm.errors.values().sum();
        let ratio = arm.ratio.map_or_else(|| "–".to_owned(), |ratios| ratios.rate.to_string());
        let failed = if n_failed > 0 { " class=bad" } else { "" };
        let server = arm.cpu.server.map_or_else(|| "–".to_owned(), time);
        let cells = [
            count(arm.rate),
            ratio,
            time(arm.latency.p50 as f64),
            time(arm.latency.p99 as f64),
            time(arm.latency.p999 as f64),
            time(arm.latency.max as f64),
            time(arm.cpu.client),
            server,
        ];
        let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
        let (name, failed_count) = (escape(&arm.name), count(n_failed as f64));
        format!(
            "<tr><th><i class='key c{idx}'></i>{name}</th>{cells}<td{failed}>{failed_count}</td></tr>"
        )
    };
    let body: String = report.arms.iter().enumerate().map(row).collect();
    let doubts: String =
        report.doubts.iter().map(|it| format!("<p class=doubt>{}.</p>", escape(it))).collect();
    let subtitle = escape(&format!("{} · {}", report.started, report.machine));
    format!(
        "<p class=quiet>{subtitle}</p>{doubts}<div class=scroll><table><thead><tr><th></th>\
         <th>rate /s</th><th>rate to direct</th><th>p50</th><th>p99</th><th>p99.9</th><th>max</th>\
         <th>CPU client</th><th>CPU server</th><th>failed</th></tr></thead>\
         <tbody>{body}</tbody></table></div>"
    )
}

/// A heading, both drawings, and which colour is whose.
fn figure(title: &str, caption: &str, report: &Report, draw: &dyn Fn(f64) -> String) -> String {
    let arms = report.arms.iter().enumerate();
    let keys: String = arms
        .map(|(idx, arm)| format!("<span><i class='key c{idx}'></i>{}</span>", escape(&arm.name)))
        .collect();
    format!(
        "<section><h2>{title}</h2><p class=quiet>{caption}</p><p class=keys>{keys}</p>{}</section>",
        drawings(draw)
    )
}

fn drawings(draw: &dyn Fn(f64) -> String) -> String {
    WIDTHS.map(|(class, width)| format!("<div class={class}>{}</div>", draw(width))).concat()
}

fn by_percentile(report: &Report) -> Lines {
    // Where a share of a tenth, a hundredth … is left.
    let place = |q: f64| -(1.0 - q.min(0.999_999)).log10();
    let points = || report.arms.iter().flat_map(|arm| &arm.curve);
    let last = points().map(|(q, _)| *q).filter(|q| *q < 1.0).map(place).fold(1.0, f64::max);
    let y = Logarithmic::over(points().map(|(_, nanos)| *nanos as f64));
    let x = Linear::new(0.0, last);
    let names = [
        (0.0, "0"),
        (0.5, "50 %"),
        (0.9, "90 %"),
        (0.99, "99 %"),
        (0.999, "99.9 %"),
        (0.9999, "99.99 %"),
        (0.99999, "99.999 %"),
    ];
    let ticks = names.into_iter().filter(|(q, _)| place(*q) <= last + 1e-9);
    let lines = report.arms.iter().enumerate().map(|(colour, arm)| Line {
        title: arm.name.clone(),
        colour,
        is_dashed: false,
        points: arm
            .curve
            .iter()
            .filter(|(q, _)| *q < 1.0)
            .map(|(q, nanos)| (x.place(place(*q)), y.place(*nanos as f64)))
            .collect(),
    });
    Lines {
        x: Axis {
            label: "percentile".to_owned(),
            ticks: ticks.map(|(q, name)| (x.place(place(q)), name.to_owned())).collect(),
        },
        y: latency_axis(y),
        lines: lines.collect(),
        marks: Vec::new(),
    }
}

fn over_time(report: &Report) -> Lines {
    let points = || report.arms.iter().flat_map(|arm| &arm.course);
    let y = Logarithmic::over(points().flat_map(|it| [it.p50 as f64, it.p99 as f64]));
    let x = Linear::new(0.0, points().map(|point| point.at).fold(0.0, f64::max));
    let line = |(colour, arm): (usize, &ArmReport)| {
        let line = |is_dashed: bool| Line {
            title: format!("{}, {}", arm.name, if is_dashed { "p99" } else { "p50" }),
            colour,
            is_dashed,
            points: arm
                .course
                .iter()
                .map(|it| (x.place(it.at), y.place(if is_dashed { it.p99 } else { it.p50 } as f64)))
                .collect(),
        };
        [line(true), line(false)]
    };
    Lines {
        x: Axis { label: "seconds".to_owned(), ticks: x.ticks(short) },
        y: latency_axis(y),
        lines: report.arms.iter().enumerate().flat_map(line).collect(),
        marks: report.marks.iter().map(|(at, text)| (x.place(*at), text.clone())).collect(),
    }
}

fn latency_axis(y: Logarithmic) -> Axis {
    Axis { label: "latency".to_owned(), ticks: y.ticks(short_time) }
}

fn comparison(report: &Report, width: f64) -> String {
    let ratios = || report.arms.iter().filter_map(|arm| arm.ratio).map(|ratios| ratios.rate);
    let low = ratios().map(|it| it.low).fold(0.99, f64::min) - 0.01;
    let high = ratios().map(|it| it.high).fold(1.01, f64::max) + 0.01;
    let x = Linear::new(low, high);
    let row = |(colour, arm): (usize, &ArmReport)| {
        let rate = arm.ratio?.rate;
        let shape = Shape::Interval(x.place(rate.low), x.place(rate.high), x.place(rate.value));
        Some(Row { name: arm.name.clone(), text: rate.to_string(), colour, shape })
    };
    let all: Vec<Row> = report.arms.iter().enumerate().filter_map(row).collect();
    let axis =
        Axis { label: "rate, direct = 1".to_owned(), ticks: x.ticks(|it| format!("{it:.2}")) };
    rows(&all, &axis, Some(x.place(1.0)), width)
}

/// Who got how much, with where it ought to end.
fn spread(idx: usize, arm: &ArmReport) -> Option<String> {
    const MOST: usize = 24;
    if arm.spread.is_empty() || arm.role != Role::Candidate {
        return None;
    }
    let (shares, of) = fairness::shares(&arm.spread);
    let parts = || arm.spread.iter().zip(&shares);
    let most = parts().map(|(part, share)| share.max(part.intended));
    let x = Linear::new(0.0, most.fold(0.0, f64::max) * 1.05);
    let row = |(part, &share): (&Part, &f64)| Row {
        name: part.name.clone(),
        text: format!("{:.1} %", 100.0 * share),
        colour: idx,
        shape: Shape::Bar(x.place(share), (part.intended > 0.0).then(|| x.place(part.intended))),
    };
    let all: Vec<Row> = parts().take(MOST).map(row).collect();
    let axis = Axis {
        label: format!("share of {of}"),
        ticks: x.ticks(|it| format!("{} %", short(it * 100.0))),
    };
    let left = match arm.spread.len().saturating_sub(MOST) {
        0 => String::new(),
        n => format!(" {n} more endpoints are not shown."),
    };
    let words = arm.fairness.map_or_else(String::new, verdict);
    let class = if words.starts_with("UNFAIR") { "bad" } else { "quiet" };
    let name = escape(&arm.name);
    let drawn = drawings(&|width| rows(&all, &axis, None, width));
    Some(format!(
        "<section><h2>Spread over endpoints: {name}</h2><p class={class}>{words}{left}</p>{drawn}\
         </section>"
    ))
}

fn changes(report: &Report) -> String {
    if report.changes.is_empty() {
        return String::new();
    }
    const MOST: usize = 40;
    let row = |effect: &crate::change::Effect| {
        let change = &effect.change;
        let what = if change.is_added { "added" } else { "removed" };
        let took = effect.took.map_or_else(|| "never".to_owned(), |took| time(took as f64));
        let share =
            effect.share.map_or_else(|| "–".to_owned(), |it| format!("{:.1} %", 100.0 * it));
        let name = escape(&change.endpoint);
        format!("<tr><th>{name}</th><td>{what}</td><td>{took}</td><td>{share}</td></tr>")
    };
    let body: String = report.changes.iter().take(MOST).map(row).collect();
    let more = match report.changes.len().saturating_sub(MOST) {
        0 => String::new(),
        n => format!("<p class=quiet>{n} more are in the JSON.</p>"),
    };
    format!(
        "<section><h2>Endpoints that came and went</h2><p class=quiet>Until the last request that a \
         removed endpoint answered, and to the first that an added one did.</p><div class=scroll>\
         <table><thead><tr><th></th><th></th><th>took</th><th>share</th></tr></thead>\
         <tbody>{body}</tbody></table></div>{more}</section>"
    )
}

fn facts(report: &Report) -> String {
    let own = [("command", &report.command), ("version", &report.version)];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value.clone()));
    let row = |(name, value): (String, String)| {
        format!("<dt>{}</dt><dd>{}</dd>", escape(&name), escape(&value))
    };
    let errors = report.arms.iter().flat_map(|arm| {
        let failed = format!("{} failed", arm.name);
        arm.errors.iter().map(move |(error, n)| (failed.clone(), format!("{n} × {error}")))
    });
    let all: String = report.settings.iter().cloned().chain(errors).chain(own).map(row).collect();
    format!("<section><h2>What was done</h2><dl>{all}</dl></section>")
}

/// A number without needless zeros.
fn short(n: f64) -> String {
    let text = format!("{n:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn short_time(nanos: f64) -> String {
    match nanos {
        n if n < 1e3 => format!("{n:.0} ns"),
        n if n < 1e6 => format!("{:.0} µs", n / 1e3),
        n if n < 1e9 => format!("{:.0} ms", n / 1e6),
        n => format!("{:.0} s", n / 1e9),
    }
}
