--- Measures the time of some code, operation by operation.
--
--     local trace = require 'cr.tools.trace'
--     local events = trace.run(function() return model:decode(x, clip) end)
--     print(trace.table(events))
--     trace.write('trace.json', events)      -- for ui.perfetto.dev or chrome://tracing
--
-- Each operation is followed by a synchronization, so its time is its own, on a card, too. Operations that would
-- overlap or run back to back on a card therefore take longer in total than without a trace. Recorded graphs run
-- operation by operation during a trace.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local errors = require 'cr.errors'
local clock = require 'cr.clock'
local files = require 'cr.files'
local order = require 'cr.order'
local tensor = require 'cr.tensor'

local M = {}

-- Names of the operations of one C function, by its second argument.
local kinds = { unary = base.unary, binary = base.binary, binary_scalar = base.binary, reduce = base.reduce }

local views = {
  cr_view = true, cr_permute = true, cr_slice = true, cr_select = true, cr_expand = true, cr_share = true,
  cr_from_memory = true, cr_empty = true,
}
M.views = views -- operations that only make views

--- @class TraceEvent
--- @field name string 'conv2d', 'add', ...
--- @field start number seconds since the trace began
--- @field seconds number
--- @field shape string of the result, '[2 3]'
--- @field inputs string shapes of the inputs
--- @field dtype string?
--- @field device string? 'cpu', 'cuda:0'
--- @field place string? the calling line in a script or network
--- @field device_code integer

local function shape_of(t)
  local parts = {}
  for i = 1, t.rank do parts[i] = t.shape[i - 1] end
  return '[' .. table.concat(parts, ' ') .. ']'
end

local function is_struct(x) return type(x) == 'cdata' and ffi.istype('cr_tensor', x) end

