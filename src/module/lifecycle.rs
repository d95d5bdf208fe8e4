//! The lifecycle of the watch threads, from nginx's start to the exit of a worker.
//!
//! Before the master forks its workers, it forks a child that fetches the initial sets. Worker 0
//! then follows Consul. If it dies, its replacement is worker 0 again and finds everything in the
//! table.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nginx_consul_core::on_demand::{Channel, ServiceResolver, Templates};
use nginx_consul_core::process::ProcessId;
use nginx_consul_core::state::{Saver, State};
use nginx_consul_core::table::Table;
use nginx_consul_core::watch::{Plan, Sink, Watcher};
use nginx_sys::{NGX_LOG_ALERT, NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_cycle_t, ngx_int_t};

use self::fork::SingleThread;
use self::signals::SignalsBlocked;
use self::workers_user::Workers;
use crate::ffi::timer::Timer;
use crate::ffi::{Log, OK, catch_panic, process};
use crate::peer::{OnDemandUpstream, Upstream, Worker, end_keepalive};
use crate::upstreams::Upstreams;
use nginx_consul_core::table_writer::{Resync, TableState, TableWriter, end_expired};

mod signals;
mod fork;
mod workers_user;
mod permissions;
mod state_directory;
mod initial_fetch;

/// Milliseconds between two ticks of worker 0: it writes the threads' log lines and checks whether
/// it has to exit.
const TICK: usize = 100;
/// Ticks between two checks of leadership, threads and expired overrides.
const CHECK_TICKS: u32 = 10;
/// Ticks until the entries of services that no upstream follows any more are freed, or earlier if
/// there is no room: workers of the old configuration may still use them.
const RETAIN_TICKS: u32 = 600;
/// How long a worker that exits waits for its threads.
const JOIN: Duration = Duration::from_secs(1);

/// What a worker runs beside requests.
struct Running {
    worker: Worker,
    /// Only in worker 0.
    watch: Option<Watch>,
}

struct Watch {
    plan: Arc<Plan>,
    templates: Option<Arc<Templates>>,
    keys: Vec<u128>,
    watcher: Option<Arc<Watcher>>,
    /// Only with services that requests name.
    resolver: Option<ServiceResolver>,
    /// With `consul_state`: the path, and what the thread writes.
    state: Option<(PathBuf, Arc<TableState>)>,
    saver: Option<Saver>,
    sink: Arc<TableWriter>,
    timer: Timer,
    ticks: u32,
    /// This worker was the leader.
    has_led: bool,
    /// The entries that only older configurations had are freed.
    has_retained: bool,
    resync: Resync,
}

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
    /// Sets of the state file for targets that have no data; the workers inherit them.
    static EXPIRED: RefCell<State> = RefCell::default();
}

/// What the upstreams of a cycle share.
type Parts<'a> = (&'a Upstreams, &'a Arc<Plan>, Table<'static>);

/// The cycle that nginx passes to a hook: its log, and its parts; `None` if no upstream follows
/// Consul.
///
/// # Safety
///
/// nginx has passed it to a running hook, `'a`.
unsafe fn parts<'a>(cycle: *mut ngx_cycle_t) -> (Log<'a>, Option<Parts<'a>>) {
    // SAFETY: a cycle that is passed to hooks has been configured, and is there meanwhile.
    let (log, upstreams) = unsafe { (Log::new((*cycle).log), Upstreams::of_cycle(cycle)) };
    let parts =
        |upstreams: &'a Upstreams| Some((upstreams, upstreams.plan.as_ref()?, upstreams.table()?));
    (log, upstreams.and_then(parts))
}

/// In the master, before it forks: fetches the sets that the zone lacks. Never fails: an error here
/// would end the master, also on a reload.
pub(crate) extern "C" fn ngx_http_consul_init_module(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    catch_panic(OK, || {
        // SAFETY: nginx passes the cycle it has just made.
        let (log, Some((upstreams, plan, table))) = (unsafe { parts(cycle) }) else { return OK };
        // SAFETY: as above, and this is the hook of the master.
        let is_start = !process::is_test() && unsafe { process::is_start(cycle) };
        if is_start {
            signals::hold();
        }
        // SAFETY: that cycle's configuration was read.
        let workers = unsafe { Workers::of(cycle) };
        // SAFETY: nginx calls this in its master, which has no threads: ours are a worker's.
        let single = unsafe { SingleThread::new() };
        permissions::check(plan, &workers, (single, log));
        // SAFETY: nginx passes the cycle it has just made.
        warn_of_idle_connections(upstreams, unsafe { process::free_connections(cycle) }, log);
        if let Some(state) = &upstreams.state_file {
            state_directory::prepare(state, &workers, (single, log));
        }
        // SAFETY: no request is served by the configuration before the master forks.
        unsafe { upstreams.guard() };
        if is_start || process::is_master() {
            let table = upstreams.announce(table);
            fetch((upstreams, plan, table), single, log);
            table.put_in_force();
        }
        // SAFETY: the cycle of a start.
        if is_start && unsafe { process::will_fork(cycle) } {
            signals::pass_on();
        }
        OK
    })
}

