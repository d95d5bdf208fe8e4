-- The well-known recipe for Consul in front of nginx, as a module: a first fetch before the workers
-- start, a timer in worker 0, a shared dictionary, and a random pick for each request.
local balancer = require "ngx.balancer"
local cjson = require "cjson"
local http = require "socket.http"

local M = {}
local url, interval

local function fetch()
    local body, code = http.request(url)
    if code ~= 200 then
        return ngx.log(ngx.ERR, "consul: ", code)
    end
    local servers = {}
    for i, entry in ipairs(cjson.decode(body)) do
        local service = entry.Service
        servers[i] = { address = service.Address, port = service.Port }
    end
    ngx.shared.consul:set("servers", cjson.encode(servers))
    ngx.shared.consul:incr("version", 1, 0)
end

function M.start(from, seconds)
    url, interval = from, seconds
    fetch()
end

function M.start_worker()
    if ngx.worker.id() == 0 then
        ngx.timer.every(interval, fetch)
    end
end

local function connect(servers)
    local server = servers[math.random(#servers)]
    assert(balancer.set_current_peer(server.address, server.port))
end

function M.pick_decoding()
    connect(cjson.decode(ngx.shared.consul:get("servers")))
end

local version, kept

function M.pick_cached()
    local now = ngx.shared.consul:get("version")
    if now ~= version then
        version, kept = now, cjson.decode(ngx.shared.consul:get("servers"))
    end
    connect(kept)
end

return M
