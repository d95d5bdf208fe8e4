//! Doing what is asked for.

use nginx_consul_core::control::{
    self, Arguments, AskedShown, Body, Frozen, FrozenShown, InstancesShown, LiftedShown,
    OrderShown, Overview, PATHS, Refusal, Route, ServiceShown,
};
use nginx_consul_core::process::ProcessId;
use nginx_consul_core::sync::Level;
use nginx_consul_core::table::orders::{self, order_text};
use nginx_consul_core::table::{Action, NotGiven, Order, Subject};
use nginx_consul_core::text::quote;
use nginx_sys::ngx_log_t;

use super::answer::Answer;
use super::services::{Found, Selection, Services};
use crate::log::Line;
use crate::sink::now_ms;

/// A request, and whom it is from.
pub(super) struct Asked {
    pub(super) services: Services,
    pub(super) arguments: Arguments,
    pub(super) who: String,
    /// The connection's.
    pub(super) log: *mut ngx_log_t,
}

impl Asked {
    pub(super) fn answer(&self, route: &Route, body: &[u8]) -> Result<Answer, Refusal> {
        let body = Body::parse(body)?;
        match route {
            Route::Root => ok(&self.overview()),
            Route::Services => ok(&control::Services { services: self.services.names() }),
            Route::Service(name) => self.service(name),
            Route::Freeze(name) => self.freeze(name, body),
            Route::Thaw(name) => body.is_nothing().and_then(|()| self.thaw(name)),
            Route::Resync(name) => body.is_nothing().and_then(|()| self.resync(name)),
            Route::Instances(name) => ok(&self.instances(name, |_| true)?),
            Route::Instance(name, id) => self.instance(name, id),
            Route::Order(name, id, action) => self.order(name, id, body.action(action)?, body),
            Route::Lift(name, id) => body.is_nothing().and_then(|()| self.lift(name, id)),
        }
    }

    fn selections(&self, name: &str) -> Result<Vec<Selection>, Refusal> {
        self.services.of_name(name, self.arguments.upstream.as_deref())
    }

    fn overview(&self) -> Overview {
        let (table, now) = (self.services.table, now_ms());
        let orders = table.orders();
        let in_force = || orders.iter().filter(|order| order.is_in_force(now));
        let frozen = in_force().filter_map(|order| {
            let Subject::Target(key) = order.subject else { return None };
            let withheld = table.find(key).map(|entry| table.withheld(entry));
            let frozen = Frozen::new(order, withheld.unwrap_or_default());
            Some(FrozenShown { service: order.service.clone(), frozen })
        });
        let overrides = in_force().filter(|order| order.action != Action::Freeze);
        Overview {
            version: 1,
            frozen: frozen.collect(),
            overrides: overrides.map(OrderShown::from).collect(),
            capacity: table.order_capacity(),
            paths: PATHS,
        }
    }

    fn service(&self, name: &str) -> Result<Answer, Refusal> {
        let (table, orders) = (self.services.table, self.services.table.orders());
        let selections = self.selections(name)?;
        let selections = selections.iter().map(|s| s.shown(table, &orders)).collect();
        ok(&ServiceShown { service: name.to_owned(), selections })
    }

    fn instances(
        &self,
        name: &str,
        which: impl Fn(&Found) -> bool,
    ) -> Result<InstancesShown, Refusal> {
        let (table, orders) = (self.services.table, self.services.table.orders());
        let selections = self.selections(name)?;
        let all = selections.iter().flat_map(|s| s.instances(table, &orders));
        let instances = all.filter(which).map(|found| found.shown).collect();
        Ok(InstancesShown { service: name.to_owned(), instances })
    }

    fn is_meant(&self, found: &Found, id: &str) -> bool {
        let shown = &found.shown;
        (shown.id == id || shown.server == id)
            && self.arguments.node.as_ref().is_none_or(|node| *node == shown.node)
    }

