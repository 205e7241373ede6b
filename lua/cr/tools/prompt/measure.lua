--- Commands of the prompt that measure: time, memory, a trace of operations.

local errors = require 'cr.errors'
local run = require 'cr.tools.prompt.run'
local values = require 'cr.tools.prompt.values'
local clock = require 'cr.clock'

local M = {}

local SECONDS, MOST_RUNS, LARGEST = 0.5, 1000, 12

local function compiled(code, name)
  if code:find '^%s*$' then errors.fail(name .. ' needs an expression or statement') end
  local chunk, problem = run.compile(code)
  if not chunk then run.complain(problem) end
  return chunk
end

-- Returns the cards that this process already uses, without initializing one.
local function cards()
  local started = false
  for line in io.lines '/proc/self/maps' do
    if line:find('crescent_cuda.so', 1, true) then
      started = true
      break
    end
  end
  local cr, list = require 'cr', {}
  if not started or not cr.cuda.available() then return list end
  for i = 0, cr.cuda.count() - 1 do
    local device = 'cuda:' .. i
    if cr.memory(device).peak > 0 then list[#list + 1] = device end
  end
  return list
end

local function wait_for(list)
  for _, device in ipairs(list) do require 'cr'.cuda.synchronize(device) end
end

local function packed(...) return { n = select('#', ...), ... } end

local function measured(chunk)
  local first_begin = clock()
  local results = packed(chunk())
  local used = cards()
  wait_for(used)
  local first = clock() - first_begin
  local walls, queued = {}, {}
  local begin = clock()
  while first < SECONDS and clock() - begin < SECONDS and #walls < MOST_RUNS do
    results = nil -- luacheck: ignore frees the results of the last run
    local t = clock()
    results = packed(chunk())
    local q = clock()
    wait_for(used)
    walls[#walls + 1], queued[#queued + 1] = clock() - t, q - t
  end
  if #walls == 0 then walls[1], queued[1] = first, first end
  return results, { first = first, walls = walls, queued = queued, used = used }
end

-- Returns the seconds of one run among many that are queued without synchronization: the card's own time, unless
-- queueing takes longer.
local function back_to_back(chunk, used, seconds)
  local n = math.max(2, math.min(MOST_RUNS, math.floor(SECONDS / 2 / seconds)))
  wait_for(used)
  local begin = clock()
  for _ = 1, n do chunk() end
  wait_for(used)
  return (clock() - begin) / n
end

local function median(list)
  local sorted = { unpack(list) }
  table.sort(sorted)
  return sorted[math.floor((#sorted + 1) / 2)], sorted[1], sorted[#sorted]
end

M.time = {
  usage = ':time CODE', help = 'measures the time of CODE over many runs',
  more = [[CODE runs once and, if that takes less than half a second, again for half a second. It shows the
  median, the fastest and the slowest run, each until its results are ready; on a card also the card's
  own time for one run among many, and the time to queue one. An assignment is repeated, too, and its
  last value stays. The value of an expression is `_`.]],
  run = function(_, code)
    local chunk = compiled(code, ':time')
    if not chunk then return end
    local results, m = measured(chunk)
    if results.n > 0 and results[1] ~= nil then rawset(_G, '_', results[1]) end
    local middle, least, most = median(m.walls)
    if #m.walls == 1 then return print(('  %s'):format(values.seconds(middle))) end
    print(('  %s  (fastest %s, slowest %s, first %s; %d runs)'):format(values.seconds(middle), values.seconds(least),
      values.seconds(most), values.seconds(m.first), #m.walls))
    if #m.used > 0 then
      print(('  %s: %s a run back to back; a run is queued after %s'):format(table.concat(m.used, ', '),
        values.seconds(back_to_back(chunk, m.used, middle)), values.seconds((median(m.queued)))))
    end
  end,
}

-- ---- memory -------------------------------------------------------------------------------------

local function device_lines(device)
  local cr = require 'cr'
  local m = cr.memory(device)
  print(('%-8s tensors %s in %d blocks, kept for reuse %s, peak %s'):format(device, values.bytes(m.live), m.count,
    values.bytes(m.cached), values.bytes(m.peak)))
  return m
end

local function print_tags(tags)
  local names = {}
  for name in pairs(tags) do names[#names + 1] = name end
  table.sort(names, function(a, b) return tags[a] > tags[b] end)
  for i, name in ipairs(names) do
    if i > LARGEST then return print(('           ... %d in all'):format(#names)) end
    print(('           %-12s %s'):format(values.bytes(tags[name]), name == '' and 'without a tag' or name))
  end
end

M.mem = {
  usage = ':mem', help = 'shows the memory of tensors, and the lines that made them',
  run = function()
    collectgarbage()
    collectgarbage()
    local list = require 'cr.tools.prompt.origins'.list()
    -- On the CPU memory has no tags, so the file that made a tensor shows its use.
    local files = {}
    for _, block in ipairs(list) do
      if block.tensor.device == 'cpu' then
        local file = block.tag ~= '' and block.tag or block.origin:gsub(':%d+$', '')
        files[file] = (files[file] or 0) + block.bytes
      end
    end
    device_lines 'cpu'
    print_tags(files)
    for _, device in ipairs(cards()) do
      local by_name = {}
      for _, tag in ipairs(device_lines(device).tags) do by_name[tag.name] = tag.live end
      print_tags(by_name)
    end
    print(('%-8s %s'):format('Lua', values.bytes(collectgarbage 'count' * 1024)))
    if #list == 0 then return end
    print 'largest:'
    local rows, by_text = {}, {}
    for _, block in ipairs(list) do
      local t = block.tensor
      local text = ('%10s  %-5s %-7s %-24s %s'):format(values.bytes(block.bytes), t.dtype, t.device,
        '[' .. table.concat(t.shape, ' ') .. ']', block.origin)
      if not by_text[text] then
        by_text[text] = { text = text, count = 0 }
        rows[#rows + 1] = by_text[text]
      end
      by_text[text].count = by_text[text].count + 1
    end
    for i, row in ipairs(rows) do
      if i > LARGEST then
        print(('  ... %d in all'):format(#list))
        break
      end
      print(('  %s%s'):format(row.text, row.count > 1 and ('  (%d of them)'):format(row.count) or ''))
    end
  end,
}

-- ---- trace --------------------------------------------------------------------------------------

M.trace = {
  usage = ':trace CODE', help = 'measures each operation: a table and a trace file',
  more = [[Runs CODE once and synchronizes after each operation to measure it; recorded graphs run
  operation by operation. The trace is written to trace.json in the current folder, or to FILE with
  `:trace -o FILE CODE`; ui.perfetto.dev and chrome://tracing show it.]],
  run = function(_, code)
    local path, rest = code:match '^%-o%s+(%S+)%s+(.*)$'
    local chunk = compiled(rest or code, ':trace')
    if not chunk then return end
    local trace = require 'cr.tools.trace'
    local events, value = trace.run(chunk)
    if value ~= nil then rawset(_G, '_', value) end
    print(trace.table(events, { columns = require 'cr.tools.terminal'.size().columns - 1 }))
    path = path or 'trace.json'
    trace.write(path, events)
    print(('  %s: open it in ui.perfetto.dev'):format(path))
  end,
}

return M
