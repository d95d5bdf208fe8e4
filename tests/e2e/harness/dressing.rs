//! A proxy that gives the answers of a real Consul the heads and the habits of a newer one.
//!
//! What blocks, wakes and counts is the real Consul's behind it. What is streamed, and what a
//! streamed answer looks like, is Consul 1.10's and later ones' (`rules`). Further habits, those
//! that are seen in trouble or in some versions only, are switched on by [`Quirks`].

mod connection;
mod rules;

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use self::rules::{Answer, Request};
use crate::{ports, threads, wait};

/// Habits that a Consul has at times.
#[derive(Clone, Debug)]
pub struct Quirks {
    /// Health queries that block are streamed (`use_streaming_backend`); on unless told.
    pub streaming: bool,
    /// `X-Consul-Default-Acl-Policy`; `allow` unless told.
    pub default_policy: &'static str,
    /// A connection without a request for so long is closed (120 s in 1.22.4).
    pub idle: Option<Duration>,
    /// An answer that comes later than so long after its request is not written, but the connection
    /// closed in its place, as by Go's `WriteTimeout` (30 s in 1.22.4).
    pub write_timeout: Option<Duration>,
    /// The connection of a request is closed without a byte after so long, as by a proxy between.
    pub cut: Option<Duration>,
    /// Streamed queries are answered 500 with `rpc error: code = Unknown desc = …` and this text:
    /// servers that don't stream, or can't yet.
    pub stream_error: Option<&'static str>,
    /// A streamed wait that expires is answered with an index one below the one asked for.
    pub lower_index: bool,
    /// Answers with an index say that ACLs hid something of them.
    pub filtered: bool,
    /// Streamed answers to `cached` are empty, as after some restarts.
    pub empty_cache: bool,
    /// Instances have `Ports`, whose default is not the first one, and `Port` is 0.
    pub ports: bool,
    /// All is answered with this status, 429 or 503, as under `request_limits`.
    pub refuse: Option<u16>,
}

impl Default for Quirks {
    fn default() -> Quirks {
        Quirks {
            streaming: true,
            default_policy: "allow",
            idle: None,
            write_timeout: None,
            cut: None,
            stream_error: None,
            lower_index: false,
            filtered: false,
            empty_cache: false,
            ports: false,
            refuse: None,
        }
    }
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Path and query.
    pub target: String,
    /// `index=`.
    pub index: Option<u64>,
    /// Whether it asked for a streamed answer.
    pub streamed: bool,
    /// When it came.
    pub at: Instant,
}

/// A streamed query's view: the part of its target that names it, and its token.
type View = (String, String);

#[derive(Debug, Default)]
struct State {
    quirks: Quirks,
    seen: Vec<Seen>,
    /// How often all streams broke.
    breaks: usize,
    /// The views asked for so far, each with a request for it.
    views: HashMap<View, Request>,
    /// Their content, while they are frozen.
    frozen: Option<HashMap<View, Answer>>,
    accepted: usize,
    open: HashMap<usize, (TcpStream, UnixStream)>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
}

/// The proxy.
#[derive(Debug)]
pub struct Dressing {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Mutex<Option<(TcpListener, thread::JoinHandle<()>)>>,
}

impl Dressing {
    /// Starts one on a free port of 127.0.0.1, in front of a Consul.
    pub fn start(target: SocketAddr) -> Dressing {
        let address = (Ipv4Addr::LOCALHOST, ports::free()).into();
        let shared = Arc::new(Shared { target, state: Mutex::default() });
        let dressing = Dressing { shared, address, stop: Mutex::default() };
        dressing.listen();
        dressing
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes its habits; requests that wait see to it at once.
    pub fn set(&self, change: impl FnOnce(&mut Quirks)) {
        change(&mut self.shared.state().quirks);
        self.shared.wake_all();
    }

    /// Has the streams stand still: streamed answers come from a copy taken now, waits expire with
    /// old content, while the Consul behind goes on. A view that nobody has asked for before is
    /// copied when it is.
    ///
    /// # Panics
    /// If Consul doesn't answer.
    pub fn freeze(&self) {
        let views = self.shared.state().views.clone();
        let copy = |(view, request): (View, Request)| {
            let answer = connection::fetch(self.shared.target, self.address.ip(), &request);
            (view, answer.expect("a copy of a view"))
        };
        self.shared.state().frozen = Some(views.into_iter().map(copy).collect());
        self.shared.wake_all();
    }

    /// Has frozen streams move again.
    pub fn thaw(&self) {
        self.shared.state().frozen = None;
        self.shared.wake_all();
    }

    /// Breaks all streams at once: each streamed query that waits is answered with an error. The
    /// next ones are good.
    pub fn break_streams(&self) {
        self.shared.state().breaks += 1;
        self.shared.wake_all();
    }

    /// Requests that came, those with `text` in their target.
    pub fn requests(&self, text: &str) -> Vec<Seen> {
        self.shared.state().seen.iter().filter(|s| s.target.contains(text)).cloned().collect()
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.state().accepted
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.shared.state().open.len()
    }

    /// Closes all connections.
    pub fn cut_all(&self) {
        for (client, _) in self.shared.state().open.values() {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Listens again after [`Dressing::refuse`].
    pub fn listen(&self) {
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        if stop.is_some() {
            return;
        }
        let listener = wait::until_some("the dressing's port", Duration::from_secs(5), || {
            TcpListener::bind(self.address).ok()
        });
        let accepting = listener.try_clone().expect("a second handle of the listener");
        let shared = Arc::clone(&self.shared);
        *stop = Some((listener, thread::spawn(move || accept(&shared, &accepting))));
    }

    /// Closes all connections and refuses new ones.
    pub fn refuse(&self) {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((listener, thread)) = stop {
            // Shutting a listener down ends the other thread's accept at once.
            let _ = socket2::SockRef::from(&listener).shutdown(Shutdown::Both);
            let _ = thread.join();
        }
        self.cut_all();
    }
}

impl Drop for Dressing {
    fn drop(&mut self) {
        self.refuse();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(&self) {
        for (_, wake) in self.state().open.values() {
            // One that is full wakes already.
            let _ = (&mut &*wake).write(b"!");
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    while let Ok((client, _)) = listener.accept() {
        if let Err(error) = begin(shared, client) {
            eprintln!("dressing of {}: {error}", shared.target);
        }
    }
}

fn begin(shared: &Arc<Shared>, client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let number = {
        let mut state = shared.state();
        state.accepted += 1;
        let number = state.accepted;
        state.open.insert(number, (client.try_clone()?, wake));
        number
    };
    let shared = Arc::clone(shared);
    threads::spawn(move || {
        // An error is one side going away, which is the test's doing.
        let _ = connection::serve(&shared, client, woken);
        if let Some((client, _)) = shared.state().open.remove(&number) {
            let _ = client.shutdown(Shutdown::Both);
        }
    });
    Ok(())
}