    fn instance(&self, name: &str, id: &str) -> Result<Answer, Refusal> {
        let shown = self.instances(name, |found| self.is_meant(found, id))?;
        if shown.instances.is_empty() { Err(no_instance(name, id)) } else { ok(&shown) }
    }

    /// The one instance that is meant, in every selection that it is in.
    fn the_instance(&self, name: &str, id: &str) -> Result<Vec<Found>, Refusal> {
        let table = self.services.table;
        let selections = self.selections(name)?;
        let all = selections.iter().flat_map(|s| s.instances(table, &[]));
        let found: Vec<Found> = all.filter(|found| self.is_meant(found, id)).collect();
        let first = found.first().ok_or_else(|| no_instance(name, id))?;
        // Nodes of several datacenters can have the same names.
        let name = |found: &Found| {
            let shown = &found.shown;
            (shown.datacenter.clone(), shown.node.clone(), shown.id.clone())
        };
        if found.iter().any(|other| name(other) != name(first)) {
            let text = format!(
                "several instances are \"{}\", say which by its address, or with ?node=",
                quote(id)
            );
            return Err(Refusal::new(409, "InstanceAmbiguous", text));
        }
        Ok(found)
    }

    fn freeze(&self, name: &str, body: Body) -> Result<Answer, Refusal> {
        body.without_weight()?;
        let table = self.services.table;
        let selections = self.selections(name)?;
        let has_data = |s: &&Selection| s.entry.is_some_and(|entry| table.has_data(entry));
        let order = |selection: &Selection| {
            self.new_order(Subject::Target(selection.key), Action::Freeze, (name, ""), body)
        };
        let orders: Vec<Order> = selections.iter().filter(has_data).map(order).collect();
        if orders.is_empty() {
            let text = format!("Consul has not answered for service \"{}\" yet", quote(name));
            return Err(Refusal::new(409, "NoData", text));
        }
        self.give(&orders, body)?;
        self.service(name)
    }

    fn thaw(&self, name: &str) -> Result<Answer, Refusal> {
        let selections = self.selections(name)?;
        let service = order_text(name);
        let lifted = self.take_back(|order| {
            let Subject::Target(key) = order.subject else { return false };
            // One that the configuration has no more is the service's too.
            let is_meant = self.arguments.upstream.is_none() && order.service == service;
            is_meant || selections.iter().any(|selection| selection.key == key)
        })?;
        if lifted.is_empty() {
            let text = format!("service \"{}\" is not frozen", quote(name));
            return Err(Refusal::new(409, "NotFrozen", text));
        }
        self.ask_again(&selections);
        self.service(name)
    }

    fn resync(&self, name: &str) -> Result<Answer, Refusal> {
        let asked = self.ask_again(&self.selections(name)?);
        let (service, by) = (quote(name), quote(&self.who));
        self.log(
            Level::Notice,
            format!("service \"{service}\": Consul is asked again for \"{by}\""),
        );
        Ok(Answer { status: 202, ..ok(&AskedShown { service: name.to_owned(), asked })? })
    }

    fn ask_again(&self, selections: &[Selection]) -> usize {
        let entries = selections.iter().filter_map(|selection| selection.entry);
        entries.map(|entry| self.services.table.ask_again(entry)).count()
    }

    fn order(&self, name: &str, id: &str, action: Action, body: Body) -> Result<Answer, Refusal> {
        let upstream = self.upstream();
        let mut orders: Vec<Order> = Vec::new();
        for Found { scope, identity, shown } in self.the_instance(name, id)? {
            let subject = Subject::Instance { scope, upstream, identity };
            // Several selections may have it.
            if orders.iter().all(|order| order.subject != subject) {
                orders.push(self.new_order(subject, action, (name, &shown.id), body));
            }
        }
        self.give(&orders, body)?;
        self.instance(name, id)
    }

