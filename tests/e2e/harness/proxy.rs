//! A TCP proxy that breaks what passes, and counts it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{ports, threads, wait};

/// What the proxy does to new and open connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Everything passes.
    #[default]
    Pass,
    /// Nothing listens; open connections are closed.
    Refuse,
    /// Connections are accepted and stay open, and nothing passes any more.
    BlackHole,
    /// Each answer is cut after so many bytes, and its connection closed.
    Cut(usize),
    /// As `Cut`, but the connection is reset: what is on its way is lost with it.
    Reset(usize),
    /// Each piece of an answer comes so much later.
    Delay(Duration),
    /// Answers come byte by byte, with such a pause before each.
    Trickle(Duration),
}

#[derive(Debug, Default)]
struct Shared {
    fault: Mutex<Fault>,
    accepted: AtomicUsize,
    most_open: AtomicUsize,
    bytes: AtomicUsize,
    requests: Mutex<Vec<Passed>>,
    open: Mutex<HashMap<usize, [TcpStream; 2]>>,
}

/// A request that passed.
#[derive(Clone, Debug)]
pub struct Passed {
    /// Its first line.
    pub line: String,
    /// When it came.
    pub at: Instant,
}

/// A proxy in front of a server.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    target: SocketAddr,
    stop: Mutex<Option<Stop>>,
}

#[derive(Debug)]
struct Stop {
    listener: TcpListener,
    thread: thread::JoinHandle<()>,
}

impl Proxy {
    /// Starts one on a free port of 127.0.0.1.
    pub fn start(target: SocketAddr) -> Proxy {
        Proxy::start_on(Ipv4Addr::LOCALHOST, target)
    }

    /// Starts one on a free port of an address of this machine.
    pub fn start_on(ip: impl Into<IpAddr>, target: SocketAddr) -> Proxy {
        let address = (ip.into(), ports::free()).into();
        let proxy = Proxy { shared: Arc::default(), address, target, stop: Mutex::default() };
        proxy.listen();
        proxy
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// URL of what it stands for.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what happens to new and open connections.
    pub fn set(&self, fault: Fault) {
        let before = std::mem::replace(&mut *lock(&self.shared.fault), fault);
        match (before, fault) {
            (Fault::Refuse, Fault::Refuse) => {}
            (_, Fault::Refuse) => {
                self.close();
                self.cut_all();
            }
            (Fault::Refuse, _) => self.listen(),
            // What was swallowed is lost: only a fresh connection can make sense again.
            (Fault::BlackHole, Fault::Pass) => self.cut_all(),
            _ => {}
        }
    }

    /// Closes all open connections.
    pub fn cut_all(&self) {
        for [one, other] in lock(&self.shared.open).values() {
            let _ = one.shutdown(Shutdown::Both);
            let _ = other.shutdown(Shutdown::Both);
        }
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        lock(&self.shared.open).len()
    }

    /// Most connections that were open at a time.
    pub fn most_open(&self) -> usize {
        self.shared.most_open.load(Ordering::SeqCst)
    }

    /// Bytes of the answers so far.
    pub fn bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    /// Requests that came, those with `text` in their first line.
    pub fn requests(&self, text: &str) -> Vec<Passed> {
        lock(&self.shared.requests).iter().filter(|r| r.line.contains(text)).cloned().collect()
    }

    fn listen(&self) {
        let listener = wait::until_some("the proxy's port", Duration::from_secs(5), || {
            TcpListener::bind(self.address).ok()
        });
        let accepting = listener.try_clone().expect("a second handle of the listener");
        let (shared, target) = (Arc::clone(&self.shared), self.target);
        let thread = thread::spawn(move || accept(&shared, &accepting, target));
        *lock(&self.stop) = Some(Stop { listener, thread });
    }

    fn close(&self) {
        if let Some(stop) = lock(&self.stop).take() {
            // Shutting a listener down ends the other thread's accept at once.
            let _ = socket2::SockRef::from(&stop.listener).shutdown(Shutdown::Both);
            let _ = stop.thread.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.close();
        self.cut_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener, target: SocketAddr) {
    while let Ok((client, _)) = listener.accept() {
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
        let Ok(server) = TcpStream::connect_timeout(&target, Duration::from_secs(5)) else {
            continue;
        };
        if let Err(error) = connect(shared, number, client, server) {
            eprintln!("proxy to {target}: {error}");
        }
    }
}

fn connect(
    shared: &Arc<Shared>,
    number: usize,
    client: TcpStream,
    server: TcpStream,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ends = [client.try_clone()?, server.try_clone()?];
    let open = {
        let mut open = lock(&shared.open);
        open.insert(number, ends);
        open.len()
    };
    shared.most_open.fetch_max(open, Ordering::SeqCst);
    let (to_server, from_server) = (server.try_clone()?, server);
    let (to_client, from_client) = (client.try_clone()?, client);
    let up = Arc::clone(shared);
    threads::spawn(move || forward_requests(&up, from_client, to_server));
    let down = Arc::clone(shared);
    threads::spawn(move || {
        forward_answers(&down, from_server, to_client);
        lock(&down.open).remove(&number);
    });
    Ok(())
}

fn forward_requests(shared: &Shared, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..n]);
        for line in text.lines().filter(|line| line.ends_with(" HTTP/1.1")) {
            let passed = Passed { line: line.to_owned(), at: Instant::now() };
            lock(&shared.requests).push(passed);
        }
        let fault = *lock(&shared.fault);
        if fault != Fault::BlackHole && to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

fn forward_answers(shared: &Shared, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    let mut passed = 0;
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let fault = *lock(&shared.fault);
        let part = match fault {
            Fault::BlackHole => continue,
            Fault::Cut(limit) | Fault::Reset(limit) => {
                &buffer[..n.min(limit.saturating_sub(passed))]
            }
            _ => &buffer[..n],
        };
        if let Fault::Delay(delay) = fault {
            thread::sleep(delay);
        }
        passed += part.len();
        shared.bytes.fetch_add(part.len(), Ordering::SeqCst);
        let written = match fault {
            Fault::Trickle(pause) => trickle(&mut to, part, pause),
            _ => to.write_all(part),
        };
        if written.is_err() || part.len() < n {
            break;
        }
    }
    if matches!(*lock(&shared.fault), Fault::Reset(_)) {
        // With all handles closed and no shutdown before, the kernel sends a reset.
        let _ = socket2::SockRef::from(&to).set_linger(Some(Duration::ZERO));
        let _ = to.shutdown(Shutdown::Read);
        return;
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

fn trickle(to: &mut TcpStream, bytes: &[u8], pause: Duration) -> std::io::Result<()> {
    for byte in bytes {
        thread::sleep(pause);
        to.write_all(std::slice::from_ref(byte))?;
    }
    Ok(())
}
