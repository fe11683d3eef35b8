//! What `kubectl get` shows: columns as tables.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{at, str_at};

/// One column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    /// `string`, `integer` or `boolean`.
    pub(crate) form: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub(crate) priority: u8,
    pub(crate) cell: Cell,
}

/// Where a column's cell comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cell {
    /// The value at a path.
    Path(&'static str),
    /// How long ago the time at a path was.
    Since(&'static str),
    /// What a function makes of the object.
    Of(fn(&Value) -> Value),
}

pub(crate) const NAME: Column = text("Name", Cell::Path("metadata.name"));
pub(crate) const AGE: Column = text("Age", Cell::Since("metadata.creationTimestamp"));
pub(crate) const NAME_AND_AGE: &[Column] = &[NAME, AGE];

pub(crate) const fn text(name: &'static str, cell: Cell) -> Column {
    Column { name, form: "string", priority: 0, cell }
}

pub(crate) const fn integer(name: &'static str, cell: Cell) -> Column {
    Column { name, form: "integer", priority: 0, cell }
}

pub(crate) const fn wide(column: Column) -> Column {
    Column { priority: 1, ..column }
}

impl Column {
    pub(crate) fn definition(&self) -> Value {
        let format = if self.name == "Name" { "name" } else { "" };
        json!({
            "name": self.name, "type": self.form, "format": format, "description": "",
            "priority": self.priority,
        })
    }

    pub(crate) fn show(&self, object: &Value, now: Timestamp) -> Value {
        match self.cell {
            Cell::Path(path) => match at(object, path) {
                Value::Null if self.form == "integer" => json!(0),
                Value::Null => json!("<none>"),
                Value::String(text) if text.is_empty() => json!("<none>"),
                value => value.clone(),
            },
            Cell::Since(path) => json!(since(str_at(object, path), now)),
            Cell::Of(show) => show(object),
        }
    }
}

/// How long ago a time was, as short as kubectl says it.
pub(crate) fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => human(now.duration_since(time).as_secs()),
        Err(_) => "<unknown>".into(),
    }
}

/// `45s`, `3m20s`, `12m`, `5h7m`, `20h`, `3d4h`, `40d`, `3y12d`, `9y`.
fn human(seconds: i64) -> String {
    let two = |big: i64, unit: &str, rest: i64, small: &str| {
        if rest == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{rest}{small}") }
    };
    let (minutes, hours, days, years) =
        (seconds / 60, seconds / 3600, seconds / 86_400, seconds / 31_536_000);
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

/// A selector as `a=b,c=d`.
pub(crate) fn labels(map: &Value) -> String {
    let pairs = map.as_object().into_iter().flatten();
    let pairs: Vec<String> =
        pairs.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",") }
}

/// A label selector object, `matchExpressions` included.
pub(crate) fn selector(selector: &Value) -> Value {
    let mut parts = Vec::new();
    if selector["matchLabels"].as_object().is_some_and(|map| !map.is_empty()) {
        parts.push(labels(&selector["matchLabels"]));
    }
    for expression in crate::object::list_at(selector, "matchExpressions") {
        let values = crate::object::list_at(expression, "values");
        let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
        let key = str_at(expression, "key");
        parts.push(match str_at(expression, "operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    json!(if parts.is_empty() { "<none>".into() } else { parts.join(",") })
}

/// Strings joined with commas, or `<none>`.
pub(crate) fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> Value {
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    json!(if parts.is_empty() { "<none>".into() } else { parts.join(",") })
}

/// `done/wanted`.
pub(crate) fn ratio(done: &Value, wanted: &Value) -> Value {
    json!(format!("{}/{}", done.as_i64().unwrap_or(0), wanted.as_i64().unwrap_or(0)))
}

/// The containers' names of a pod template.
pub(crate) fn container_names(object: &Value, template: &str) -> Value {
    joined(containers(object, template).map(|container| str_at(container, "name")))
}

/// The containers' images of a pod template.
pub(crate) fn container_images(object: &Value, template: &str) -> Value {
    joined(containers(object, template).map(|container| str_at(container, "image")))
}

fn containers<'a>(object: &'a Value, template: &str) -> impl Iterator<Item = &'a Value> {
    crate::object::list_at(at(object, template), "containers").iter()
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn ages_are_as_short_as_kubectl_says_them() {
        for (seconds, expected) in [
            (5, "5s"),
            (119, "119s"),
            (200, "3m20s"),
            (900, "15m"),
            (11_000, "3h3m"),
            (72_000, "20h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(human(seconds), expected);
        }
    }
}
