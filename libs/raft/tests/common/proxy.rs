//! A way to a node that can be cut while both ends live.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Default)]
struct State {
    target: Option<String>,
    sockets: Vec<TcpStream>,
    silent: bool,
}

/// Passes connections on. Dropping it cuts them.
pub struct Proxy {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::downgrade(&state);
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                let Some(state) = shared.upgrade() else { return };
                let Some(target) = state.lock().unwrap().target.clone() else {
                    continue;
                };
                let Ok(far) = TcpStream::connect(target) else {
                    continue;
                };
                join(&state, near, far).unwrap();
            }
        });
        Self { address, state }
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    pub fn set_target(&self, target: String) {
        self.state.lock().unwrap().target = Some(target);
    }

    /// Holds everything back, as when a cable is pulled: nobody is told. Or lets it pass again.
    pub fn silence(&self, silent: bool) {
        self.state.lock().unwrap().silent = silent;
    }

    /// Breaks every connection; new ones are passed on.
    pub fn cut(&self) {
        for socket in self.state.lock().unwrap().sockets.drain(..) {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
    }
}

fn join(state: &Arc<Mutex<State>>, near: TcpStream, far: TcpStream) -> io::Result<()> {
    for socket in [&near, &far] {
        socket.set_nodelay(true)?;
        state.lock().unwrap().sockets.push(socket.try_clone()?);
    }
    let (near_back, far_back) = (near.try_clone()?, far.try_clone()?);
    let (there, back) = (Arc::clone(state), Arc::clone(state));
    std::thread::spawn(move || pump(&there, near, far));
    std::thread::spawn(move || pump(&back, far_back, near_back));
    Ok(())
}

fn pump(state: &Mutex<State>, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        while state.lock().unwrap().silent {
            std::thread::sleep(Duration::from_millis(2));
        }
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    for socket in [from, to] {
        let _ = socket.shutdown(Shutdown::Both);
    }
}
