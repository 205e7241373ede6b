--- Measures the time of each kind of operation of some code on a card, and compares it to the card's limits.
--
--     local profile = require 'cr.tools.profile'
--     local rows = profile.run(function() return denoiser:call(x, 2) end)
--     print(profile.table(rows))
--
-- cr.tools.trace synchronizes after every operation, which hides times of microseconds. Here each kind (operation,
-- dtype and shapes) is measured at its first call: the call is captured many times into a graph, which is replayed,
-- as in a recorded step. One difference to a real step remains: an operand smaller than the L2 cache may still be in
-- it from the previous round.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local clock = require 'cr.clock'
local trace = require 'cr.tools.trace'

local C = base.C

local M = {}

--- The limits of an H200: FLOP/s of its tensor cores with dense float16 (nominal, and what the library's best GEMM
--- reaches) and 8-bit floats, and bytes per second of its memory (what a copy reaches; nominally 4.8e12).
M.limits = { nominal = 989e12, f16 = 726e12, fp8 = 1452e12, memory = 4.25e12 }

--- @class ProfileRow
--- @field name string operation
--- @field inputs string shapes of the inputs
--- @field shape string of the result
--- @field dtype string
--- @field calls integer
--- @field kernels number number of kernels, copies and fills of one call
--- @field each number seconds of one call
--- @field flops number multiplications and additions of one call, 0 for operations without matrix products
--- @field bytes number bytes of operands and result, each counted once
--- @field least number shortest time in seconds that the limits allow
--- @field place string? the line that called first
--- @field apart boolean? whether the call could not be captured

local function is_struct(x) return type(x) == 'cdata' and ffi.istype('cr_tensor', x) and x ~= nil and x.storage ~= nil end

-- Returns the bytes that a view covers; repeated elements count once.
local function reach(t)
  local n = C.cr_dtype_size(t.dtype)
  for i = 0, t.rank - 1 do
    if t.stride[i] ~= 0 then n = n * t.shape[i] end
  end
  return n
end

local function numel(t) return tonumber(C.cr_numel(t)) end

local flops_of = {}
function flops_of.cr_linear(out, _, weight) return 2 * numel(out) * weight.shape[1] end
function flops_of.cr_linear_geglu(out, _, weight) return 4 * numel(out) * weight.shape[1] end
function flops_of.cr_quant_linear(out, x) return 2 * numel(out) * x.shape[x.rank - 1] end
function flops_of.cr_quant_linear_geglu(out, x) return 4 * numel(out) * x.shape[x.rank - 1] end
function flops_of.cr_quant_upsample_conv2d(out, x) return 8 * numel(out) * x.shape[3] end
function flops_of.cr_quant_conv2d(out, x, weight) return 2 * numel(out) * weight.shape[1] * weight.shape[2] * x.shape[3] end
function flops_of.cr_matmul(out, a) return 2 * numel(out) * a.shape[a.rank - 1] end
function flops_of.cr_conv2d(out, _, weight) return 2 * numel(out) * weight.shape[1] * weight.shape[2] * weight.shape[3] end
function flops_of.cr_attention(out, q, k, v)
  local keys = k.shape[k.rank - 2]
  local rows = numel(q) / q.shape[q.rank - 1]
  return 2 * rows * keys * (q.shape[q.rank - 1] + v.shape[v.rank - 1]), out
end

local function work_of(name, ...)
  local bytes = 0
  for i = 1, select('#', ...) do
    local a = select(i, ...)
    if is_struct(a) then bytes = bytes + reach(a) end
  end
  local out, n, xs = ...
  if name == 'cr_cat' or name == 'cr_lincomb' then
    for i = 0, tonumber(n) - 1 do bytes = bytes + reach(xs[i]) end
  end
  return flops_of[name] and flops_of[name](out, select(2, ...)) or 0, bytes
end

-- Returns the seconds of one call and its number of graph nodes, or nil if it cannot be captured.
local function measured(device, seconds, f, ...)
  local graph = ffi.new 'cr_graph *[1]'
  -- The graph runs long enough that its launch does not matter.
  local times = math.max(2, math.min(64, math.ceil(4e-3 / seconds)))
  if C.cr_graph_begin(device) < 0 then return nil end
  for _ = 1, times do
    if f(...) < 0 then
      C.cr_graph_abandon(device)
      return nil
    end
  end
  if C.cr_graph_end(device, graph) < 0 then
    C.cr_graph_abandon(device)
    return nil
  end
  local nodes = tonumber(C.cr_graph_size(graph[0]))
  local rounds = {}
  for i = 1, 4 do
    C.cr_device_synchronize(device)
    local start = clock()
    local rc = C.cr_graph_launch(graph[0])
    C.cr_device_synchronize(device)
    if rc < 0 then break end
    rounds[i] = (clock() - start) / times
  end
  C.cr_graph_free(graph[0])
  if #rounds < 4 then return nil end
  table.remove(rounds, 1) -- the first round uploads the graph to the card
  table.sort(rounds)
  return rounds[1], nodes / times
end

