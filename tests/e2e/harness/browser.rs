//! A real browser without a window: Chromium, steered over its DevTools protocol.
//!
//! The protocol goes through a pair of pipes (`--remote-debugging-pipe`), which needs no port and
//! no WebSocket, and with whose end Chromium ends.

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::Process;
use crate::{threads, wait};

/// Longest Chromium may take to start, or to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Its names, the smallest first.
const NAMES: [&str; 4] =
    ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Width of the window, pixels.
    pub width: u32,
    /// Height of the window, pixels.
    pub height: u32,
    /// Whether the system prefers dark colours.
    pub dark: bool,
}

impl Look {
    /// A window of a desktop, light.
    pub const WIDE: Look = Look { width: 1360, height: 900, dark: false };
    /// A small phone.
    pub const NARROW: Look = Look { width: 360, height: 740, dark: false };
}

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    to: std::process::ChildStdin,
    from: Receiver<Value>,
    session: Option<String>,
    last_id: u64,
    events: Vec<Value>,
    _process: Process,
    _folder: TempDir,
}

impl Browser {
    /// Starts Chromium and opens a page. What it complains about is kept for
    /// [`Browser::complaints`].
    ///
    /// # Panics
    /// If there is no Chromium (scripts/deps installs it), or it doesn't start.
    pub fn open(url: &str, look: Look) -> Browser {
        let mut browser = Browser::start();
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", &attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Runtime", "Log", "Page"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser.look(look);
        browser.go(url);
        browser
    }

