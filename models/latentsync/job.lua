--- The engine: one lip-sync job, from its settings to its finished file.
--
--     local job = require 'models.latentsync.job'.new { video = V, audio = A, out = OUT, checkpoint = DIR }
--     local result = job:run()
--
-- A job consists of a source (models/latentsync/windows.lua), stages (models/latentsync/stages) and a sink
-- (models/latentsync/sink.lua), which models/latentsync/flow.lua joins. Its settings (models/latentsync/settings.lua)
-- select among them. The command `lipsync`, sessions and comparisons all use this engine.
--
-- Invariants: invalid settings are reported before a model is loaded and before anything is written. A job that fails
-- or is cancelled leaves no output and nothing open.

local cr = require 'cr'
local arguments = require 'cr.arguments'
local cards = require 'models.latentsync.cards'
local checkpoint = require 'models.latentsync.checkpoint'
local clock = require 'cr.clock'
local diagnosis = require 'models.latentsync.diagnosis'
local errors = require 'cr.errors'
local files = require 'cr.files'
local finder = require 'models.latentsync.finder'
local flow = require 'models.latentsync.flow'
local progress_of = require 'cr.tools.progress'
local samplers = require 'models.latentsync.sampler'
local settings = require 'models.latentsync.settings'
local sinks = require 'models.latentsync.sink'
local stages = require 'models.latentsync.stages'
local windows = require 'models.latentsync.windows'

local M = {}

--- @class Job
--- @field settings table all settings with their values
--- @field sampler Sampler
--- @field progress Progress
--- @field stages Stage[] a script may add its own before run()
--- @field model LatentSync? nil until it is loaded
local Job = {}
Job.__index = Job

-- ---- settings ------------------------------------------------------------------------------------

