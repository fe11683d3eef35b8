//! Plots as SVG: lines over two axes, and bars. Sizes are in pixels of a screen as wide as the plot. `[pure]`

use std::fmt::Write as _;

/// A plot's place for what is plotted, within its size.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 32.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 42.0;
const HEIGHT: f64 = 300.0;
/// A row of bars or of intervals.
const ROW: f64 = 30.0;

/// An axis, from 0 to 1.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    /// What it shows.
    pub(super) label: String,
    /// Where there is a line and a number.
    pub(super) ticks: Vec<(f64, String)>,
}

/// A line.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// What it is, shown when pointed at.
    pub(super) title: String,
    /// Its colour: the arm's number.
    pub(super) colour: usize,
    pub(super) is_dashed: bool,
    /// Its points, each from 0 to 1.
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines over two axes, with marks at places of the first.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    pub(super) marks: Vec<(f64, String)>,
}

impl Lines {
    /// As SVG of that width.
    pub(super) fn svg(&self, width: f64) -> String {
        let (w, h) = (width - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let at = |x: f64, y: f64| (LEFT + x * w, TOP + (1.0 - y) * h);
        let mut svg = open(width, HEIGHT);
        let mut put = |text: String| svg.push_str(&text);
        for (y, text) in &self.y.ticks {
            let (x0, y) = at(0.0, *y);
            put(format!("<path class=grid d='M{x0:.1} {y:.1}h{w:.1}'/>"));
            put(format!("<text class=end x={:.1} y={:.1}>{text}</text>", x0 - 7.0, y + 4.0));
        }
        // Numbers that would touch their neighbour are left out.
        let mut free = f64::MIN;
        for (x, text) in &self.x.ticks {
            let (x, y) = at(*x, 0.0);
            let half = text.chars().count() as f64 * 3.6;
            put(format!("<path class=grid d='M{x:.1} {TOP}V{y:.1}'/>"));
            if x - half > free {
                put(format!("<text class=mid x={x:.1} y={:.1}>{text}</text>", y + 17.0));
                free = x + half + 4.0;
            }
        }
        let (middle, bottom) = (LEFT + w / 2.0, HEIGHT - 6.0);
        put(format!("<text class='mid label' x={middle:.1} y={bottom:.1}>{}</text>", self.x.label));
        let side = TOP + h / 2.0;
        put(format!(
            "<text class='mid label' transform='translate(11 {side:.1})rotate(-90)'>{}</text>",
            self.y.label
        ));
        for (x, text) in &self.marks {
            let (x, y) = at(*x, 0.0);
            let text = escape(text);
            put(format!("<path class=mark d='M{x:.1} {TOP}V{y:.1}'><title>{text}</title></path>"));
        }
        for line in &self.lines {
            put(line.path(at));
        }
        svg + "</svg>"
    }
}

impl Line {
    fn path(&self, at: impl Fn(f64, f64) -> (f64, f64)) -> String {
        let mut d = String::new();
        for (idx, (x, y)) in self.points.iter().enumerate() {
            let (x, y) = at(*x, *y);
            let verb = if idx == 0 { 'M' } else { 'L' };
            // Writing to a String does not fail.
            _ = write!(d, "{verb}{x:.1} {y:.1}");
        }
        let dashed = if self.is_dashed { " dashed" } else { "" };
        let (colour, title) = (self.colour, escape(&self.title));
        format!("<path class='line c{colour}{dashed}' d='{d}'><title>{title}</title></path>")
    }
}

/// A bar, or an interval with its middle, on a row of its own.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: String,
    /// What is written behind it.
    pub(super) text: String,
    pub(super) colour: usize,
    pub(super) shape: Shape,
}

/// What a row shows, from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// From 0 to here, and where it ought to end.
    Bar(f64, Option<f64>),
    /// From, to, and the estimate.
    Interval(f64, f64, f64),
}

/// Rows over one axis, with a line at `reference`.
pub(super) fn rows(rows: &[Row], axis: &Axis, reference: Option<f64>, width: f64) -> String {
    let (names, texts) = (92.0, if width < 500.0 { 62.0 } else { 168.0 });
    let w = width - names - texts;
    let at = |x: f64| names + x.clamp(0.0, 1.0) * w;
    let h = rows.len() as f64 * ROW;
    let mut svg = open(width, h + BOTTOM);
    let mut put = |text: String| svg.push_str(&text);
    let mut free = f64::MIN;
    for (x, text) in &axis.ticks {
        let (x, half) = (at(*x), text.chars().count() as f64 * 3.6);
        put(format!("<path class=grid d='M{x:.1} 0V{h:.1}'/>"));
        if x - half > free {
            put(format!("<text class=mid x={x:.1} y={:.1}>{text}</text>", h + 16.0));
            free = x + half + 4.0;
        }
    }
    let middle = names + w / 2.0;
    put(format!("<text class='mid label' x={middle:.1} y={:.1}>{}</text>", h + 35.0, axis.label));
    if let Some(x) = reference.map(at) {
        put(format!("<path class=reference d='M{x:.1} 0V{h:.1}'/>"));
    }
    for (idx, row) in rows.iter().enumerate() {
        let y = (idx as f64 + 0.5) * ROW;
        let (name, text) = (escape(&cut(&row.name, 12)), escape(&row.text));
        put(format!("<text class=end x={:.1} y={:.1}>{name}</text>", names - 8.0, y + 4.0));
        let text = if width < 500.0 { text.split(" [").next().unwrap_or_default() } else { &text };
        put(format!("<text x={:.1} y={:.1}>{text}</text>", width - texts + 8.0, y + 4.0));
        put(row.shape(y, at));
    }
    svg + "</svg>"
}