/// Idle connections that leave a worker none for requests.
fn warn_of_idle_connections(upstreams: &Upstreams, free: usize, log: Log<'_>) {
    let on_demand = upstreams.on_demand().map(OnDemandUpstream::pattern);
    let idle: usize = upstreams.fixed().chain(on_demand).map(Upstream::idle_connections).sum();
    if idle > free {
        ngx::ngx_log_error!(
            NGX_LOG_WARN,
            log.as_ptr(),
            "consul: \"consul_keepalive\" keeps up to {idle} idle connections in a worker, and \
             \"worker_connections\" leaves {free} for them"
        );
    }
}

/// Fills the zone with the initial sets from Consul and the state file.
fn fetch((upstreams, plan, table): Parts<'_>, single: SingleThread, log: Log<'_>) {
    let opened = upstreams.templates.as_ref().map_or(Ok(()), |_| Channel::open());
    if let Err(e) = opened {
        ngx::ngx_log_error!(
            NGX_LOG_ALERT,
            log.as_ptr(),
            "consul: requests can't name services: no socket pair ({e})"
        );
    }
    let sink = TableWriter::new(table, plan);
    let needed: Vec<usize> =
        (0..plan.targets.len()).filter(|&target| !sink.has_data(target)).collect();
    if !needed.is_empty() {
        initial_fetch::ask((plan, table), &needed, upstreams.init_timeout, (single, &sink));
    }
    let is_new = table.claim_overrides_restore();
    let expired = upstreams
        .state_file
        .as_ref()
        .map(|state| state.restore(plan, upstreams.templates.as_deref(), (&sink, is_new)));
    EXPIRED.set(expired.unwrap_or_default());
    sink.close();
    write_lines(&sink, log);
}

fn write_lines(sink: &TableWriter, log: Log<'_>) {
    sink.take_lines().iter().for_each(|line| log.write(line));
}

pub(crate) extern "C" fn ngx_http_consul_init_process(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    catch_panic(OK, || {
        if process::is_single() {
            signals::release();
        }
        let Some(number) = process::worker() else { return OK };
        // SAFETY: nginx passes the worker's cycle.
        let (log, Some(parts)) = (unsafe { parts(cycle) }) else { return OK };
        let (upstreams, plan, table) = parts;
        table.clear_dead_shards();
        let worker = Worker::new(table);
        if worker.shard().is_none() {
            ngx::ngx_log_error!(
                NGX_LOG_WARN,
                log.as_ptr(),
                "consul: too many old workers are shutting down: until one has ended, this one's \
                 requests are not counted as in flight"
            );
        }
        let watch = (number == 0).then(|| Watch::start(upstreams, plan, table));
        upstreams.fixed().for_each(|upstream| upstream.start(worker));
        upstreams.on_demand().for_each(|upstream| upstream.start(worker));
        RUNNING.set(Some(Running { worker, watch }));
        OK
    })
}

pub(crate) extern "C" fn ngx_http_consul_exit_process(cycle: *mut ngx_cycle_t) {
    catch_panic((), || {
        end_keepalive();
        let Some(running) = RUNNING.take() else { return };
        if let Some(mut watch) = running.watch {
            watch.end();
            // SAFETY: nginx passes the worker's cycle.
            let (log, _) = unsafe { parts(cycle) };
            write_lines(&watch.sink, log);
            watch.sink.close();
        }
        // Requests that the worker has aborted are no longer in flight.
        running.worker.release_shard();
    });
}

/// Makes this worker the leader. `false` if another publisher takes too long: the next tick tries
/// again; or if there is a newer configuration.
fn lead(table: Table<'static>) -> bool {
    let me = ProcessId::own();
    let leads = table.is_leader(me);
    if leads || !table.acquire_leadership(me) {
        return leads;
    }
    let (log, number) = (process::log().as_ptr(), table.configuration());
    ngx::ngx_log_error!(
        NGX_LOG_NOTICE,
        log,
        "consul: this worker follows Consul, configuration {number}"
    );
    true
}

/// Frees the entries that no upstream follows any more; `false` if another publisher takes too
/// long.
fn retain(table: Table<'static>, keys: &[u128], templates: Option<&Templates>) -> bool {
    let templates = templates.map_or_else(Vec::new, Templates::keys);
    table.retain(keys, &templates, ProcessId::own())
}