-- Input files must exist, and so must the folders of output files.
local function check_files(s, dash)
  local inputs, outputs = {}, {}
  for _, row in ipairs(settings.schema.rows) do
    local value = s[row[1]]
    local option = dash .. row[1]:gsub('_', '-')
    if type(value) == 'string' then
      if row[2] == 'input' then
        files.check_readable(option, value)
        inputs[option] = value
      elseif row[2] == 'output' then
        files.check_folder(option, value)
        outputs[#outputs + 1] = { option, value }
      elseif row[2] == 'folder' then
        inputs[option] = checkpoint.files(value)
      end
    end
  end
  for _, voice in ipairs(settings.voices(s)) do
    if voice.option == 'voice' then
      files.check_readable(dash .. 'voice', voice.path)
      inputs[('%svoice %s'):format(dash, voice.face)] = voice.path
    end
  end
  for i, output in ipairs(outputs) do
    files.check_output(output[2], inputs, output[1])
    for k = 1, i - 1 do
      if output[2] == outputs[k][2] then
        errors.fail(('%s: %s is also the output of %s: choose another name'):format(output[1], output[2], outputs[k][1]))
      end
    end
  end
  if s.dump_latents then cr.check_save(s.dump_latents, true) end
  if s.lossless and s.out and not s.out:find '%.mkv$' then
    errors.fail(('%sout: %s: --lossless writes Matroska, so the name must end in .mkv'):format(dash, s.out))
  end
end

-- Returns the stream information of the video.
local function check_streams(s)
  local media = require 'cr.media'
  local info = media.probe(s.video)
  if not info.has_video then errors.fail(s.video .. ' has no video stream') end
  local sounds = { s.sound }
  for _, voice in ipairs(settings.voices(s)) do sounds[#sounds + 1] = voice.path end
  for _, path in ipairs(sounds) do
    if not media.probe(path).has_audio then errors.fail(path .. ' has no audio stream') end
  end
  return info
end

-- The quantization recipe; nil if nothing is to be quantized.
local function recipe_of(s, dash)
  if not s.quant or s.quant == 'none' then return nil end
  local recipes = require 'models.quantize.recipe'
  local ok, found = pcall(type(s.quant) == 'string' and recipes.named or recipes.checked, s.quant, 'quant')
  if not ok then errors.fail(('%squant: %s'):format(dash, found)) end
  return found
end

local function check_card(s, dash)
  local list, problem = require 'models.latentsync.card'.read(s.card)
  if not problem and #list > 0 and s.device == 'cpu' then problem = 'these options exist only on a GPU' end
  if problem then errors.fail(('%scard: %s'):format(dash, problem)) end
end

--- Completes settings from the checkpoint, and checks those of the stage 'load'.
--- @param s table from settings.resolve; modified in place
--- @param dash string prefix of setting names in messages: '--' or ''
function M.of_checkpoint(s, dash)
  local model = type(s.checkpoint) == 'table' and s.checkpoint
  local sampling = model and model.sampling
  if not model then sampling = select(3, checkpoint.unet(s.checkpoint)) end
  settings.of_model(s, sampling, checkpoint.scheduler(model and model.dir or s.checkpoint))
  local linked = s.part and require 'models.latentsync.part'.problem(s, s.part.near)
  if linked then errors.fail(('%spart: a film cannot be split with %s%s'):format(dash, dash, linked)) end
  s.recipe = recipe_of(s, dash)
  check_card(s, dash)
  finder.check(s.detector, model and model.dir or s.checkpoint)
end

--- A job's settings, checked and completed from the checkpoint's configuration.
--- @param given table checked by settings.check
--- @param where string? '--' if messages shall name options of the command line
--- @param several boolean? several GPUs may be used
--- @return table
function M.settings(given, where, several)
  local dash = where == '--' and '--' or ''
  settings.check_voices(given, dash)
  check_files(given, dash)
  local model = type(given.checkpoint) == 'table' and given.checkpoint
  local s = settings.resolve(given, where, model, several)
  if s.device ~= 'cpu' then cr.cuda.prepare(s.device) end -- runs while files are checked and read
  if #s.devices > 1 and type(s.scheduler) == 'table' then
    errors.fail(('%sscheduler: several GPUs need the scheduler by name or file, so that each has its own'):format(dash))
  end
  M.of_checkpoint(s, dash)
  if s.fps == 'source' and s.length == 'reference' then
    errors.fail(("%sfps source: %slength reference counts at 25 frames per second: use one of the two"):format(dash, dash))
  end
  s.video_info = check_streams(s)
  return s
end

-- ---- the model -----------------------------------------------------------------------------------

local loaded = setmetatable({}, { __mode = 'v' }) -- so that a second job with the same model loads nothing

--- The model that settings describe, newly loaded or from an earlier job.
--- @param s table from M.settings
--- @param beside {device: string, number: integer}? for a further model on another device, which only generates windows: it is
---   copied from the first one
--- @return LatentSync
function M.model(s, beside)
  if type(s.checkpoint) == 'table' and not beside then
    if s.size and s.size ~= s.checkpoint.size then s.checkpoint:set_size(s.size) end
    return s.checkpoint
  end
  local first = beside and M.model(s)
  local key = table.concat({ tostring(s.checkpoint), s.vae or '', beside and beside.device or s.device, s.dtype, tostring(s.size),
    tostring(s.quant), s.card or '', beside and beside.number or 1 }, '\n')
  loaded[key] = loaded[key] or first and first:on(beside.device) or require 'models.latentsync.model'.load(s.checkpoint, {
    device = s.device, dtype = s.dtype, quant = s.recipe, card = s.card, vae = s.vae, size = s.size,
  })
  return loaded[key]
end

--- The settings of the stages 'find' and 'paste', for model:windows and windows.open.
--- @param s table from M.settings
--- @param more table? measure, pause, finder
function M.window_options(s, more)
  local o = {}
  for _, row in ipairs(settings.schema:only { 'find', 'paste' }.rows) do o[row[1]] = s[row[1]] end
  for key, value in pairs(more or {}) do o[key] = value end
  return o
end

-- ---- a job ---------------------------------------------------------------------------------------

--- @param given table settings (models/latentsync/settings.lua), by their rows' names
--- @param options table? {where = '--' for a command line, started = the program's start time (cr.clock),
---   progress = the progress of an enclosing job}
--- @return Job
function M.new(given, options)
  local o = options or {}
  local self = setmetatable({ started = o.started or clock(), step_queued = 0 }, Job)
  self.settings = M.settings(settings.check(o.where == '--' and 'lipsync' or 'job', given), o.where, true)
  self.sampler = samplers.new(self.settings)
  self.progress = o.progress or progress_of.new { quiet = self.settings.quiet }
  self.stages = stages.of(self)
  return self
end

--- Seconds for which other tasks may keep this thread after a step was queued, besides one frame. This thread also
--- queues the steps: one step waits on the GPU while another runs, so the queue stays filled if the other tasks need
--- less than a step takes.
local TURN = 0.005

-- Lets other tasks run, but only as long as steps are queued in time.
function Job:give_way()
  if self.model.device ~= 'cpu' and clock() - self.step_queued >= TURN then cr.yield() end
end

-- What a maker generates from a clip: see models/latentsync/flow.lua.
function Job:make(maker, clip)
  local model, sampler, progress = maker.model, maker.sampler, self.progress
  local began = clock()
  if #self.makers > 1 then clip = cards.on_card(clip, maker.device) end
  local window = { cond = model:condition(clip), hear = model:listen(clip) }
  clip.faces:free()
  sampler:use(clip.generator or clip.source.generator)
  local latents = progress:measure('denoise', clip.n, sampler.run, sampler, model, window, model:noise(clip), function(i)
    self.step_queued = clock()
    local steps, clips = sampler:steps(), clip.clips or 1
    progress:step(clip.source:index(clip), clip.source:count(), ((clip.number or 1) - 1) * steps + i, clips * steps, clips)
    if not self.first_step then
      model:wait()
      self.first_step = clock() - self.started
    end
    maker.ahead:give(model:mark(), began)
    began = clock()
  end)
  cr.keep(window.cond, window.hear)
  -- Called with true if values are not finite. Frees what it kept for the explanation.
  local function explain(wanted)
    local text = wanted and cr.scope(function()
      return ('window %d (frames %d to %d): %s'):format(clip.source:index(clip), clip.first, clip.first + clip.n - 1,
        diagnosis.of(sampler, model, window, model:noise(clip)))
    end)
    window.cond:free()
    window.hear:free()
    return text
  end
  return { latents = latents, sampled = model:mark(), explain = explain }
end

-- Advances the random generator past a window that is not generated, or is generated elsewhere.
function Job:skip(clip)
  local model, generator = self.model, clip.source.generator
  model:skip(clip)
  if self.drawer == nil then
    local sampler = samplers.new(self.settings)
    self.drawer = sampler:draws() and sampler
  end
  if not self.drawer then return end
  self.drawer:use(generator)
  cr.scope(function()
    self.drawer:skip(cr.zeros({ 1, clip.n, model.latent, model.latent, model.channels }, { dtype = model.dtype }))
  end)
end

-- Passes a clip before a part of a film: advances the random generator, and shows the clip to the stages.
function Job:pass(clip)
  self:skip(clip)
  if self.began or not windows.is_made(clip) then return end -- (after a GPU's fault the stages have seen it)
  for _, stage in ipairs(self.stages) do
    if stage.pass then stage:pass(clip, self.model.size) end
  end
end

-- Prints what a user wants to know before the job begins.
function Job:tell(source)
  local s, model, progress = self.settings, self.model, self.progress
  progress:note(('%d px, %d frames, faces by %s%s'):format(model.size, source.stop - source.skipped, finder.shown(s.detector),
    model.size_advice and '; ' .. model.size_advice or ''))
  if model.lacking then progress:note(('%s: int8 is used instead'):format(model.lacking), true) end
  if model.unmatched then progress:note(model.unmatched, true) end
  local fps = s.video_info.fps
  if fps > 0 and math.abs(fps - 25) > 0.01 and s.fps ~= 'source' then
    progress:note(('%s has %.4g frames per second; the result has 25, as the model does (--fps source: its own)'):format(s.video, fps))
  end
  local total, length = source.total / 25, s.video_info.duration - (s.start or 0)
  if s.video_info.duration > 0 and total > length + 0.1 then
    progress:note(('%s is shorter than the sound: after %.4g s it runs backward and forward'):format(s.video, length))
  end
  for _, voice in ipairs(source.voices) do
    if voice.silence then
      progress:note(('nobody speaks in %.1f of %.1f s of %s'):format(voice.silence:seconds(total), total, voice.path))
    end
  end
  local scheduler = self.sampler.scheduler
  local warning = scheduler.warning and scheduler:warning(model.sampling.least_steps)
  if warning then progress:note(warning, true) end
end

--- Runs the job. Call it in a task (cr.run), so that it can be cancelled.
--- @return table {frames, missing (frames without a face), silent = {windows (not generated, because nobody speaks), frames
---   (unchanged)}, seconds, first_step (seconds from the start to the end of the first step)}
function Job:run()
  local s, progress = self.settings, self.progress
  self.task = cr.go(function()
    self.model = progress:measure('load', 0, M.model, s)
    for i = 2, #s.devices do
      if s.devices[i] ~= 'cpu' then cr.cuda.prepare(s.devices[i]) end -- runs while the first window is found
    end
    local function give_way() self:give_way() end
    self.makers = cards.makers(self, function(device, number)
      return progress:measure('load', 0, M.model, s, { device = device, number = number })
    end, function() return samplers.new(s, self.sampler.counts) end)
    local several = #self.makers > 1
    local asked = M.window_options(s, { measure = function(...) return progress:measure(...) end, pause = give_way,
      colours = several and {} or nil, passed = function(clip) self:pass(clip) end })
    local function open(model) return windows.open(model, s.video, settings.voices(s), asked) end
    local source = several and cards.source(self, open) or open(self.model)
    local sink
    local ok, problem = pcall(function()
      self:tell(source)
      self.began = true
      local tail = s.tail == 'keep' and source.stop == source.total -- (of several parts, the last one has it)
      progress:expect(not tail and math.floor((source.stop - source.skipped) * sinks.rate(s) / 25 + 0.5) or nil)
      sink = sinks.open(s.out, s)
      flow.run {
        makers = self.makers, source = source, stages = self.stages, sink = sink, progress = progress, pause = give_way,
        tail = tail, frames_per_window = s.frames_per_window,
        make = function(maker, clip) return self:make(maker, clip) end,
        skip = function(clip) self:skip(clip) end,
        collected = several and cards.collected or nil, home = several and cards.home(self) or nil,
        -- The source caches the audio features: audio is encoded while the first frames are decoded.
        listen = not several and function() progress:measure('audio', 0, source.listen, source) end or nil,
        ended = function()
          -- (of several parts, only the last one has seen all of the film)
          local sees_all = not s.part or source.stop == source.total and not s.part.near
          local missed = sees_all and source:missed()
          if missed then error(missed, 0) end
        end,
      }
      local changed = require 'cr.weights'.changed()
      if changed then error(changed, 0) end
      progress:measure('encode', 0, sink.close, sink)
    end)
    if not ok and sink then sink:abort() end
    source:close()
    progress:clear()
    if not ok then error(problem, 0) end
    return {
      frames = progress.done, missing = source.source.missing, silent = source.silent, seconds = progress:seconds(),
      first_step = self.first_step,
    }
  end)
  return cr.await(self.task)
end

--- A description of the sampling for messages: '256 px, 20 steps of ddim, cpu'.
--- @return string
function Job:describe()
  local steps = self.sampler:steps()
  return ('%d px, %d step%s of %s, %s'):format(self.model.size, steps, steps == 1 and '' or 's', self.sampler.name,
    table.concat(self.settings.devices, ','))
end

--- Ends a running job: its run() raises `reason`.
--- @param reason any? 'cancelled'
function Job:cancel(reason)
  if self.task then self.task:cancel(reason) end
end

local any, some, where = arguments.any, arguments.maybe(arguments.table), arguments.maybe(arguments.string)
arguments.methods(Job, 'job', {
  run = {}, describe = {}, cancel = { any }, give_way = {}, make = { any, any }, skip = { any },
  pass = { any }, tell = { any },
})
return arguments.guard('job.', M, {
  settings = { arguments.table, where, arguments.maybe(arguments.boolean) }, of_checkpoint = { arguments.table, arguments.string },
  model = { arguments.table, some }, window_options = { arguments.table, some },
  new = { arguments.table, arguments.maybe(arguments.options {
    where = where, started = arguments.maybe(arguments.number), progress = some,
  }) },
})
