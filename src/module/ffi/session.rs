//! TLS sessions of peers, resumed over connections as nginx's own balancers do.

#[cfg(nginx_ssl)]
pub(crate) use with_ssl::Sessions;
#[cfg(not(nginx_ssl))]
pub(crate) use without_ssl::Sessions;

#[cfg(nginx_ssl)]
mod with_ssl {
    use std::cell::Cell;
    use std::ptr;

    use nginx_sys::{
        SSL_SESSION, SSL_SESSION_free, ngx_int_t, ngx_peer_connection_t, ngx_ssl_get_session,
        ngx_ssl_set_session,
    };

    /// The last session of each peer; null if none. Each holds one reference.
    pub(crate) struct Sessions(Box<[Cell<*mut SSL_SESSION>]>, Cell<bool>);

    impl Sessions {
        pub(crate) fn new(peers: usize) -> Sessions {
            let none = (0..peers).map(|_| Cell::new(ptr::null_mut())).collect();
            Sessions(none, Cell::new(false))
        }

        /// Whether any was ever saved.
        pub(crate) fn any(&self) -> bool {
            self.1.get()
        }

        pub(crate) fn take_over(&self, peer: usize, from: &Sessions, old: usize) {
            if let Some(session) = from.0.get(old) {
                self.put(peer, session.replace(ptr::null_mut()));
            }
        }

        /// Offers the peer's last session for the coming handshake.
        pub(crate) fn resume(&self, pc: &ngx_peer_connection_t, peer: usize) -> ngx_int_t {
            let session = self.0.get(peer).map_or(ptr::null_mut(), Cell::get);
            // SAFETY: nginx calls set_session when the connection has its SSL object; null is no
            // session. OpenSSL takes a reference of its own.
            unsafe { ngx_ssl_set_session(pc.connection, session) }
        }

        /// Keeps the session of a handshake that is done.
        pub(crate) fn save(&self, pc: &ngx_peer_connection_t, peer: usize) {
            // SAFETY: nginx calls save_session with a connection whose handshake is done; the
            // reference returned is ours.
            let session = unsafe { ngx_ssl_get_session(pc.connection) };
            if !session.is_null() {
                self.put(peer, session);
            }
        }

        fn put(&self, peer: usize, session: *mut SSL_SESSION) {
            self.1.set(self.1.get() || !session.is_null());
            let old = self.0.get(peer).map_or(session, |place| place.replace(session));
            if !old.is_null() {
                // SAFETY: our reference, no longer stored anywhere.
                unsafe { SSL_SESSION_free(old) };
            }
        }
    }

    impl Drop for Sessions {
        fn drop(&mut self) {
            if self.any() {
                (0..self.0.len()).for_each(|peer| self.put(peer, ptr::null_mut()));
            }
        }
    }
}

#[cfg(not(nginx_ssl))]
mod without_ssl {
    use nginx_sys::{ngx_int_t, ngx_peer_connection_t};

    /// An nginx without TLS never asks for a session.
    pub(crate) struct Sessions;

    impl Sessions {
        pub(crate) fn new(_: usize) -> Sessions {
            Sessions
        }

        pub(crate) fn any(&self) -> bool {
            false
        }

        pub(crate) fn take_over(&self, _: usize, _: &Sessions, _: usize) {}

        pub(crate) fn resume(&self, _: &ngx_peer_connection_t, _: usize) -> ngx_int_t {
            crate::ffi::codes::OK
        }

        pub(crate) fn save(&self, _: &ngx_peer_connection_t, _: usize) {}
    }
}
