//! Backends that fail as machines and programs do, and recover, on command.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::backend::{Backend, Manner};
use crate::ports::{self, BlackHole};
use crate::wait;

/// How a backend fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing listens: the kernel answers a SYN with RST.
    Refuses,
    /// The listener's accept queue is full: the kernel drops each SYN, as a dead machine does.
    DropsPackets,
    /// Connections are accepted, requests read and never answered.
    Silent,
    /// A byte of the header comes every second.
    SlowHeader,
    /// The header comes at once, then a byte of the body every second.
    SlowBody,
}

impl Failure {
    /// Those that nginx's timeouts can tell before there is a header.
    pub const BEFORE_THE_HEADER: [Failure; 4] =
        [Failure::Refuses, Failure::DropsPackets, Failure::Silent, Failure::SlowHeader];
}

/// What is at the backend's address.
#[derive(Debug)]
enum State {
    Listening(Backend),
    Refusing,
    Dropping { _hole: BlackHole },
}

/// A backend that can fail in each way; its address stays.
#[derive(Debug)]
pub struct FaultyBackend {
    name: String,
    address: SocketAddr,
    state: State,
}

impl FaultyBackend {
    /// Starts one that is well.
    pub fn start(name: &str) -> FaultyBackend {
        let backend = Backend::start(name);
        FaultyBackend {
            name: name.to_owned(),
            address: backend.address(),
            state: State::Listening(backend),
        }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes it fail. Connections that were open are closed if it no longer listens.
    pub fn fail(&mut self, failure: Failure) {
        match failure {
            Failure::Refuses => self.close(),
            Failure::DropsPackets => {
                self.close();
                self.state = State::Dropping { _hole: BlackHole::open_at(self.address) };
            }
            Failure::Silent => self.listen(Manner::Silent),
            Failure::SlowHeader => self.listen(Manner::SlowHeader),
            Failure::SlowBody => self.listen(Manner::SlowBody),
        }
    }

    /// Has it answer well.
    pub fn recover(&mut self) {
        self.listen(Manner::Well);
    }

    /// A backend's thread closes the listener a moment after its owner is dropped.
    fn close(&mut self) {
        self.state = State::Refusing;
        wait::until("nothing listens", ports::PATIENCE, || {
            TcpStream::connect_timeout(&self.address, Duration::from_millis(100))
                .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
    }

    fn listen(&mut self, manner: Manner) {
        if !matches!(self.state, State::Listening(_)) {
            self.state = State::Refusing;
            let bind = || TcpListener::bind(self.address).ok();
            let listener = wait::until_some("the address is free", ports::PATIENCE, bind);
            self.state = State::Listening(Backend::over(&self.name, listener, None));
        }
        if let State::Listening(backend) = &self.state {
            backend.set(manner);
        }
    }
}
