//! What was measured: a table for people, JSON for programs, plots for both, in `benches/results/`.

use std::{
    fmt::Write,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::load::Outcome;

const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results");

/// Everything that one run has found.
#[derive(Serialize)]
pub struct Report {
    #[serde(skip)]
    began: Instant,
    began_at: DateTime<Utc>,
    seconds: f64,
    cores: usize,
    processor: String,
    figures: Vec<Figure>,
    curve: Vec<Point>,
    goals: Vec<Goal>,
}

/// A line of the table.
#[derive(Serialize)]
struct Figure {
    group: &'static str,
    what: String,
    value: f64,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_ms: Option<f64>,
}

/// Lists with so many tenants.
#[derive(Serialize)]
pub struct Point {
    pub tenants: usize,
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Of the service, and of all its connections' processes in Postgres.
    pub service_mb: f64,
    pub backends_mb: f64,
}

/// Which side of a goal is the good one.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    AtLeast,
    AtMost,
}

#[derive(Serialize)]
struct Goal {
    what: &'static str,
    bound: Bound,
    goal: f64,
    unit: &'static str,
    /// Null where it could not be measured.
    figure: Option<f64>,
    reached: Option<bool>,
}

impl Report {
    pub fn new() -> Self {
        let about = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = about.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            began: Instant::now(),
            began_at: Utc::now(),
            seconds: 0.0,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: processor.map_or("unknown", |(_, name)| name).to_owned(),
            figures: Vec::new(),
            curve: Vec::new(),
            goals: Vec::new(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Says what is done now.
    pub fn now(&self, what: &str) {
        eprintln!("[{:>4.0} s] {what}", self.elapsed().as_secs_f64());
    }

    /// A figure by itself.
    pub fn value(&mut self, group: &'static str, what: impl Into<String>, value: f64, unit: &'static str) {
        let what = what.into();
        eprintln!("         {what}: {value:.3} {unit}");
        self.figures.push(Figure { group, what, value, unit, p50_ms: None, p99_ms: None });
    }

    /// Answers a second, and how long they took.
    pub fn load(&mut self, group: &'static str, what: impl Into<String>, outcome: &Outcome) {
        let (p50_ms, p99_ms) = (Some(outcome.p50), Some(outcome.p99));
        let (what, value) = (what.into(), outcome.per_second);
        eprintln!("         {what}: {value:.0} /s, p50 {:.2} ms, p99 {:.2} ms", outcome.p50, outcome.p99);
        self.figures.push(Figure { group, what, value, unit: "/s", p50_ms, p99_ms });
    }

    pub fn point(&mut self, point: Point) {
        let Point { tenants, per_second, p99_ms, .. } = point;
        eprintln!("         {tenants} tenants: {per_second:.0} lists/s, p99 {p99_ms:.2} ms");
        self.curve.push(point);
    }

    pub fn goal(
        &mut self,
        what: &'static str,
        bound: Bound,
        goal: f64,
        unit: &'static str,
        figure: Option<f64>,
    ) {
        let reached = figure.map(|figure| match bound {
            Bound::AtLeast => figure >= goal,
            Bound::AtMost => figure <= goal,
        });
        self.goals.push(Goal { what, bound, goal, unit, figure, reached });
    }

    /// Prints the table and writes the files.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.seconds = self.elapsed().as_secs_f64();
        print!("{}", self.table()?);
        let folder = Path::new(RESULTS);
        fs::create_dir_all(folder)?;
        fs::write(folder.join("fleet.json"), serde_json::to_string_pretty(self)?)?;
        let bars: Vec<(String, f64)> = self.goals.iter().filter_map(Goal::bar).collect();
        fs::write(folder.join("goals.svg"), bar_chart("Share of each goal (1: reached)", &bars)?)?;
        let curve = |figure: fn(&Point) -> f64| -> Vec<(f64, f64)> {
            self.curve.iter().map(|point| (point.tenants as f64, figure(point))).collect()
        };
        let plots = [
            ("curve-lists.svg", "Lists a second, by tenants", curve(|point| point.per_second)),
            ("curve-p99.svg", "p99 of a list in ms, by tenants", curve(|point| point.p99_ms)),
            ("curve-memory.svg", "Backends' memory in MB, by tenants", curve(|point| point.backends_mb)),
        ];
        for (file, title, points) in plots {
            fs::write(folder.join(file), line_chart(title, &points)?)?;
        }
        println!("\n{:.0} s; JSON and plots are in {RESULTS}", self.seconds);
        Ok(())
    }

    fn table(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let mut groups: Vec<&str> = Vec::new();
        for figure in &self.figures {
            if !groups.contains(&figure.group) {
                groups.push(figure.group);
            }
        }
        let ms = |time: Option<f64>| time.map_or(String::new(), |time| format!("{time:.1}"));
        for group in groups {
            writeln!(text, "\n{group:<58} {:>10} {:>9} {:>9}", "", "p50 ms", "p99 ms")?;
            for figure in self.figures.iter().filter(|figure| figure.group == group) {
                let value = format!("{} {}", plain(figure.value), figure.unit);
                let (p50, p99) = (ms(figure.p50_ms), ms(figure.p99_ms));
                writeln!(text, "  {:<56} {value:>10} {p50:>9} {p99:>9}", figure.what)?;
            }
        }
        let head = "lists, 32 connections, by tenants";
        writeln!(
            text,
            "\n{head:<40} {:>9} {:>8} {:>8} {:>9} {:>11}",
            "/s", "p50 ms", "p99 ms", "service", "backends"
        )?;
        for point in &self.curve {
            let Point { tenants, per_second, p50_ms, p99_ms, service_mb, backends_mb } = point;
            writeln!(
                text,
                "  {tenants:<38} {per_second:>9.0} {p50_ms:>8.1} {p99_ms:>8.1} {service_mb:>6.0} MB {backends_mb:>8.0} MB"
            )?;
        }
        writeln!(text, "\n{:<58} {:>12} {:>12}", "goals", "goal", "figure")?;
        for goal in &self.goals {
            let said = match goal.reached {
                Some(true) => "reached",
                Some(false) => "not reached",
                None => "not measured",
            };
            let aim = format!("{} {}", plain(goal.goal), goal.unit);
            let figure = goal.figure.map_or("-".into(), |figure| format!("{} {}", plain(figure), goal.unit));
            writeln!(text, "  {:<56} {aim:>12} {figure:>12}  {said}", goal.what)?;
        }
        Ok(text)
    }
}

impl Goal {
    /// How much of it is reached.
    fn bar(&self) -> Option<(String, f64)> {
        let figure = self.figure.filter(|figure| *figure > 0.0)?;
        let share = if self.bound == Bound::AtLeast { figure / self.goal } else { self.goal / figure };
        Some((self.what.to_owned(), share))
    }
}

/// With as many places as say something.
fn plain(value: f64) -> String {
    let places = if value >= 100.0 { 0 } else { 2 };
    format!("{value:.places$}")
}

const HEAD: &str = "font-family=\"sans-serif\" font-size=\"12\" xmlns=\"http://www.w3.org/2000/svg\"";
const INK: &str = "#2b5c8a";

/// Horizontal bars with a mark at 1.
fn bar_chart(title: &str, bars: &[(String, f64)]) -> Result<String, std::fmt::Error> {
    let (left, wide, row): (f64, f64, f64) = (380.0, 300.0, 24.0);
    let longest = bars.iter().map(|(_, share)| *share).fold(1.0, f64::max);
    let high = 50.0 + row * bars.len() as f64;
    let mut svg = format!("<svg {HEAD} width=\"{}\" height=\"{high}\">\n", left + wide + 60.0);
    writeln!(svg, "<text x=\"10\" y=\"20\" font-weight=\"bold\">{title}</text>")?;
    for (n, (what, share)) in bars.iter().enumerate() {
        let (y, length) = (36.0 + row * n as f64, wide * share / longest);
        let (text, end) = (y + 12.0, left + length + 6.0);
        writeln!(svg, "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{what}</text>", left - 8.0)?;
        writeln!(svg, "<rect x=\"{left}\" y=\"{y}\" width=\"{length:.1}\" height=\"16\" fill=\"{INK}\"/>")?;
        writeln!(svg, "<text x=\"{end:.1}\" y=\"{text}\">{share:.2}</text>")?;
    }
    let one = left + wide / longest;
    writeln!(svg, "<path d=\"M{one:.1} 30V{}\" stroke=\"#c33\" stroke-dasharray=\"4 3\"/>", high - 10.0)?;
    Ok(svg + "</svg>\n")
}

/// A line over a logarithmic x axis; y begins at 0.
fn line_chart(title: &str, points: &[(f64, f64)]) -> Result<String, std::fmt::Error> {
    let (left, top, wide, high): (f64, f64, f64, f64) = (60.0, 40.0, 480.0, 220.0);
    let largest = points.iter().map(|(_, y)| *y).fold(f64::MIN_POSITIVE, f64::max) * 1.1;
    let logs = || points.iter().map(|(x, _)| x.ln());
    let (first, last) = (logs().fold(f64::MAX, f64::min), logs().fold(f64::MIN, f64::max));
    let across = |x: f64| left + wide * (x.ln() - first) / (last - first).max(f64::MIN_POSITIVE);
    let down = |y: f64| top + high * (1.0 - y / largest);
    let mut svg = format!("<svg {HEAD} width=\"{}\" height=\"{}\">\n", left + wide + 40.0, top + high + 40.0);
    writeln!(svg, "<text x=\"10\" y=\"20\" font-weight=\"bold\">{title}</text>")?;
    let floor = top + high;
    writeln!(svg, "<path d=\"M{left} {top}V{floor}H{}\" stroke=\"#999\" fill=\"none\"/>", left + wide)?;
    let mut line = String::new();
    for (x, y) in points {
        let (cx, cy) = (across(*x), down(*y));
        write!(line, "{cx:.1},{cy:.1} ")?;
        writeln!(svg, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"{INK}\"/>")?;
        writeln!(svg, "<text x=\"{cx:.1}\" y=\"{}\" text-anchor=\"middle\">{x}</text>", floor + 18.0)?;
        writeln!(
            svg,
            "<text x=\"{cx:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            cy - 8.0,
            plain(*y)
        )?;
    }
    writeln!(svg, "<polyline points=\"{}\" stroke=\"{INK}\" fill=\"none\"/>", line.trim_end())?;
    Ok(svg + "</svg>\n")
}
