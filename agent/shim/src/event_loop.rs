//! The shim's one loop: wait for the container, its output, its children and its clients, and join them.

use std::fs;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::client::{Client, Listener, MAX_CLIENTS, Packet, Role};
use crate::container::Container;
use crate::exec::{Exec, sweep};
use crate::log::Log;
use crate::protocol::{EXIT, Exit, Reply, Request, STREAM_STDIN, Settings};
use crate::{Result, Trying};

/// Processes of `exec` at a time.
const MAX_EXECS: usize = 32;
/// After the end, how long to wait for output from whoever still holds the pipes.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// After the end, how long to wait for clients that do not read.
const LAST_READERS: Duration = Duration::from_secs(60);

/// What a descriptor in the poll set belongs to.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Input,
    Output(usize),
    Exec(usize),
    Client(usize),
}

/// Everything the shim knows.
pub(crate) struct EventLoop {
    settings: Settings,
    container: Container,
    listener: Listener,
    signals: SignalFd,
    log: Option<Log>,
    clients: Vec<Client>,
    next_client: u64,
    execs: Vec<Exec>,
    /// Children that ended while an `exec` was being set up and may turn out to be its process.
    unclaimed: Vec<(i32, Exit)>,
    started_at: u64,
    exit: Option<Exit>,
    /// The exit was announced: all that is left is to see that everybody has heard.
    announced: bool,
    /// When something last moved.
    progress: Instant,
}