    fn start() -> Browser {
        let folder = tempfile::Builder::new().prefix("nginx-consul-browser-").tempdir();
        let folder = folder.expect("a folder");
        let log = File::create(folder.path().join("log")).expect("a log");
        // Chromium reads the protocol from descriptor 3 and writes it to 4.
        let script = "exec \"$@\" 3<&0 4>&1 </dev/null >&2";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).arg(binary());
        // --no-sandbox: tests run as root in containers, and look at our own page only.
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        command.args(["--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe"]);
        command.arg(format!("--user-data-dir={}", folder.path().join("profile").display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut process = Process::spawn(&mut command);
        let (to, from) = process.pipes();
        let (sender, receiver) = channel();
        threads::spawn(move || {
            let messages = BufReader::new(from).split(0).map_while(Result::ok);
            for message in messages.filter_map(|bytes| serde_json::from_slice(&bytes).ok()) {
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Browser {
            to,
            from: receiver,
            session: None,
            last_id: 0,
            events: Vec::new(),
            _process: process,
            _folder: folder,
        }
    }

    /// Calls a method of the protocol.
    ///
    /// # Panics
    /// If it fails, or isn't answered.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let answer = self.try_call(method, parameters);
        answer.unwrap_or_else(|error| panic!("{method} {parameters}: {error}"))
    }

    /// The same; the error that Chromium answers.
    fn try_call(&mut self, method: &str, parameters: &Value) -> Result<Value, Value> {
        self.last_id += 1;
        let mut message = json!({ "id": self.last_id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.clone().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap_or_else(|error| panic!("{method} to Chromium: {error}"));
        loop {
            let answer = self.from.recv_timeout(PATIENCE);
            let mut answer =
                answer.unwrap_or_else(|error| panic!("{method}: Chromium doesn't answer: {error}"));
            if answer["id"] == self.last_id {
                let error = answer["error"].take();
                return if error.is_null() { Ok(answer["result"].take()) } else { Err(error) };
            }
            self.events.push(answer);
        }
    }

    /// Goes to a page.
    pub fn go(&mut self, url: &str) {
        self.load("Page.navigate", &json!({ "url": url }));
    }

    /// Loads the page again.
    pub fn reload(&mut self) {
        self.load("Page.reload", &json!({}));
    }

    fn load(&mut self, method: &str, parameters: &Value) {
        let is_loaded = |event: &Value| event["method"] == "Page.loadEventFired";
        self.events.retain(|event| !is_loaded(event));
        self.call(method, parameters);
        while !self.events.iter().any(is_loaded) {
            let event = self.from.recv_timeout(PATIENCE);
            self.events.push(event.unwrap_or_else(|error| panic!("{method}: not loaded: {error}")));
        }
    }

    /// Changes the window and the system's colours.
    pub fn look(&mut self, Look { width, height, dark }: Look) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false,
        });
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// The value of a JavaScript expression; a promise is waited for.
    ///
    /// # Panics
    /// If it throws.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        self.try_evaluate(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    /// The same; fails while the page goes to another one.
    fn try_evaluate(&mut self, expression: &str) -> Result<Value, Value> {
        let parameters = json!({
            "expression": expression, "awaitPromise": true, "returnByValue": true,
            // The page's policy holds for what is evaluated in it, too.
            "allowUnsafeEvalBlockedByCSP": false,
        });
        let mut answer = self.try_call("Runtime.evaluate", &parameters)?;
        let thrown = &answer["exceptionDetails"];
        assert!(thrown.is_null(), "{expression}: {thrown:#}");
        Ok(answer["result"]["value"].take())
    }

    /// Text of the first element that a CSS selector finds; empty if there is none.
    pub fn text(&mut self, selector: &str) -> String {
        let found = format!("document.querySelector({selector:?})?.innerText ?? ''");
        self.evaluate(&found).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a JavaScript expression is true.
    ///
    /// # Panics
    /// If it doesn't come to be, with the page's text.
    #[track_caller]
    pub fn until(&mut self, what: &str, expression: &str) {
        let start = std::time::Instant::now();
        // A click may have it go to another page.
        while self.try_evaluate(&format!("Boolean({expression})")) != Ok(true.into()) {
            if start.elapsed() > PATIENCE {
                let text = self.evaluate("document.body.innerText");
                let complaints = self.complaints();
                panic!("waited in vain: {what}: {expression}\n{complaints:#?}\n{text}");
            }
            wait::pause();
        }
    }

    /// Waits until the page shows a text.
    #[track_caller]
    pub fn until_shows(&mut self, text: &str) {
        let text = json!(text);
        self.until("the page shows it", &format!("document.body.innerText.includes({text})"));
    }

    /// Presses a key, by the name that the DOM gives it: `j`, `Enter`.
    pub fn press(&mut self, key: &str) {
        let mut parameters = json!({ "type": "keyDown", "key": key });
        if key.chars().count() == 1 {
            parameters["text"] = key.into();
        } else if key == "Escape" {
            // Chromium's own dialogs go by the code.
            parameters["windowsVirtualKeyCode"] = 27.into();
        }
        self.call("Input.dispatchKeyEvent", &parameters);
        self.call("Input.dispatchKeyEvent", &json!({ "type": "keyUp", "key": key }));
    }

    /// Types a text into what has the focus.
    pub fn enter(&mut self, text: &str) {
        self.call("Input.insertText", &json!({ "text": text }));
    }

    /// Clicks into the middle of the first element that a CSS selector finds.
    ///
    /// # Panics
    /// If there is none.
    pub fn click(&mut self, selector: &str) {
        let place = self.evaluate(&format!(
            "(() => {{ const at = document.querySelector({selector:?}).getBoundingClientRect();
               return [at.x + at.width / 2, at.y + at.height / 2]; }})()"
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({
                "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1,
            });
            self.call("Input.dispatchMouseEvent", &event);
        }
    }

    /// What went to the console, what was thrown and not caught, and what Chromium itself found
    /// wrong, such as a breach of the Content-Security-Policy; since the last call.
    pub fn complaints(&mut self) -> Vec<String> {
        // Whatever was sent before this is answered has come.
        self.evaluate("0");
        let is_complaint = |event: &Value| {
            let method = event["method"].as_str().unwrap_or_default();
            ["Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"]
                .contains(&method)
        };
        let events = std::mem::take(&mut self.events);
        events.iter().filter(|event| is_complaint(event)).map(|e| e["params"].to_string()).collect()
    }

    /// A picture of the window, as PNG.
    ///
    /// # Panics
    /// If Chromium sends none.
    pub fn screenshot(&mut self) -> Vec<u8> {
        let picture = self.call("Page.captureScreenshot", &json!({ "format": "png" }));
        STANDARD.decode(picture["data"].as_str().unwrap_or_default()).expect("a picture")
    }
}

/// The Chromium to use: `CHROMIUM_BINARY`, else the first on `PATH`.
fn binary() -> PathBuf {
    if let Some(path) = env::var_os("CHROMIUM_BINARY") {
        return path.into();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    let found = NAMES.iter().find_map(|name| {
        folders.iter().map(|folder| folder.join(name)).find(|file| Path::is_file(file))
    });
    found.unwrap_or_else(|| panic!("no Chromium on PATH ({NAMES:?}): run scripts/deps test"))
}