impl Watch {
    fn start(upstreams: &Upstreams, plan: &Arc<Plan>, table: Table<'static>) -> Watch {
        lead(table);
        let keys: Vec<u128> = (0..plan.targets.len()).map(|target| plan.key(target)).collect();
        let held = table.entries();
        let missing = keys.iter().filter(|&key| !held.contains_key(key)).count();
        if missing > table.free_entries() {
            retain(table, &keys, upstreams.templates.as_deref());
        }
        let mut timer = Timer::new(TICK, tick);
        timer.start();
        let sink = TableWriter::for_threads(table, plan);
        sink.set_listeners(process::listeners());
        let state = upstreams.state_file.as_ref().map(|file| {
            let source = TableState {
                sink: Arc::clone(&sink),
                plan: Arc::clone(plan),
                expired: EXPIRED.take(),
            };
            (file.path.clone(), Arc::new(source))
        });
        let plan = Arc::clone(plan);
        let templates = upstreams.templates.clone();
        let mut watch = Watch {
            plan,
            templates,
            keys,
            watcher: None,
            resolver: None,
            state,
            saver: None,
            sink,
            timer,
            ticks: 0,
            has_led: false,
            has_retained: false,
            resync: Resync::default(),
        };
        watch.start_watcher(table);
        watch.start_saver();
        watch
    }

    /// Starts what does not run yet of the watcher and the resolver of names, in the leader. If no
    /// thread can be started, the next check tries again.
    fn start_watcher(&mut self, table: Table<'static>) {
        if !lead(table) {
            return;
        }
        self.has_led = true;
        if self.watcher.is_none() {
            let (plan, sink) = (Arc::clone(&self.plan), self.sink.clone());
            let start = || Watcher::start_within(plan, sink, Some(process::connections()));
            self.watcher = start_threads("the watch threads", start).map(Arc::new);
        }
        let needed = self.templates.clone().filter(|_| self.resolver.is_none());
        if let Some((templates, watcher)) = needed.zip(self.watcher.clone()) {
            let (plan, sink) = (Arc::clone(&self.plan), self.sink.clone());
            let start = || ServiceResolver::start(templates, plan, sink, watcher);
            self.resolver = start_threads("the threads that look names up", start);
        }
    }

    /// Starts the thread that writes the state file, with `consul_state`.
    fn start_saver(&mut self) {
        if let (None, Some((path, source))) = (&self.saver, &self.state) {
            let start = || Saver::start(path.clone(), source.clone());
            self.saver = start_threads("the thread for consul_state", start);
        }
    }

    /// Runs once a second.
    fn check(&mut self, table: Table<'static>) {
        table.clear_dead_shards();
        self.start_watcher(table);
        self.start_saver();
        end_expired(table, &self.sink);
        let is_due = self.ticks >= RETAIN_TICKS && !self.has_retained;
        if is_due || (self.ticks < RETAIN_TICKS && self.sink.is_short_of_room()) {
            self.has_retained = retain(table, &self.keys, self.templates.as_deref()) && is_due;
        }
    }

    /// Stops the threads without waiting for them: their successors in another worker run, or will.
    fn stop(&mut self) {
        if let Some(watcher) = &self.watcher {
            watcher.stop();
        }
        self.resolver = None;
        if let Some(saver) = &self.saver {
            saver.stop();
        }
    }

    fn end(&mut self) {
        self.timer.stop();
        if let Some(resolver) = self.resolver.take() {
            resolver.join(JOIN);
        }
        if let Some(watcher) = self.watcher.take() {
            watcher.stop();
            watcher.join(JOIN);
        }
        // After the watcher's last change.
        if let Some(saver) = self.saver.take() {
            saver.join(JOIN);
        }
    }
}

/// Starts threads with signals blocked. Logs an error; the caller tries again.
fn start_threads<T>(what: &str, start: impl FnOnce() -> io::Result<T>) -> Option<T> {
    let _blocked = SignalsBlocked::new();
    let started = start();
    if let Err(error) = &started {
        let log = process::log().as_ptr();
        ngx::ngx_log_error!(NGX_LOG_ALERT, log, "consul: can't start {what} ({error})");
    }
    started.ok()
}

/// Worker 0's timer. A panic in one part does not prevent the others.
fn tick() -> bool {
    RUNNING.with_borrow_mut(|running| {
        let Some(Running { worker, watch: Some(watch), .. }) = running else { return false };
        catch_panic((), || write_lines(&watch.sink, process::log()));
        let leads = worker.table.is_leader(ProcessId::own());
        let has_successor = !leads && (watch.has_led || worker.table.is_superseded());
        // The worker may serve its last connections for long; its threads are not needed any more.
        if process::is_exiting() || has_successor {
            watch.stop();
            return false;
        }
        catch_panic((), || watch.resync.ask(worker.table, &watch.sink, watch.watcher.as_deref()));
        watch.ticks = watch.ticks.saturating_add(1);
        if !leads || watch.ticks % CHECK_TICKS == 0 {
            catch_panic((), || watch.check(worker.table));
        }
        true
    })
}