--- Runs fn(...), whose operations must be on a card, and measures each kind of operation.
--- @param fn function
--- @return ProfileRow[] sorted by total time, longest first
--- @return ... the results of fn; they may differ from those of a normal run, since operations that accumulate into
---   their result were repeated
function M.run(fn, ...)
  local rows, by_key = {}, {}
  local before
  before = base.observe(function(name, f, ...)
    if trace.views[name] or name == 'cr_graph_launch' then return f(...) end
    local start = clock()
    local rc = f(...)
    if rc < 0 then return rc end
    local e = trace.describe(name, ...)
    local device = e.device_code or 0
    if device == 0 then return rc end
    C.cr_device_synchronize(device) -- so that the next operation starts on an idle card
    local first = clock() - start
    local key = table.concat({ e.name, e.dtype, e.inputs, e.shape }, ' ')
    local row = by_key[key]
    if not row then
      row = { name = e.name, inputs = e.inputs, shape = e.shape, dtype = e.dtype, calls = 0, place = e.place }
      row.each, row.kernels = measured(device, first, f, ...)
      if not row.each then row.each, row.kernels, row.apart = first, 0, true end
      row.flops, row.bytes = work_of(name, ...)
      row.least = math.max(row.flops / (e.name:match '^quant_' and M.limits.fp8 or M.limits.f16), row.bytes / M.limits.memory)
      by_key[key] = row
      rows[#rows + 1] = row
    end
    row.calls = row.calls + 1
    return rc
  end)
  local function finish(ok, ...)
    base.observe(before)
    if not ok then error((...), 0) end
    table.sort(rows, function(a, b) return a.each * a.calls > b.each * b.calls end)
    return rows, ...
  end
  return finish(pcall(fn, ...))
end

-- Sums rows.
local function total_of(rows)
  local sum = { calls = 0, seconds = 0, kernels = 0, flops = 0, bytes = 0, least = 0 }
  for _, r in ipairs(rows) do
    sum.calls, sum.kernels = sum.calls + r.calls, sum.kernels + r.calls * r.kernels
    sum.seconds, sum.least = sum.seconds + r.calls * r.each, sum.least + r.calls * r.least
    sum.flops, sum.bytes = sum.flops + r.calls * r.flops, sum.bytes + r.calls * r.bytes
  end
  return sum
end
M.total = total_of

local HEAD = '  %-17s %5s %5s %9s %8s %6s %8s %7s %5s %8s  %s'

local function text_of(name, calls, kernels, seconds, flops, bytes, least, whole, lost, what)
  return (HEAD:gsub('%%5s %%5s', '%%5d %%5d', 1)):format(name, calls, kernels, ('%.1f'):format(seconds / calls * 1e6),
    ('%.3f'):format(seconds * 1e3), ('%.1f%%'):format(100 * seconds / whole),
    flops > 0 and ('%.0f'):format(flops / seconds * 1e-12) or '-', ('%.0f'):format(bytes / seconds * 1e-9),
    ('%.0f'):format(100 * least / seconds), ('%.3f'):format(lost * 1e3), what)
end

--- Formats rows as text, first by operation, then by kind. `limit %` is the shortest possible time (by the reachable
--- limits in M.limits) relative to the measured time, `loss ms` their difference.
--- @param rows ProfileRow[]
--- @param options table? {rows = 60}
--- @return string
function M.table(rows, options)
  local most = options and options.rows or 60
  local sum = total_of(rows)
  local lines, by_name, names = {}, {}, {}
  for _, r in ipairs(rows) do
    if not by_name[r.name] then
      by_name[r.name] = {}
      names[#names + 1] = r.name
    end
    table.insert(by_name[r.name], r)
  end
  local function line(...)
    local text = text_of(...):gsub('%s+$', '')
    lines[#lines + 1] = text
  end
  local head = HEAD:format('operation', 'calls', 'nodes', 'us each', 'ms', 'share', 'TFLOP/s', 'GB/s', 'limit', 'loss ms', '')
  lines[1] = head
  local parts = {}
  for i, name in ipairs(names) do parts[i] = { name = name, sum = total_of(by_name[name]) } end
  table.sort(parts, function(a, b) return a.sum.seconds > b.sum.seconds end)
  for _, p in ipairs(parts) do
    local s = p.sum
    line(p.name, s.calls, s.kernels, s.seconds, s.flops, s.bytes, s.least, sum.seconds, s.seconds - s.least, '')
  end
  line('all', sum.calls, sum.kernels, sum.seconds, sum.flops, sum.bytes, sum.least, sum.seconds, sum.seconds - sum.least, '')
  lines[#lines + 1] = ''
  lines[#lines + 1] = head
  local left = { n = 0, seconds = 0 }
  for i, r in ipairs(rows) do
    local seconds = r.calls * r.each
    if i <= most then
      line(r.name, r.calls, r.calls * r.kernels, seconds, r.calls * r.flops, r.calls * r.bytes, r.calls * r.least,
        sum.seconds, seconds - r.calls * r.least,
        ('%s -> %s %s%s'):format(r.inputs, r.shape, r.dtype, r.apart and ' (not captured: includes its launch)' or ''))
    else
      left.n, left.seconds = left.n + 1, left.seconds + seconds
    end
  end
  if left.n > 0 then lines[#lines + 1] = ('  ... %d more kinds, %.3f ms'):format(left.n, left.seconds * 1e3) end
  return table.concat(lines, '\n')
end

return M
