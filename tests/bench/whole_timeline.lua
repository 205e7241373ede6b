--- Runs lipsync and prints a timeline: when each part of each window ran, and when the GPU was idle.
--
--     build/crescent tests/bench/whole_timeline.lua FILE OPTIONS OF LIPSYNC      FILE: the timeline, as text
--
-- The library and the script are unchanged; their functions are wrapped here. Each part of the work on the steps'
-- stream (conditions, denoiser, each step, decoding) ends with a marker that records when it was reached. An idle
-- time of the GPU is the time from a marker to the call that submits the next part. The timeline also shows what the
-- Lua thread did: the stages of lipsync's report and the parts that it submitted. A marker costs the GPU about 0.03
-- ms. Work on the other stream during an idle time is not visible here, so the GPU may be idle for less.
--
-- Tiny: OUT/timeline.txt

local now = require 'cr.clock'
local t0 = now()
local PAUSE = 5e-3 -- idle times of at least this length are listed
local LONG = 4e-3 -- activities of the thread of at least this length are listed, before the first step and after the last

local cr = require 'cr'
local media = require 'cr.media'
local progress = require 'cr.tools.progress'
local latentsync = require 'models.latentsync.model'

local path = table.remove(arg, 1) or ''
if not path:find '^[^-]' then require 'cr.tools.cli'.fail(('a file to write is needed first, not %q'):format(path)) end
require 'tests.bench.card' ()

-- ---- activities of the thread -------------------------------------------------------------------

local slices, label, since = {}, 'start', t0
local labels = setmetatable({}, { __mode = 'k' }) -- coroutine -> stack of names

