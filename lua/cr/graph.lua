--- cr.graph(fn): records what a function does on a card once, and replays it with new inputs.
--
-- The first call with tensors of certain shapes runs fn normally, while libraries choose their algorithms. The second
-- call records it as a CUDA graph. Later calls only copy the inputs in, launch the graph, and copy the results out.
-- Other shapes, another stream, or other values of arguments that are not tensors, get a recording of their own; the
-- least recently used recording is dropped. A function that cannot be recorded runs normally, and why() returns the
-- reason. On the CPU, fn is simply called.
--
-- fn must do the same work whenever it is called with the same kinds of arguments. Tensors that it reads besides its
-- arguments are read with their contents at the time of each replay.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local C = base.C
local is_tensor = tensor.is_tensor

--- @class Graph
--- @field fn function what is recorded
local Graph = {}
Graph.__index = Graph

local LIMIT = 8 -- recordings kept

--- @param fn fun(...): ... takes tensors and plain values, and returns one or several results
--- @param options table? {limit = 8 recordings kept, direct = true: the results of a replay are the
---   recording's own tensors, which the next replay overwrites}
--- @return Graph callable like fn; :why(), :free()
local function new(fn, options)
  options = options or {}
  return setmetatable({ fn = fn, entries = {}, clock = 0, limit = options.limit or LIMIT, direct = options.direct }, Graph)
end

-- Returns the key by which recordings differ, and the card that the arguments are on (0: none).
local function key_of(...)
  local parts, device = {}, 0
  for i = 1, select('#', ...) do
    local v = select(i, ...)
    if is_tensor(v) then
      if v.c.storage == nil then base.fail(('graph: argument %d has been freed'):format(i)) end
      device = math.max(device, v.c.device)
      parts[i] = v.dtype .. v.device .. tensor.shape_text(v)
    else
      parts[i] = type(v) .. ':' .. tostring(v)
    end
  end
  if device ~= C.CR_CPU then parts[#parts + 1] = 'stream ' .. C.cr_device_stream(-1) end -- a recording belongs to one stream
  return table.concat(parts, ';'), device
end

local function free_entry(entry)
  if entry.graph then C.cr_graph_free(ffi.gc(entry.graph, nil)) end
  for _, t in pairs(entry.inputs or {}) do t:free() end
  for _, t in ipairs(entry.owned or {}) do t:free() end
  entry.graph, entry.inputs, entry.outputs, entry.owned = nil, nil, nil, nil
end

local function evict(self)
  local count, oldest, key = 0, math.huge, nil
  for k, entry in pairs(self.entries) do
    count = count + 1
    if entry.used < oldest then oldest, key = entry.used, k end
  end
  if count > self.limit then
    free_entry(self.entries[key])
    self.entries[key] = nil
  end
end

local function pack(...) return { n = select('#', ...), ... } end

local function dense(t)
  local out = tensor.empty(t.shape, { dtype = t.dtype, device = t.device })
  return out:copy_(t)
end

-- Copies a result and all its tensors, in nested tables too. `seen` holds the copies of tables.
local function copied(v, seen)
  if is_tensor(v) then return dense(v) end
  if type(v) ~= 'table' then return v end
  seen = seen or {}
  if seen[v] then return seen[v] end
  local out = {}
  seen[v] = out
  for k, w in pairs(v) do out[k] = copied(w, seen) end
  return out
end

-- Runs fn, copies its results and frees all other tensors that it made. The copies are needed because a result may be
-- an argument or a tensor that fn did not make. `between` runs before the copies are made.
local function own_results(fn, between, ...)
  local given = pack(...)
  return tensor.scope(function()
    local made = pack(fn(unpack(given, 1, given.n)))
    between()
    for i = 1, made.n do made[i] = copied(made[i]) end
    return unpack(made, 1, made.n)
  end)
end

local function nothing() end

-- Runs fn on copies of the inputs under stream capture. Returns false and the reason if that fails.
local function record(self, entry, device, ...)
  local n = select('#', ...)
  local given = { ... }
  local inputs = {}
  local graph = ffi.new 'cr_graph *[1]'
  base.check(C.cr_memory_trim(device)) -- frees the cached memory of the first run, so that both do not add up
  for i = 1, n do
    if is_tensor(given[i]) then
      inputs[i] = tensor.keep(dense(given[i]))
      given[i] = inputs[i]
    end
  end
  base.check(C.cr_graph_begin(device))
  base.recording = true
  local results
  local ok, err = pcall(function()
    results = pack(own_results(self.fn, nothing, unpack(given, 1, n)))
  end)
  base.recording = false
  if ok and C.cr_graph_end(device, graph) < 0 then ok, err = false, ffi.string(C.cr_last_error()) end
  if not ok then
    C.cr_graph_abandon(device)
    for _, t in pairs(inputs) do t:free() end
    if C.cr_interrupted() ~= 0 then error(err, 0) end
    return false, (tostring(err):gsub('^graph: ', ''))
  end
  entry.graph = ffi.gc(graph[0], C.cr_graph_free)
  entry.inputs, entry.outputs = inputs, results
  entry.owned = tensor.tensors_of(unpack(results, 1, results.n))
  tensor.keep(unpack(entry.owned))
  return true
end

local function replay(self, entry, ...)
  for i, t in pairs(entry.inputs) do t:copy_((select(i, ...))) end
  if C.cr_graph_launch(entry.graph) < 0 then base.raise() end
  local results = entry.outputs
  if self.direct then return unpack(results, 1, results.n) end
  local out = {}
  for i = 1, results.n do out[i] = copied(results[i]) end
  return unpack(out, 1, results.n)
end

-- Makes the first run in the memory pool that recordings share, so that the memory is not needed twice. Its results
-- must be copied out of that pool, since the next replay of any recording may overwrite them.
local function rehearse(self, device, ...)
  local function over() C.cr_graph_rehearse(device, 0) end
  base.check(C.cr_graph_rehearse(device, 1))
  base.recording = true -- the replay of a nested recording would overwrite this run's tensors in the pool
  local results = pack(pcall(own_results, self.fn, over, ...))
  base.recording = false
  over()
  if not results[1] then error(results[2], 0) end
  return unpack(results, 2, results.n)
end

function Graph:__call(...)
  if base.recording then return self.fn(...) end -- part of the outer recording
  if base.observed then return self.fn(...) end -- an observer must see each operation
  local key, device = key_of(...)
  if device == 0 then return self.fn(...) end
  self.clock = self.clock + 1
  local entry = self.entries[key]
  if not entry then
    self.entries[key] = { used = self.clock }
    evict(self)
    return rehearse(self, device, ...)
  end
  entry.used = self.clock
  if entry.reason then return self.fn(...) end
  if not entry.graph then
    local ok, reason = record(self, entry, device, ...)
    if not ok then
      entry.reason, self.reason = reason, reason
      return self.fn(...)
    end
  end
  return replay(self, entry, ...)
end

--- Returns why the function is not replayed but runs normally, or nil.
function Graph:why() return self.reason end

--- Returns the number of recordings.
function Graph:count()
  local n = 0
  for _, entry in pairs(self.entries) do n = n + (entry.graph and 1 or 0) end
  return n
end

--- Returns the number of kernels, copies and fills of all recordings together.
function Graph:size()
  local n = 0
  for _, entry in pairs(self.entries) do
    if entry.graph then n = n + tonumber(base.check(C.cr_graph_size(entry.graph))) end
  end
  return n
end

--- Frees the recordings and their memory; calling the graph again records anew.
function Graph:free()
  for _, entry in pairs(self.entries) do free_entry(entry) end
  self.entries = {}
end

arguments.methods(Graph, 'graph', { why = {}, count = {}, size = {}, free = {} })

return arguments.guard('', { new = new }, {
  new = { arguments.callable, arguments.maybe(arguments.options {
    limit = arguments.maybe(arguments.positive), direct = arguments.maybe(arguments.boolean),
  }), name = 'graph' },
})
