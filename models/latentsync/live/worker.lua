--- The process that runs live sessions for a server, one after another (lua/cr/serve/process.lua). The model stays
--- loaded between sessions.
--
-- It receives {op, session = number}: 'open' {settings}, 'run', 'sound' {data (base64), form (of media.pcm)},
-- 'finish', 'flush', 'metrics', 'end' (when everything is shown), 'stop' (at once). It sends {event, session}:
-- 'ready' {width, height}, 'video' {data (base64 of MP4)}, 'flushed' {seconds (presentation time in the video from
-- which on the dropped sound is gone)}, 'metrics' {metrics}, 'full' (the queue of sound is full), and, once for each
-- session that was opened or told to stop, 'ended' {metrics} or 'failed' {detail}.

local base64 = require 'cr.base64'
local cr = require 'cr'
local errors = require 'cr.errors'
local live = require 'models.latentsync.live'

local EVERY = 1 -- seconds between metrics that are sent unasked

local function sentence(problem) return errors.is_failure(problem) and problem.message or tostring(problem) end

return function(parent)
  local now -- the current session: {number, live: LiveSession, runs: boolean}
  local model, ops = nil, {} -- luacheck: no unused (the model is kept for the next session)

  local function tell(own, event, more)
    more = more or {}
    more.event, more.session = event, own.number
    parent.tell(more)
  end

  -- Reports the end of a session, once.
  local function over(own, event, more)
    if own.over then return end
    own.over = true
    if own.live then own.live:free() end
    if now == own then now = nil end
    tell(own, event, more)
  end

  function ops.open(own, message)
    own.live = live.open(message.settings, { bytes = function(bytes) tell(own, 'video', { data = base64.encode(bytes) }) end })
    own.live.engine.on_flushed = function(seconds) tell(own, 'flushed', { seconds = seconds }) end
    model = own.live.model
    tell(own, 'ready', { width = own.live.idle.width, height = own.live.idle.height })
  end

  local function report(own) tell(own, 'metrics', { metrics = own.live.engine.metrics:report() }) end

  function ops.run(own)
    own.runs = true
    cr.go(function()
      local ok, result = pcall(own.live.run, own.live)
      if ok then over(own, 'ended', { metrics = result }) else over(own, 'failed', { detail = sentence(result) }) end
    end)
    cr.go(function()
      cr.sleep(EVERY)
      while not own.over do
        report(own)
        cr.sleep(EVERY)
      end
    end)
  end

  function ops.sound(own, message)
    if not own.live.engine:hear(base64.decode(message.data), message.form) then tell(own, 'full') end
  end

  function ops.finish(own) own.live.engine:finish() end
  function ops.flush(own) own.live.engine:flush() end
  ops.metrics = report
  ops['end'] = function(own) own.live.engine:stop() end

  function ops.stop(own)
    if not own.runs then return over(own, 'ended') end
    own.live.engine:flush()
    own.live.engine:stop()
  end

  for message in parent.messages do
    local own = now
    if message.op == 'open' or message.op == 'stop' and not (own and own.number == message.session) then
      own = { number = message.session }
      if message.op == 'open' then now = own end
    end
    if own and own.number == message.session then
      local ok, problem = pcall(ops[message.op], own, message)
      if not ok then over(own, 'failed', { detail = sentence(problem) }) end
    end
  end
end