-- Returns the first caller outside the library.
local function caller()
  local level, info = errors.caller(4)
  if not level then return nil end
  local file = info.source:gsub('^[@=]', '')
  if file:sub(1, #base.root + 1) == base.root .. '/' then file = file:sub(#base.root + 2) end
  return file .. ':' .. info.currentline
end

--- Describes a call of an operation.
--- @param name string of the C function; its arguments follow
--- @return TraceEvent without its times
local function described(name, ...)
  local op = name:gsub('^cr_', '')
  local out = ...
  local names = kinds[op]
  local inputs, last = {}, nil
  for i = 2, select('#', ...) do
    local a = select(i, ...)
    if is_struct(a) and a ~= nil then
      inputs[#inputs + 1] = shape_of(a)
      last = a
    end
  end
  local event = { name = names and names[tonumber((select(2, ...)))] or op, inputs = table.concat(inputs, ' ') }
  local t = is_struct(out) and out.storage ~= nil and out or last
  if t then
    event.shape, event.dtype = shape_of(t), base.dtypes[t.dtype]
    event.device = t.device == 0 and 'cpu' or 'cuda:' .. t.device - 1
    event.device_code = t.device
  end
  return event
end
M.describe = described

--- Runs fn(...) and records each operation on tensors. Views are left out.
--- @param fn function
--- @return TraceEvent[] events with the field `seconds`, the total time
--- @return ... what fn returned
function M.run(fn, ...)
  local events, begin = {}, clock()
  local before
  before = base.observe(function(name, f, ...)
    if views[name] then return f(...) end
    local start = clock()
    local rc = f(...)
    local event = described(name, ...)
    local device = event.device_code or name == 'cr_graph_launch' and base.C.CR_CUDA or 0
    if rc >= 0 and device > 0 then
      -- A failure of this synchronization is reported by the next operation.
      base.C.cr_device_synchronize(device)
    end
    event.start, event.seconds, event.place = start - begin, clock() - start, caller()
    events[#events + 1] = event
    return rc
  end)
  local function finish(ok, ...)
    base.observe(before)
    events.seconds = clock() - begin
    if not ok then error((...), 0) end
    return events, ...
  end
  return finish(pcall(fn, ...))
end

--- Runs fn() and passes the result of each operation to `each` at once. It is much slower than `run`, and serves to
--- find the operation that produced a certain number.
--- @param each fun(event: TraceEvent, result: Tensor) the event without its times
--- @param fn function
function M.watch(each, fn)
  local before
  local function watcher(name, f, ...)
    local rc = f(...)
    local out = ...
    if rc < 0 or views[name] or not is_struct(out) or out.storage == nil then return rc end
    local event = described(name, ...)
    event.place = caller()
    base.observe(before) -- operations of `each` itself are not observed
    local ok, problem = pcall(tensor.scope, function()
      local result = tensor.new()
      base.check(base.C.cr_share(result.c, out))
      each(event, result)
    end)
    base.observe(watcher)
    if not ok then error(problem, 0) end
    return rc
  end
  before = base.observe(watcher)
  local ok, problem = pcall(fn)
  base.observe(before)
  if not ok then error(problem, 0) end
end

-- Sums events with the same key to one row, sorted by time, longest first.
local function added_up(events, key_of)
  local rows, by_key = {}, {}
  for _, e in ipairs(events) do
    local key = key_of(e)
    local row = by_key[key]
    if not row then
      row = { key = key, first = e, calls = 0, seconds = 0 }
      by_key[key] = row
      rows[#rows + 1] = row
    end
    row.calls, row.seconds = row.calls + 1, row.seconds + e.seconds
  end
  table.sort(rows, order.most_first('seconds', 'key'))
  return rows
end

local function shapes_of(e)
  return ((e.inputs ~= '' and e.inputs .. ' -> ' or '') .. (e.shape or ''))
end

--- Formats the summed events of a trace, longest first: by operation if there are many kinds, then by operation,
--- dtype and shapes.
--- @param events TraceEvent[]|{seconds: number?}
--- @param options table? {rows = 16 in each part, columns = 120}
--- @return string
function M.table(events, options)
  local o = options or {}
  local most, columns = o.rows or 16, o.columns or 120
  local total = 0
  for _, e in ipairs(events) do total = total + e.seconds end
  local lines = {}
  local function line(text) lines[#lines + 1] = (text:gsub('%s+$', '')) end
  local function part(rows, text_of)
    for i, row in ipairs(rows) do
      if i > most then return line(('  ... %d in all'):format(#rows)) end
      local head = ('  %-18s %5d %9.3f %9.4f %5.1f%%  '):format(row.first.name, row.calls, row.seconds * 1e3,
        row.seconds * 1e3 / row.calls, total > 0 and 100 * row.seconds / total or 0)
      local text, what = text_of(row.first)
      local room = math.max(16, columns - #head - #what)
      if #text > room then text = text:sub(1, math.floor(room / 2) - 2) .. ' .. ' .. text:sub(-(math.ceil(room / 2) - 2)) end
      line(head .. text .. what)
    end
  end
  local function kind(e) return table.concat({ e.name, e.dtype or '', e.device or '', shapes_of(e) }, ' ') end
  local kinds_of, names_of = added_up(events, kind), added_up(events, function(e) return e.name end)
  local head = '  %-18s %5s %9s %9s %6s  %s'
  if #kinds_of > most then
    line(head:format('operation', 'calls', 'ms', 'ms each', 'share', ''))
    part(names_of, function() return '', '' end)
    line ''
  end
  line(head:format('operation', 'calls', 'ms', 'ms each', 'share', 'shapes'))
  part(kinds_of, function(e)
    return shapes_of(e), ' ' .. (e.dtype or '') .. (e.device and e.device ~= 'cpu' and ' ' .. e.device or '')
  end)
  line(('  %d operations, %.3f ms in them, %.3f ms in all'):format(#events, total * 1e3, (events.seconds or total) * 1e3))
  return table.concat(lines, '\n')
end

--- Writes a trace for Perfetto (ui.perfetto.dev) or chrome://tracing, with one row for each device.
--- @param path string
--- @param events TraceEvent[]
function M.write(path, events)
  local list, rows, count = {}, {}, 0
  for _, e in ipairs(events) do
    local device = e.device or 'other'
    if not rows[device] then
      count = count + 1
      rows[device] = count
      list[#list + 1] = { name = 'thread_name', ph = 'M', pid = 1, tid = count, args = { name = device } }
    end
    list[#list + 1] = {
      name = e.name, cat = 'operation', ph = 'X', ts = e.start * 1e6, dur = e.seconds * 1e6, pid = 1, tid = rows[device],
      args = { inputs = e.inputs, result = e.shape, dtype = e.dtype, line = e.place },
    }
  end
  files.write(path, require 'cr.json'.encode { traceEvents = list, displayTimeUnit = 'ms' } .. '\n', 'trace')
end

return M