    fn lift(&self, name: &str, id: &str) -> Result<Answer, Refusal> {
        // The instance need not be there, nor the service; but if it is, it may go by its address.
        let found = match self.the_instance(name, id) {
            Ok(found) => found,
            Err(refusal) if refusal.status == 404 && self.arguments.node.is_none() => Vec::new(),
            Err(refusal) => return Err(refusal),
        };
        let (service, instance) = (order_text(name), order_text(id));
        let upstream = self.arguments.upstream.as_ref().map(|_| self.upstream());
        let lifted = self.take_back(|order| {
            let Subject::Instance { scope, upstream: of, identity } = order.subject else {
                return false;
            };
            let is_meant = match found.is_empty() {
                true => order.service == service && order.instance == instance,
                false => found.iter().any(|f| (f.scope, f.identity) == (scope, identity)),
            };
            is_meant && upstream.is_none_or(|upstream| upstream == of)
        })?;
        if lifted.is_empty() {
            let (id, name) = (quote(id), quote(name));
            let text = format!("nothing is ordered of instance \"{id}\" of service \"{name}\"");
            return Err(Refusal::new(404, "OverrideNotFound", text));
        }
        let lifted = lifted.iter().map(OrderShown::from).collect();
        ok(&LiftedShown { service: name.to_owned(), lifted })
    }

    fn upstream(&self) -> u64 {
        self.arguments.upstream.as_ref().map_or(0, |name| orders::upstream(name.as_bytes()))
    }

    fn new_order(
        &self,
        subject: Subject,
        action: Action,
        (service, instance): (&str, &str),
        body: Body,
    ) -> Order {
        let now = now_ms();
        let is_narrow = action != Action::Freeze;
        let upstream = self.arguments.upstream.clone().filter(|_| is_narrow);
        Order {
            subject,
            action,
            since_ms: now,
            until_ms: body.expires.map_or(0, |time| now + time.as_millis() as u64),
            service: service.to_owned(),
            instance: instance.to_owned(),
            upstream: upstream.unwrap_or_default(),
            by: self.who.clone(),
        }
    }

    fn give(&self, orders: &[Order], body: Body) -> Result<(), Refusal> {
        let given = self.services.table.give_orders(orders, ProcessId::own());
        given.map_err(|why| match why {
            NotGiven::Full(_) => {
                let text = format!("{why}; lift one, or make \"consul_zone\" larger");
                Refusal::new(507, "TooManyOrders", text)
            }
            NotGiven::Busy => busy(),
        })?;
        self.log_each(orders.iter().map(|order| control::given(order, body.expires)));
        Ok(())
    }

    fn take_back(&self, which: impl Fn(&Order) -> bool) -> Result<Vec<Order>, Refusal> {
        let lifted = self.services.table.lift_orders(which, ProcessId::own());
        let lifted = lifted.ok_or_else(busy)?;
        self.log_each(lifted.iter().map(|order| control::lifted(order, &self.who)));
        Ok(lifted)
    }

    /// What is ordered of several selections of a service is one line.
    fn log_each(&self, lines: impl Iterator<Item = String>) {
        let mut lines: Vec<String> = lines.collect();
        lines.sort_unstable();
        lines.dedup();
        lines.into_iter().for_each(|told| self.log(Level::Notice, told));
    }

    fn log(&self, level: Level, told: String) {
        let line = Line { level, text: told };
        // SAFETY: the log of the request's connection, in the event loop.
        unsafe { line.write(self.log) };
    }
}

fn ok(body: &impl control::Json) -> Result<Answer, Refusal> {
    Ok(Answer { status: 200, body: control::to_json(body) })
}

fn busy() -> Refusal {
    Refusal::new(503, "Busy", "the shared memory is busy, try again")
}

fn no_instance(name: &str, id: &str) -> Refusal {
    let (name, id) = (quote(name), quote(id));
    let text = format!("service \"{name}\" has no instance \"{id}\" now");
    Refusal::new(404, "InstanceNotFound", text)
}
