//! The load test's page in a real browser: on a desk, on a phone, in the dark, printed. What it
//! looked like stays under `target/browser`.
//!
//! Chromium is led by the `DevTools` protocol over two pipes, which needs neither a port nor a client
//! library: <https://chromedevtools.github.io/devtools-protocol/>.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests run programs, and what tests share panics as tests do"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use loadtest::server::{Answering, Delay, Server};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::binary;

/// Nothing that a browser is told to do here takes longer, whatever the machine does besides.
const SOON: Duration = Duration::from_secs(60);

/// What a page says of itself once it is there.
const SURVEY: &str = "JSON.stringify({
    too_wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    plots: [...document.querySelectorAll('svg')].map(it => it.getBoundingClientRect())
        .filter(it => it.width > 0)
        .map(it => ({left: it.left, right: it.right, height: it.height})),
    cut: [...document.querySelectorAll('*')].filter(it => it.scrollWidth > it.clientWidth + 1
        && getComputedStyle(it).overflowX != 'visible').map(it => it.outerHTML.slice(0, 80)),
    paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    words: document.body.innerText,
})";

#[test]
fn the_page_looks_right_on_a_desk_on_a_phone_in_the_dark_and_printed() {
    let page = page();
    let mut browser = Browser::open();
    let looks = [("desk", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light")];
    let [desk, dark, phone] = looks.map(|(name, width, scheme)| {
        let survey = browser.look(page.path(), name, width, scheme);
        assert_eq!(survey["too_wide"], 0, "{name}: one has to scroll sideways: {survey}");
        let plots = survey["plots"].as_array().unwrap();
        assert!(plots.len() >= 3, "{name}: plots are missing: {survey}");
        for plot in plots {
            let of = |key: &str| plot[key].as_f64().unwrap();
            let fits = of("left") >= 0.0 && of("right") <= f64::from(width);
            assert!(fits && of("height") > 50.0, "{name}: {plot}");
        }
        survey
    });
    // A phone may have to push a table sideways.
    assert_eq!(desk["cut"], json!([]), "something is cut off");
    let bars = desk["words"].as_str().unwrap();
    assert!(bars.contains("100.0 %") && bars.contains("share of requests"), "{bars}");
    assert_ne!(desk["paper"], dark["paper"], "the dark page has the light one's paper");
    assert_ne!(desk["ink"], dark["ink"]);
    let n_plots = |survey: &Value| survey["plots"].as_array().unwrap().len();
    assert_eq!(n_plots(&desk), n_plots(&phone), "a plot is missing on a phone");
    for words in ["direct", "127.0.0.1", "Latency"] {
        assert!(desk["words"].as_str().unwrap().contains(words), "no {words}: {}", desk["words"]);
    }
    browser.print("printed");

    let requested: Vec<&str> = browser
        .told("Network.requestWillBeSent")
        .map(|it| it["params"]["request"]["url"].as_str().unwrap())
        .collect();
    assert!(!requested.is_empty());
    assert!(requested.iter().all(|url| url.starts_with("file:///")), "{requested:?}");
    for complaint in ["Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"] {
        assert_eq!(browser.told(complaint).next(), None);
    }
}

/// The page of a load test that a real server answered, for as long as it is looked at.
fn page() -> tempfile::NamedTempFile {
    let server = Server::start(&Answering {
        name: "web-1".to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        n_threads: 1,
        processors: Vec::new(),
        delay: Delay::default(),
    })
    .unwrap();
    let address = server.address().to_string();
    let page = tempfile::Builder::new().suffix(".html").tempfile().unwrap();
    let done = Command::new("timeout")
        .args(["--signal=KILL", &SOON.as_secs().to_string()])
        .arg(binary::fairlead())
        .args(["loadtest", &address, "--direct", &address, "--duration", "0.5", "--rounds", "10"])
        .arg("--html")
        .arg(page.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    page
}

/// A browser with one tab, until dropped.
struct Browser {
    child: Child,
    commands: File,
    messages: Receiver<Value>,
    n_sent: u64,
    session: Option<Value>,
    events: Vec<Value>,
    _dir: TempDir,
}

impl Browser {
    fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [to, from] = ["to", "from"].map(|name| {
            let path = dir.path().join(name);
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            // For reading as well, so that opening waits for nobody.
            OpenOptions::new().read(true).write(true).open(path).unwrap()
        });
        let child = Command::new("sh")
            .args(["-c", r#"exec "$@" 3<to 4>from"#, "sh", "chromium", "--headless"])
            // A test's own sandbox is its namespace; Chromium's is not for root.
            .args(["--no-sandbox", "--remote-debugging-pipe", "--disable-gpu"])
            .args(["--no-first-run", "--disable-background-networking", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
            .current_dir(dir.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (told, messages) = sync_channel(1_000);
        thread::spawn(move || {
            for message in BufReader::new(from).split(0) {
                let message = serde_json::from_slice(&message.unwrap()).unwrap();
                if told.send(message).is_err() {
                    return;
                }
            }
        });
        let (session, events) = (None, Vec::new());
        let mut browser =
            Self { child, commands: to, messages, n_sent: 0, session, events, _dir: dir };
        let tab = browser.ask("Target.createTarget", &json!({"url": "about:blank"}));
        let tab = json!({"targetId": tab["targetId"], "flatten": true});
        browser.session = Some(browser.ask("Target.attachToTarget", &tab)["sessionId"].clone());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.ask(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Opens a page on a screen of that width, keeps its picture, and says what it is like.
    fn look(&mut self, page: &Path, name: &str, width: u32, scheme: &str) -> Value {
        let screen = json!({"width": width, "height": 844, "deviceScaleFactor": 1,
            "mobile": width < 600});
        self.ask("Emulation.setDeviceMetricsOverride", &screen);
        let scheme = json!({"name": "prefers-color-scheme", "value": scheme});
        self.ask("Emulation.setEmulatedMedia", &json!({"features": [scheme]}));
        let seen = self.events.len();
        self.ask("Page.navigate", &json!({"url": format!("file://{}", page.display())}));
        while self.events.iter().skip(seen).all(|it| it["method"] != "Page.loadEventFired") {
            let event = self.next();
            self.events.push(event);
        }
        let whole = json!({"captureBeyondViewport": true});
        let picture = self.ask("Page.captureScreenshot", &whole);
        keep(&format!("{name}.png"), &picture["data"]);
        let survey = self.ask("Runtime.evaluate", &json!({"expression": SURVEY}));
        serde_json::from_str(survey["result"]["value"].as_str().unwrap()).unwrap()
    }

    /// Prints the page that is open.
    fn print(&mut self, name: &str) {
        let printed =
            self.ask("Page.printToPDF", &json!({"paperWidth": 8.27, "paperHeight": 11.7}));
        let file = keep(&format!("{name}.pdf"), &printed["data"]);
        assert!(fs::read(file).unwrap().starts_with(b"%PDF"));
    }

    /// The answer to one command. What happens meanwhile is kept.
    fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.n_sent += 1;
        let mut command = json!({"id": self.n_sent, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = session.clone();
        }
        self.commands.write_all(format!("{command}\0").as_bytes()).unwrap();
        loop {
            let mut message = self.next();
            if message["id"] == self.n_sent {
                assert_eq!(message["error"], Value::Null, "{method}");
                return message["result"].take();
            }
            self.events.push(message);
        }
    }

    /// What has happened of one kind.
    fn told<'b>(&'b self, method: &'b str) -> impl Iterator<Item = &'b Value> {
        self.events.iter().filter(move |event| event["method"] == method)
    }

    fn next(&self) -> Value {
        self.messages.recv_timeout(SOON).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its helpers end with it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Keeps a file for people to look at.
fn keep(name: &str, base64: &Value) -> PathBuf {
    let dir = binary::fairlead().ancestors().nth(2).unwrap().join("browser");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join(name);
    let data = BASE64_STANDARD.decode(base64.as_str().unwrap()).unwrap();
    fs::write(&file, data).unwrap();
    file
}
