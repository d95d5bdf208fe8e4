//! The metrics: their names, types and help.

/// A metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Info,
    ZoneSize,
    ZoneUsed,
    Connections,
    ConnectionsMax,
    StateWritten,
    StateError,
    Usable,
    TierInUse,
    TierPeers,
    TierUsable,
    Panic,
    Index,
    Generation,
    LastGood,
    LastChange,
    Source,
    ChangeDelay,
    Failures,
    Backoff,
    Refusals,
    Pending,
    ZoneFull,
    ServicePeers,
    ServiceInFlight,
    NamedMax,
    PeerInfo,
    PeerState,
    PeerPicks,
    PeerFails,
    PeerInFlight,
    PeerWeight,
    PeerEffectiveWeight,
    PeerLatency,
    PeerConnections,
    PeerOpened,
    PeerReused,
}

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Gauge,
    Counter,
}

impl Kind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        }
    }
}

impl Family {
    /// How many there are.
    pub(super) const COUNT: usize = Family::PeerReused as usize + 1;

    /// All, in the order of the answer.
    #[cfg(test)]
    pub(super) const ALL: [Family; Family::COUNT] = [
        Family::Info,
        Family::ZoneSize,
        Family::ZoneUsed,
        Family::Connections,
        Family::ConnectionsMax,
        Family::StateWritten,
        Family::StateError,
        Family::Usable,
        Family::TierInUse,
        Family::TierPeers,
        Family::TierUsable,
        Family::Panic,
        Family::Index,
        Family::Generation,
        Family::LastGood,
        Family::LastChange,
        Family::Source,
        Family::ChangeDelay,
        Family::Failures,
        Family::Backoff,
        Family::Refusals,
        Family::Pending,
        Family::ZoneFull,
        Family::ServicePeers,
        Family::ServiceInFlight,
        Family::NamedMax,
        Family::PeerInfo,
        Family::PeerState,
        Family::PeerPicks,
        Family::PeerFails,
        Family::PeerInFlight,
        Family::PeerWeight,
        Family::PeerEffectiveWeight,
        Family::PeerLatency,
        Family::PeerConnections,
        Family::PeerOpened,
        Family::PeerReused,
    ];

    /// Name, type and help.
    pub(super) fn describe(self) -> (&'static str, Kind, &'static str) {
        use Kind::{Counter, Gauge};
        match self {
            Family::Info => {
                ("nginx_consul_info", Gauge, "Versions of the module and of nginx; always 1.")
            }
            Family::ZoneSize => {
                ("nginx_consul_zone_size_bytes", Gauge, "Size of the shared zone, consul_zone.")
            }
            Family::ZoneUsed => {
                ("nginx_consul_zone_used_bytes", Gauge, "Bytes of the shared zone in use.")
            }
            Family::Connections => (
                "nginx_consul_connections",
                Gauge,
                "Connections to Consul, those that Consul still counts included.",
            ),
            Family::ConnectionsMax => (
                "nginx_consul_connections_max",
                Gauge,
                "Most connections to Consul, consul_connections.",
            ),
            Family::StateWritten => (
                "nginx_consul_state_file_written_timestamp_seconds",
                Gauge,
                "When the state file was last written.",
            ),
            Family::StateError => {
                ("nginx_consul_state_file_error", Gauge, "1 while the state file can't be written.")
            }
            Family::Usable => (
                "nginx_consul_upstream_usable",
                Gauge,
                "1 if a request to the upstream block finds a peer or a server line to go to.",
            ),
            Family::TierInUse => (
                "nginx_consul_upstream_tier_in_use",
                Gauge,
                "1 for the tier that requests go to now.",
            ),
            Family::TierPeers => ("nginx_consul_upstream_tier_peers", Gauge, "Peers of a tier."),
            Family::TierUsable => (
                "nginx_consul_upstream_tier_usable_peers",
                Gauge,
                "Peers of a tier that could take a request now.",
            ),
            Family::Panic => (
                "nginx_consul_upstream_panic",
                Gauge,
                "1 while so many peers have failed that failures keep nobody out, consul_panic.",
            ),
            Family::Index => {
                ("nginx_consul_service_index", Gauge, "X-Consul-Index of the last good answer.")
            }
            Family::Generation => {
                ("nginx_consul_service_generation", Gauge, "Moves with every change of the peers.")
            }
            Family::LastGood => (
                "nginx_consul_service_last_good_timestamp_seconds",
                Gauge,
                "When the last good answer came.",
            ),
            Family::LastChange => (
                "nginx_consul_service_last_change_timestamp_seconds",
                Gauge,
                "When the peers last changed.",
            ),
            Family::Source => (
                "nginx_consul_service_source",
                Gauge,
                "1 for where the peers come from: live, zone, state_file or none.",
            ),
            Family::ChangeDelay => (
                "nginx_consul_service_change_delay_seconds",
                Gauge,
                "Longest expected time until a change is seen; 0 with a blocking query.",
            ),
            Family::Failures => {
                ("nginx_consul_service_failures", Gauge, "Failed queries in a row.")
            }
            Family::Backoff => (
                "nginx_consul_service_backoff_seconds",
                Gauge,
                "Time until Consul is asked again after a failure.",
            ),
            Family::Refusals => (
                "nginx_consul_service_refusals_total",
                Counter,
                "Answers that changed nothing, by reason.",
            ),
            Family::Pending => (
                "nginx_consul_service_pending_removals",
                Gauge,
                "Peers whose removal waits to be confirmed.",
            ),
            Family::ZoneFull => (
                "nginx_consul_service_zone_full",
                Gauge,
                "1 while the last good answer is not in force because the zone has no room.",
            ),
            Family::ServicePeers => ("nginx_consul_service_peers", Gauge, "Peers by state."),
            Family::ServiceInFlight => (
                "nginx_consul_service_in_flight",
                Gauge,
                "Requests with the peers of the service now, over all workers.",
            ),
            Family::NamedMax => (
                "nginx_consul_named_services_max",
                Gauge,
                "Most services that requests may name, consul_max_services.",
            ),
            Family::PeerInfo => {
                ("nginx_consul_peer_info", Gauge, "Node and service id of a peer; always 1.")
            }
            Family::PeerState => ("nginx_consul_peer_state", Gauge, "1 for the state of the peer."),
            Family::PeerPicks => {
                ("nginx_consul_peer_picks_total", Counter, "Times the peer was picked.")
            }
            Family::PeerFails => ("nginx_consul_peer_fails_total", Counter, "Failed attempts."),
            Family::PeerInFlight => (
                "nginx_consul_peer_in_flight",
                Gauge,
                "Requests with the peer now, over all workers.",
            ),
            Family::PeerWeight => ("nginx_consul_peer_weight", Gauge, "Weight wanted."),
            Family::PeerEffectiveWeight => {
                ("nginx_consul_peer_effective_weight", Gauge, "Weight in effect.")
            }
            Family::PeerLatency => (
                "nginx_consul_peer_latency_seconds",
                Gauge,
                "Mean time to the response header, with least_time.",
            ),
            Family::PeerConnections => (
                "nginx_consul_peer_connections",
                Gauge,
                "Connections to the peer, idle and active, with consul_keepalive.",
            ),
            Family::PeerOpened => (
                "nginx_consul_peer_connections_opened_total",
                Counter,
                "Connections that were opened to the peer, with consul_keepalive.",
            ),
            Family::PeerReused => (
                "nginx_consul_peer_connections_reused_total",
                Counter,
                "Requests over a connection that was idle, with consul_keepalive.",
            ),
        }
    }
}