impl Row {
    fn shape(&self, y: f64, at: impl Fn(f64) -> f64) -> String {
        let (colour, title) = (self.colour, escape(&format!("{}: {}", self.name, self.text)));
        match self.shape {
            Shape::Bar(to, ought) => {
                let (x, w, top) = (at(0.0), at(to) - at(0.0), y - 8.0);
                let ought = ought.map_or_else(String::new, |ought| {
                    let x = at(ought);
                    format!("<path class=reference d='M{x:.1} {:.1}v22'/>", y - 11.0)
                });
                format!(
                    "<rect class='bar c{colour}' x={x:.1} y={top:.1} width={w:.1} height=16>\
                     <title>{title}</title></rect>{ought}"
                )
            }
            Shape::Interval(from, to, middle) => {
                let (x0, x1, x) = (at(from), at(to), at(middle));
                let (top, bottom) = (y - 6.0, y + 6.0);
                format!(
                    "<path class='line c{colour}' d='M{x0:.1} {top:.1}V{bottom:.1}M{x0:.1} \
                     {y:.1}H{x1:.1}M{x1:.1} {top:.1}V{bottom:.1}'><title>{title}</title></path>\
                     <circle class='dot c{colour}' cx={x:.1} cy={y:.1} r=4.5 />"
                )
            }
        }
    }
}

fn open(width: f64, height: f64) -> String {
    format!("<svg viewBox='0 0 {width:.0} {height:.0}' role=img>")
}

/// Text as HTML and SVG take it, within quotes or outside.
pub(super) fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
        out
    })
}

fn cut(name: &str, n: usize) -> String {
    match name.chars().count() <= n {
        true => name.to_owned(),
        false => name.chars().take(n - 1).chain(['…']).collect(),
    }
}

/// A scale of numbers on which each step is a factor, wide enough for all of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logarithmic {
    low: f64,
    high: f64,
}

impl Logarithmic {
    pub(super) fn over(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = values
            .into_iter()
            .filter(|it| *it > 0.0)
            .fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), it| (low.min(it), high.max(it)));
        match low <= high {
            true => Self { low: low.log10() - 0.05, high: high.log10() + 0.05 },
            false => Self { low: 0.0, high: 1.0 },
        }
    }

    pub(super) fn place(self, value: f64) -> f64 {
        ((value.max(f64::MIN_POSITIVE).log10() - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// 1, 2, 5, 10 …, or powers of ten alone where there are many.
    pub(super) fn ticks(self, text: impl Fn(f64) -> String) -> Vec<(f64, String)> {
        let steps: &[f64] = if self.high - self.low > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let decades = (0..=12).map(|n| 10_f64.powi(n));
        let values = decades.flat_map(|decade| steps.iter().map(move |step| step * decade));
        let within = values.filter(|it| (self.low..=self.high).contains(&it.log10()));
        within.map(|value| (self.place(value), text(value))).collect()
    }
}

/// A scale of numbers with about five round ticks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linear {
    low: f64,
    high: f64,
}

impl Linear {
    pub(super) fn new(low: f64, high: f64) -> Self {
        if high > low { Self { low, high } } else { Self { low, high: low + 1.0 } }
    }

    pub(super) fn place(self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    pub(super) fn ticks(self, text: impl Fn(f64) -> String) -> Vec<(f64, String)> {
        let rough = (self.high - self.low) / 5.0;
        let decade = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|it| it * decade).into_iter().find(|it| *it >= rough);
        let step = step.unwrap_or(rough);
        let first = (self.low / step).ceil();
        (0..12)
            .map(|n| (first + f64::from(n)) * step)
            .filter(|value| *value <= self.high + step * 1e-9)
            .map(|value| (self.place(value), text(value)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let texts = |ticks: Vec<(f64, String)>| {
            ticks.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(" ")
        };
        let linear = Linear::new(0.0, 10.0);
        assert_eq!(texts(linear.ticks(|it| format!("{it}"))), "0 2 4 6 8 10");
        let narrow = Linear::new(0.93, 1.04);
        assert_eq!(texts(narrow.ticks(|it| format!("{it:.2}"))), "0.95 1.00");
        let logarithmic = Logarithmic::over([30.0, 900.0]);
        assert_eq!(texts(logarithmic.ticks(|it| format!("{it}"))), "50 100 200 500 1000");
        let wide = Logarithmic::over([30.0, 9e6]);
        assert_eq!(texts(wide.ticks(|it| format!("{it:.0e}"))), "1e2 1e3 1e4 1e5 1e6 1e7");
    }

    #[test]
    fn nothing_to_plot_is_no_panic_and_no_nan() {
        for scale in [Logarithmic::over([]), Logarithmic::over([0.0])] {
            assert!((0.0..=1.0).contains(&scale.place(0.0)));
        }
        assert!((0.0..=1.0).contains(&Linear::new(3.0, 3.0).place(3.0)));
    }

    #[test]
    fn names_cannot_leave_their_place() {
        assert_eq!(escape("<b a='1'>&\""), "&lt;b a=&#39;1&#39;&gt;&amp;&quot;");
    }
}
