--- A live session from its settings to its end: `crescent live`.
--
--     local live = require 'models.latentsync.live'
--     local session = live.open { idle = V, checkpoint = DIR, out = 'talk.mp4', audio = 'voice.wav' }
--     local metrics = session:run()
--
-- settings.lua declares the settings, idle.lua prepares the clip, source.lua reads the sound, engine.lua generates
-- frames, output.lua writes them.

local cr = require 'cr'
local engines = require 'models.latentsync.live.engine'
local errors = require 'cr.errors'
local files = require 'cr.files'
local idles = require 'models.latentsync.live.idle'
local jobs = require 'models.latentsync.job'
local makers = require 'models.latentsync.live.maker'
local outputs = require 'models.latentsync.live.output'
local progress_of = require 'cr.tools.progress'
local settings = require 'models.latentsync.live.settings'
local sources = require 'models.latentsync.live.source'

local M = {}

--- @class LiveSession
--- @field settings table
--- @field model LatentSync
--- @field idle Idle
--- @field engine LiveEngine
local Session = {}
Session.__index = Session

-- Checks the settings of a session that reads a sound and writes a video itself.
local function check_ends(s, dash)
  sources.check(s, dash)
  local inputs = { [dash .. 'idle'] = s.idle, [dash .. 'audio'] = s.audio }
  if s.out ~= '-' and not s.out:find '://' then
    files.check_folder(dash .. 'out', s.out)
    files.check_output(s.out, inputs, dash .. 'out')
  end
  if s.report then
    files.check_folder(dash .. 'report', s.report)
    files.check_output(s.report, inputs, dash .. 'report')
  end
end

--- Checks the settings, loads the model and prepares the idle clip. Must be called in a task.
--- @param given table
--- @param options {where: string?, bytes: (fun(bytes: string))?}? where: '--' if messages shall name options of the command
---   line; bytes: receives the video in pieces; sound then comes through session.engine:hear
--- @return LiveSession
function M.open(given, options)
  local o = options or {}
  local dash = o.where == '--' and '--' or ''
  local s = settings.complete(given, o.where)
  if not o.bytes then check_ends(s, dash) end
  local self = setmetatable({ settings = s, bytes = o.bytes, progress = progress_of.new { quiet = s.quiet } }, Session)
  local progress = self.progress
  for _, device in ipairs(s.devices) do
    if device ~= 'cpu' then cr.cuda.prepare(device) end
  end
  self.model = progress:measure('load', 0, jobs.model, s)
  if s.frames_per_window + s.run_in > self.model:max_frames() then
    errors.fail(('%srun-in %d and %d frames per window: this checkpoint takes %d frames together'):format(dash, s.run_in,
      s.frames_per_window, self.model:max_frames()))
  end
  progress:note(('preparing %s'):format(s.idle))
  local idle = jobs.window_options(s, { pause = cr.yield })
  idle.video, idle.duration = s.idle, s.duration
  self.idle = idles.open(self.model, idle)
  progress:clear()
  progress:note(('%d px, %s: %d frames of %s, %d without a face'):format(self.model.size, self.model.device, #self.idle.list, s.idle,
    self.idle.missing))
  local list = { makers.new(self.model, self.idle, s) }
  for i = 2, #s.devices do
    local model = progress:measure('load', 0, jobs.model, s, { device = s.devices[i], number = i })
    list[i] = makers.new(model, self.idle, s)
  end
  self.engine = engines.new {
    model = self.model, makers = list, idle = self.idle, settings = s, write = function(...) return self.output:write(...) end,
  }
  return self
end

--- Shows frames until the sound has ended and all of it was shown, or, with `bytes`, until engine:stop().
--- @return table the result of LiveMetrics:report()
function Session:run()
  local s, engine = self.settings, self.engine
  local output = outputs.open(s, self.idle, self.bytes)
  self.output = output
  local function listen()
    engine:await_start()
    sources.read(s, function(samples, from)
      if not engine:hear(samples, from) then engine:await_room() end
    end, function(sentence) self.progress:note(sentence, true) end)
    engine:stop()
  end
  local ok, problem = pcall(cr.all, { function() engine:run() end, not self.bytes and listen or nil })
  if ok then ok, problem = pcall(output.close, output) end
  if not ok then output:abort() end
  if not ok then error(problem, 0) end
  return engine.metrics:report()
end

--- Frees the idle clip; the model belongs to the caller.
function Session:free()
  self.engine:free()
  self.idle:free()
end

return M
