--- Metrics of a server, in the text format of Prometheus.
--
--     local metrics = require 'cr.serve.metrics'.new()
--     local asked = metrics:counter('crescent_requests_total', 'Requests.', { 'operation', 'status' })
--     asked:add(1, 'getJob', 200)
--     metrics:gauge('crescent_queue', 'Jobs that wait.', {}, function(set) set(#queue) end)   -- read when metrics are requested
--     metrics:text()

local M = {}

--- @class Metrics
local Metrics = {}
Metrics.__index = Metrics

--- @class Metric
--- @field values table<string, number> by labels
local Metric = {}
Metric.__index = Metric

local function escaped(text) return (tostring(text):gsub('[\\"\n]', { ['\\'] = '\\\\', ['"'] = '\\"', ['\n'] = '\\n' })) end

local function series(self, values)
  local parts = {}
  for i, name in ipairs(self.labels) do parts[i] = ('%s="%s"'):format(name, escaped(values[i])) end
  return #parts > 0 and self.name .. '{' .. table.concat(parts, ',') .. '}' or self.name
end

--- Adds to the value for some labels.
--- @param n number
function Metric:add(n, ...)
  local key = series(self, { ... })
  self.values[key] = (self.values[key] or 0) + n
end

--- Sets the value for some labels.
--- @param n number
function Metric:set(n, ...) self.values[series(self, { ... })] = n end

local function declare(self, kind, name, help, labels, ask)
  local metric = setmetatable({ kind = kind, name = name, help = help, labels = labels or {}, ask = ask, values = {} }, Metric)
  if #metric.labels == 0 and not ask then metric.values[name] = 0 end
  self[#self + 1] = metric
  return metric
end

--- Declares a counter, which only increases.
--- @param name string
--- @param help string
--- @param labels string[]?
--- @return Metric
function Metrics:counter(name, help, labels) return declare(self, 'counter', name, help, labels) end

--- Declares a gauge, which increases and decreases.
--- @param ask fun(set: fun(n: number, ...))? reports the values when metrics are requested
--- @return Metric
function Metrics:gauge(name, help, labels, ask) return declare(self, 'gauge', name, help, labels, ask) end

--- Returns all metrics as text.
--- @return string
function Metrics:text()
  local lines = {}
  for _, metric in ipairs(self) do
    if metric.ask then
      metric.values = {}
      metric.ask(function(...) metric:set(...) end)
    end
    lines[#lines + 1] = ('# HELP %s %s'):format(metric.name, metric.help)
    lines[#lines + 1] = ('# TYPE %s %s'):format(metric.name, metric.kind)
    local keys = {}
    for key in pairs(metric.values) do keys[#keys + 1] = key end
    table.sort(keys)
    for _, key in ipairs(keys) do lines[#lines + 1] = ('%s %.17g'):format(key, metric.values[key]) end
  end
  return table.concat(lines, '\n') .. '\n'
end

--- @return Metrics
function M.new() return setmetatable({}, Metrics) end

return M
