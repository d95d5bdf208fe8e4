//! A backend whose connections stay what they were: one that was opened when the address was
//! another instance's still answers as that one.

use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nginx_consul_e2e::{ports, threads, wire};

#[derive(Default)]
struct Shared {
    name: Mutex<String>,
    open: AtomicUsize,
    accepted: AtomicUsize,
    stopping: AtomicBool,
}

/// The address, and who it is now.
pub(super) struct Chameleon {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Chameleon {
    pub(super) fn start() -> Chameleon {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()));
        let listener = TcpListener::bind(address).expect("the reserved port");
        let shared = Arc::<Shared>::default();
        let accepting = Arc::clone(&shared);
        threads::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let name = accepting.name.lock().expect("a name").clone();
                let shared = Arc::clone(&accepting);
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                shared.open.fetch_add(1, Ordering::SeqCst);
                threads::spawn(move || {
                    // An error is nginx's closing.
                    let _ = serve(stream, &name);
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Chameleon { shared, address }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who new connections are with from now on.
    pub(super) fn become_one(&self, name: &str) {
        name.clone_into(&mut self.shared.name.lock().expect("a name"));
    }

    pub(super) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    pub(super) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Chameleon {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    let mut reader = BufReader::new(stream);
    while wire::read_head(&mut reader)?.is_some() {
        reader.get_mut().write_all(answer.as_bytes())?;
    }
    Ok(())
}