impl EventLoop {
    /// Takes charge of a created container.
    pub(crate) fn new(
        settings: Settings,
        listener: Listener,
        container: Container,
    ) -> Result<Self> {
        // Only now: whatever is blocked while libcontainer works stays blocked in the container.
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        let mut blocked = mask;
        // When the whole unit is stopped these come to shim and container alike; the shim stays to write down the end.
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            blocked.add(signal);
        }
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None).trying("block signals")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .trying("watch SIGCHLD")?;
        Ok(Self {
            log: settings.log.clone().map(Log::open),
            settings,
            container,
            listener,
            signals,
            clients: Vec::new(),
            next_client: 0,
            execs: Vec::new(),
            unclaimed: Vec::new(),
            started_at: 0,
            exit: None,
            announced: false,
            progress: Instant::now(),
        })
    }

    /// The main process.
    pub(crate) fn pid(&self) -> i32 {
        self.container.pid
    }

    /// Runs until the container has ended and everybody knows.
    pub(crate) fn run(mut self) -> Result<()> {
        // Whoever died before the signal was watched.
        self.reap()?;
        while !self.is_finished() {
            for source in self.wait()? {
                self.handle(source)?;
            }
            self.give_up_on_slow_execs();
            self.clients.retain(|client| !client.is_over());
            self.announce_if_drained();
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        let told = self.execs.is_empty() && !self.clients.iter().any(Client::wants_to_write);
        self.announced && (told || self.progress.elapsed() > LAST_READERS)
    }

    fn handle(&mut self, source: Source) -> Result<()> {
        match source {
            Source::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap()?;
            }
            Source::Listener => self.accept(),
            Source::Input => self.flush_input(),
            Source::Output(index) => self.read_output(index),
            Source::Exec(index) => self.read_report(index),
            Source::Client(index) => self.serve(index),
        }
        Ok(())
    }

    // Waiting.

    /// Sleeps until something is ready, and says what.
    fn wait(&self) -> Result<Vec<Source>> {
        let (mut fds, sources) = self.poll_set();
        let timeout = self.timeout();
        let count = libc::nfds_t::try_from(fds.len()).trying("poll")?;
        // SAFETY: the array is as long as said and lives through the call.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), count, timeout) };
        if ready < 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() == std::io::ErrorKind::Interrupted {
                return Ok(Vec::new());
            }
            return Err(format!("poll: {error}"));
        }
        let ready = fds.iter().zip(sources).filter(|(fd, _)| fd.revents != 0);
        Ok(ready.map(|(_, source)| source).collect())
    }

    fn poll_set(&self) -> (Vec<libc::pollfd>, Vec<Source>) {
        let mut fds = Vec::with_capacity(8);
        let mut sources = Vec::with_capacity(8);
        let mut add = |fd: RawFd, events: libc::c_short, source: Source| {
            fds.push(libc::pollfd {
                fd,
                events,
                revents: 0,
            });
            sources.push(source);
        };
        add(self.signals.as_raw_fd(), libc::POLLIN, Source::Signals);
        add(self.listener.fd(), libc::POLLIN, Source::Listener);
        let input = self.container.stdio.input.as_ref();
        if let Some(fd) = input.and_then(|input| input.wants_to_write()) {
            add(fd, libc::POLLOUT, Source::Input);
        }
        if !self.is_held_up() {
            for (index, output) in self.container.stdio.outputs.iter().enumerate() {
                if let Some(fd) = output.fd() {
                    add(fd, libc::POLLIN, Source::Output(index));
                }
            }
        }
        for (index, exec) in self.execs.iter().enumerate() {
            if let Some(fd) = exec.report_fd() {
                add(fd, libc::POLLIN, Source::Exec(index));
            }
        }
        let room = input.is_none_or(|input| input.has_room());
        for (index, client) in self.clients.iter().enumerate() {
            let reading = room || !matches!(client.role, Role::Attached { .. });
            let events = if reading { libc::POLLIN } else { 0 };
            let writing = if client.wants_to_write() {
                libc::POLLOUT
            } else {
                0
            };
            add(client.fd(), events | writing, Source::Client(index));
        }
        (fds, sources)
    }

    /// Whether a client that must not lose anything is so far behind that the container has to wait.
    fn is_held_up(&self) -> bool {
        self.clients.iter().any(|client| {
            matches!(client.role, Role::Attached { lossless: true, .. }) && client.is_full()
        })
    }

    /// Milliseconds until something is to be given up; -1 if nothing is.
    fn timeout(&self) -> i32 {
        let execs = self.execs.iter().filter(|exec| exec.is_setting_up());
        let mut next = execs.map(|exec| exec.deadline).min();
        if self.exit.is_some() {
            let patience = if self.announced || self.is_held_up() {
                LAST_READERS
            } else {
                LAST_WORDS
            };
            let give_up = self.progress + patience;
            next = Some(next.map_or(give_up, |next| next.min(give_up)));
        }
        next.map_or(-1, |at| {
            let left = at.saturating_duration_since(Instant::now()).as_millis();
            i32::try_from(left).map_or(i32::MAX, |left| left.saturating_add(1))
        })
    }

    // Children.

    fn reap(&mut self) -> Result<()> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => status,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return Ok(()),
            };
            let (pid, code, signal) = match status {
                WaitStatus::Exited(pid, code) => (pid, code, None),
                WaitStatus::Signaled(pid, signal, _) => {
                    let signal = signal as i32;
                    (pid, 128 + signal, Some(signal))
                }
                WaitStatus::StillAlive => return Ok(()),
                WaitStatus::Stopped(..)
                | WaitStatus::Continued(_)
                | WaitStatus::PtraceEvent(..)
                | WaitStatus::PtraceSyscall(_) => continue,
            };
            let exit = Exit {
                code,
                signal,
                oom_killed: false,
                started_at: 0,
                finished_at: crate::now(),
                error: None,
            };
            self.child_ended(pid.as_raw(), exit)?;
        }
    }

    fn child_ended(&mut self, pid: i32, exit: Exit) -> Result<()> {
        if let Some(exec) = self.execs.iter_mut().find(|exec| exec.helper == Some(pid)) {
            exec.helper = None;
        }
        if pid == self.container.pid && self.exit.is_none() {
            return self.container_ended(exit);
        }
        if let Some(index) = self.execs.iter().position(|exec| exec.pid == Some(pid)) {
            self.exec_ended(index, exit);
        } else if self.unclaimed.len() < MAX_EXECS && self.execs.iter().any(Exec::is_setting_up) {
            self.unclaimed.push((pid, exit));
        }
        Ok(())
    }

    /// The status goes to the directory before anything else happens: from now on it cannot be lost.
    fn container_ended(&mut self, mut exit: Exit) -> Result<()> {
        exit.started_at = self.started_at;
        exit.oom_killed = self.was_oom_killed();
        let text = serde_json::to_vec(&exit).trying("write the exit status")?;
        let new = format!("{EXIT}.new");
        let dir = self.container.dir();
        fs::write(dir.join(&new), text).trying("write the exit status")?;
        fs::rename(dir.join(&new), dir.join(EXIT)).trying("write the exit status")?;
        self.exit = Some(exit);
        self.progress = Instant::now();
        // Whatever shares no pid namespace with the main process, or joined it by exec, ends with it.
        let kill = format!("{}/cgroup.kill", self.settings.container_cgroup);
        if let Err(error) = fs::write(&kill, "1") {
            // The cgroup may be gone already, if skepd is removing the container.
            crate::complain(&format!("write {kill}: {error}"));
        }
        Ok(())
    }

    fn was_oom_killed(&self) -> bool {
        let path = format!("{}/memory.events", self.settings.container_cgroup);
        let events = fs::read_to_string(path).unwrap_or_default();
        events
            .lines()
            .filter_map(|line| line.strip_prefix("oom_kill "))
            .any(|count| count.trim() != "0")
    }

    fn announce_if_drained(&mut self) {
        let Some(exit) = self.exit.clone().filter(|_| !self.announced) else {
            return;
        };
        let patience = if self.is_held_up() {
            LAST_READERS
        } else {
            LAST_WORDS
        };
        let open = self
            .container
            .stdio
            .outputs
            .iter()
            .any(|output| output.fd().is_some());
        if open && self.progress.elapsed() < patience {
            return;
        }
        for output in &mut self.container.stdio.outputs {
            let entries = output.lines.finish(crate::now());
            if let Some(log) = self.log.as_mut().filter(|_| !entries.is_empty()) {
                log.write(&entries);
            }
        }
        for client in &mut self.clients {
            if matches!(client.role, Role::Waiter | Role::Attached { .. }) {
                client.finish(&Reply::Exit(exit.clone()));
            }
        }
        self.announced = true;
        self.progress = Instant::now();
    }

    // Processes of exec.

    fn read_report(&mut self, index: usize) {
        let Some(reply) = self.execs.get_mut(index).and_then(Exec::read_report) else {
            return;
        };
        let exec = &self.execs[index];
        let (pid, id) = (exec.pid, exec.client);
        let client = self.clients.iter_mut().find(|client| client.id == id);
        if pid.is_some() {
            client.into_iter().for_each(|client| client.reply(&reply));
        } else {
            client.into_iter().for_each(|client| client.finish(&reply));
            self.execs.remove(index);
        }
        let ended = self
            .unclaimed
            .iter()
            .position(|(ended, _)| Some(*ended) == pid);
        if let Some(ended) = ended {
            let (_, exit) = self.unclaimed.swap_remove(ended);
            self.exec_ended(index, exit);
        }
        if !self.execs.iter().any(Exec::is_setting_up) {
            self.unclaimed.clear();
            sweep(&self.container, &self.settings.id);
        }
    }

    fn exec_ended(&mut self, index: usize, mut exit: Exit) {
        let exec = self.execs.remove(index);
        exit.started_at = exec.started_at;
        let client = self
            .clients
            .iter_mut()
            .find(|client| client.id == exec.client);
        if let Some(client) = client {
            client.finish(&Reply::Exit(exit));
        }
    }

    fn give_up_on_slow_execs(&mut self) {
        let now = Instant::now();
        for exec in &mut self.execs {
            if exec.is_setting_up() && exec.deadline <= now {
                // Its report ends with it, and is then answered as an error.
                exec.abandon();
                exec.deadline = now + LAST_READERS;
            }
        }
    }

    // Standard input and output.

    fn read_output(&mut self, index: usize) {
        let output = &mut self.container.stdio.outputs[index];
        let Some(data) = output.read() else {
            return;
        };
        self.progress = Instant::now();
        if let Some(log) = &mut self.log {
            let entries = output.lines.push(&data, crate::now());
            if !entries.is_empty() {
                log.write(&entries);
            }
        }
        for client in &mut self.clients {
            if matches!(client.role, Role::Attached { .. }) {
                client.frame(output.stream, &data);
            }
        }
    }

    fn flush_input(&mut self) {
        if self
            .container
            .stdio
            .input
            .as_mut()
            .is_some_and(|input| input.flush())
        {
            self.container.stdio.input = None;
        }
    }

    // Clients.

    fn accept(&mut self) {
        while let Some(fd) = self.listener.accept() {
            if self.clients.len() < MAX_CLIENTS {
                self.clients.push(Client::new(self.next_client, fd));
                self.next_client += 1;
            }
        }
    }

    fn serve(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.flush() {
            self.progress = Instant::now();
        }
        match client.receive() {
            Packet::Nothing => {}
            Packet::Gone => client.drop_it(),
            Packet::Data(data, fds) => match client.role {
                Role::Fresh => self.request(index, &data, &fds),
                Role::Attached { stdin: true, .. } => match data.split_first() {
                    Some((&STREAM_STDIN, input)) => self.push_input(input),
                    Some(_) | None => client.drop_it(),
                },
                // They have nothing more to say.
                Role::Waiter | Role::Exec | Role::Leaving | Role::Attached { stdin: false, .. } => {
                    client.drop_it();
                }
            },
        }
    }

    fn push_input(&mut self, data: &[u8]) {
        if let Some(input) = &mut self.container.stdio.input {
            input.push(data);
        }
        self.flush_input();
    }

    fn request(&mut self, index: usize, data: &[u8], fds: &[std::os::fd::OwnedFd]) {
        let answer = serde_json::from_slice::<Request>(data)
            .trying("not a request")
            .and_then(|request| self.answer(index, &request, fds));
        let client = &mut self.clients[index];
        match answer {
            Ok(Some(reply)) => client.finish(&reply),
            Ok(None) => {}
            Err(why) => client.finish(&Reply::Error { why }),
        }
    }

    /// Does what is asked. `None` if the connection goes on.
    fn answer(
        &mut self,
        index: usize,
        request: &Request,
        fds: &[std::os::fd::OwnedFd],
    ) -> Result<Option<Reply>> {
        match request {
            Request::State => Ok(Some(self.state())),
            Request::Start => self.start().map(|()| Some(Reply::Done)),
            Request::Signal { signal } => self.signal(*signal).map(|()| Some(Reply::Done)),
            Request::Resize { rows, columns } => {
                self.container.stdio.resize(*rows, *columns)?;
                Ok(Some(Reply::Done))
            }
            Request::Wait => Ok(self.stay(index, Role::Waiter)),
            Request::Attach { stdin, lossless } => {
                self.clients[index].reply(&Reply::Done);
                let role = Role::Attached {
                    stdin: *stdin,
                    lossless: *lossless,
                };
                Ok(self.stay(index, role))
            }
            Request::Exec { process, console } => {
                self.exec(index, process, console.as_deref(), fds)?;
                Ok(self.stay(index, Role::Exec))
            }
        }
    }

    /// Keeps the connection, unless all there is to hear has been said.
    fn stay(&mut self, index: usize, role: Role) -> Option<Reply> {
        self.clients[index].role = role;
        let over = self.announced && role != Role::Exec;
        self.exit.clone().filter(|_| over).map(Reply::Exit)
    }

    fn state(&self) -> Reply {
        Reply::State {
            started_at: self.started_at,
            pid: self.container.pid,
            exit: self.exit.clone(),
        }
    }

    fn start(&mut self) -> Result<()> {
        if self.started_at == 0 && self.exit.is_none() {
            self.container.start()?;
            self.started_at = crate::now();
        }
        Ok(())
    }

    fn signal(&self, signal: i32) -> Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(format!("{signal} is not a signal"));
        }
        if self.exit.is_none() {
            self.container.signal(signal)?;
        }
        Ok(())
    }

    fn exec(
        &mut self,
        index: usize,
        process: &serde_json::Value,
        console: Option<&str>,
        fds: &[std::os::fd::OwnedFd],
    ) -> Result<()> {
        if self.started_at == 0 || self.exit.is_some() {
            return Err("the container is not running".to_owned());
        }
        if self.execs.len() >= MAX_EXECS {
            return Err(format!("{MAX_EXECS} processes were added already"));
        }
        let client = self.clients[index].id;
        let id = &self.settings.id;
        let exec = Exec::begin(&self.container, id, client, process, console, fds)?;
        self.execs.push(exec);
        Ok(())
    }
}