local function turn_to(name)
  local t = now()
  if t - since > 2e-5 then slices[#slices + 1] = { label, since, t } end
  label, since = name, t
end

local function stack()
  local key = coroutine.running() or labels
  local names = labels[key]
  if not names then
    names = {}
    labels[key] = names
  end
  return names
end

local function top(names) return names[#names] or 'script' end

-- Runs fn(...) under a name.
local function named(name, fn, ...)
  local names = stack()
  names[#names + 1] = name
  turn_to(name)
  local function back(ok, ...)
    names[#names] = nil
    turn_to(top(names))
    if not ok then error((...), 0) end
    return ...
  end
  return back(pcall(fn, ...))
end

local function wrap(class, field, around)
  local plain = class[field]
  class[field] = function(...) return around(plain, ...) end
end

wrap(coroutine, 'yield', function(yield, ...)
  turn_to 'loop'
  local function back(...)
    turn_to(top(stack()))
    return ...
  end
  return back(yield(...))
end)

wrap(progress, 'measure', function(plain, self, name, frames, fn, ...)
  return plain(self, name, frames, named, name, fn, ...)
end)

-- ---- the GPU's parts and the windows ------------------------------------------------------------

local pieces, windows, by_clip = {}, {}, setmetatable({}, { __mode = 'k' })
local current, pasted, closed

-- Submits a part of the current window's work to the GPU.
local function give(name, fn, ...)
  local piece = { name = name, window = current, begin = now() }
  local function back(...)
    piece.given = now()
    piece.job = cr.cuda.mark()
    pieces[#pieces + 1] = piece
    return ...
  end
  return back(named('give ' .. name:gsub('%d+', ''), fn, ...))
end

local function once(class, field, around)
  if rawget(class, '_timed_' .. field) then return end
  class['_timed_' .. field] = true
  wrap(class, field, around)
end

local function watch_source(source)
  local class = getmetatable(source).__index
  once(class, 'next', function(plain, self)
    local clip = plain(self)
    if clip then
      local w = { number = #windows + 1, n = clip.n, found = now() }
      windows[#windows + 1], by_clip[clip] = w, w
    end
    return clip
  end)
  return source
end

local function watch_model(model)
  local class = getmetatable(model).__index
  wrap(class, 'condition', function(plain, self, clip)
    current = by_clip[clip]
    current.taken = now()
    return give('conditions', plain, self, clip)
  end)
  wrap(class, 'denoiser', function(plain, ...)
    local d = give('denoiser', plain, ...)
    local predict = d.predict
    function d.predict(self, x, step, ...)
      current.first_given = current.first_given or now()
      local result = { give('step ' .. step, predict, self, x, step, ...) }
      current.last_given = now()
      return unpack(result)
    end
    return d
  end)
  wrap(class, 'decode', function(plain, ...) return give('decoding', plain, ...) end)
  wrap(class, 'paste', function(plain, self, faces, clip, ...)
    pasted = by_clip[clip]
    pasted.paste = now()
    local frames = plain(self, faces, clip, ...)
    pasted.pasted = now()
    return frames
  end)
  return model
end

wrap(require 'models.latentsync.windows', 'open', function(plain, ...) return watch_source(plain(...)) end)
wrap(latentsync, 'load', function(plain, ...) return watch_model(plain(...)) end)

local function watch_writer(sink)
  local class = getmetatable(sink).__index
  once(class, 'write', function(plain, self, ...)
    plain(self, ...)
    if pasted then pasted.written = now() end
  end)
  once(class, 'close', function(plain, ...)
    plain(...)
    closed = now()
  end)
  return sink
end
wrap(media, 'writer', function(plain, ...) return watch_writer(named('open the file to write', plain, ...)) end)
wrap(require 'models.latentsync.face', 'load', function(plain, ...) return named('load face networks', plain, ...) end)

-- ---- output -------------------------------------------------------------------------------------

-- The time at which each part ended: a marker's status is the clock in microseconds, modulo 2^31.
local function resolve()
  for _, piece in ipairs(pieces) do
    local status = cr.await(piece.job)
    if status == 0 then error('this build does not tell when a mark was reached', 0) end
    local t = now()
    piece.done = t - (math.floor(t * 1e6) - status) % 2 ^ 31 * 1e-6
  end
end

-- The activities of the thread between two times: names and seconds, the longest first.
local function doing(from, to)
  local sums, names = {}, {}
  for _, s in ipairs(slices) do
    local part = math.min(s[3], to) - math.max(s[2], from)
    if part > 0 then
      if not sums[s[1]] then names[#names + 1] = s[1] end
      sums[s[1]] = (sums[s[1]] or 0) + part
    end
  end
  table.sort(names, function(a, b) return sums[a] > sums[b] end)
  local parts = {}
  for i = 1, math.min(5, #names) do parts[i] = ('%s %.1f'):format(names[i], sums[names[i]] * 1e3) end
  return table.concat(parts, ', ')
end

local function ms(t) return t and ('%8.0f'):format((t - t0) * 1e3) or '       -' end

-- The thread's activities between two times; neighbours with the same name are merged, short ones are skipped.
local function tell_slices(line, from, to)
  local joined = {}
  for _, s in ipairs(slices) do
    if s[3] > from and s[2] < to then
      local last = joined[#joined]
      if last and last[1] == s[1] and s[2] - last[3] < 1e-3 then
        last[3] = s[3]
      else
        joined[#joined + 1] = { s[1], s[2], s[3] }
      end
    end
  end
  for _, s in ipairs(joined) do
    if s[3] - s[2] >= LONG then line(('  %s %s %8.1f  %s'):format(ms(s[2]), ms(s[3]), (s[3] - s[2]) * 1e3, s[1])) end
  end
end

local function tell()
  turn_to 'end'
  local ending = now()
  cr.run(resolve)
  local file = assert(io.open(path, 'w'))
  local function line(text) file:write(text, '\n') end
  local first, last = pieces[1], pieces[#pieces]

  line 'milliseconds from the start of the script'
  line 'window frames    found    taken  1st given last given  1st done last done  decoded    paste   pasted  written   pauses'
  local before, pauses, total, short = nil, {}, 0, 0
  for _, p in ipairs(pieces) do
    local w = p.window
    local pause = before and math.max(0, p.begin - before) or 0
    w.pauses, total = (w.pauses or 0) + pause, total + pause
    if pause >= PAUSE then pauses[#pauses + 1] = { p, before, pause } else short = short + pause end
    if p.name:find '^step' then
      w.first_done = w.first_done or p.done
      w.last_done = p.done
    elseif p.name == 'decoding' then
      w.decoded = p.done
    end
    before = p.done
  end
  for _, w in ipairs(windows) do
    line(('%6d %6d %s %s   %s   %s  %s  %s %s %s %s %s %8.1f'):format(w.number, w.n, ms(w.found), ms(w.taken),
      ms(w.first_given), ms(w.last_given), ms(w.first_done), ms(w.last_done), ms(w.decoded), ms(w.paste), ms(w.pasted),
      ms(w.written), (w.pauses or 0) * 1e3))
  end
  line(('from the first piece to the last %.2f s, of it pauses %.3f s: %d of %g ms and more, %.3f s in shorter ones'):format(
    last.done - first.begin, total, #pauses, PAUSE * 1e3, short))
  line ''
  line(('pauses of the card of %g ms and more: from, ms, before what; what the thread was at, ms'):format(PAUSE * 1e3))
  for _, pause in ipairs(pauses) do
    local p, from, length = unpack(pause)
    line(('  %s %7.1f  window %d %s: %s'):format(ms(from), length * 1e3, p.window.number, p.name, doing(from, p.begin)))
  end
  line ''
  local step = first
  for _, p in ipairs(pieces) do
    if p.name:find '^step' then
      step = p
      break
    end
  end
  line(('what the thread was at until the first step was given, %g ms and more'):format(LONG * 1e3))
  tell_slices(line, t0, step.given)
  line ''
  line(('and from the end of the last window, %s, to the end, %s (file closed %s)'):format(ms(last.done), ms(ending), ms(closed)))
  tell_slices(line, last.done, ending)
  line ''
  line('all that the thread was at, ms: ' .. doing(t0, ending))
  line(('each step, ms: from the later of its being given and the end of the piece before, to its own end'))
  for _, w in ipairs(windows) do
    local parts, previous = {}, nil
    for _, p in ipairs(pieces) do
      if p.window == w then
        local took = (p.done - math.max(p.begin, previous or 0)) * 1e3
        parts[#parts + 1] = ('%s%.1f'):format(p.name:find '^step' and '' or p.name .. ' ', took)
      end
      previous = p.done
    end
    line(('  window %d: %s'):format(w.number, table.concat(parts, ' ')))
  end
  file:close()
end

dofile(cr.root .. '/scripts/lipsync.lua')
tell()
