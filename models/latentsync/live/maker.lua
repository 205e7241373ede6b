--- Generates the mouths of a window from the idle clip's frames and the audio tokens.

local aheads = require 'models.latentsync.ahead'
local clock = require 'cr.clock'
local cr = require 'cr'
local diagnosis = require 'models.latentsync.diagnosis'
local errors = require 'cr.errors'
local idles = require 'models.latentsync.live.idle'
local samplers = require 'models.latentsync.sampler'

local M = {}

local STOPPED = {} -- raised to leave a window that is no longer wanted

--- @class Maker
--- @field model LatentSync
--- @field idle Idle
local Maker = {}
Maker.__index = Maker

--- @param model LatentSync the generating model; faces are copied to the idle clip's device, which may be another GPU
--- @param idle Idle
--- @param settings table settings of the stage 'sample' (models/latentsync/settings.lua)
--- @return Maker
function M.new(model, idle, settings)
  local self = setmetatable({ model = model, idle = idle, settings = settings, samplers = {}, ahead = aheads.new() }, Maker)
  self.steps = self:sampler(settings.steps):steps()
  return self
end

-- The sampler with this number of steps; it is created once.
function Maker:sampler(steps)
  local sampler = self.samplers[steps]
  if not sampler then
    sampler = samplers.new(setmetatable({ steps = steps }, { __index = self.settings }))
    self.samplers[steps] = sampler
  end
  return sampler
end

-- Decodes the frames from `from` on, on a CPU one at a time, so that other tasks can run.
local function decode(self, latents, clip, from)
  local model, parts = self.model, {}
  local size = model.device == 'cpu' and 1 or clip.n - from + 1
  for first = from, clip.n, size do
    local n = math.min(size, clip.n - first + 1)
    local part = { n = n, source = clip.source, pixels = clip.pixels:narrow(1, first, n), items = clip.items }
    parts[#parts + 1] = model:decode(latents:narrow(2, first, n):contiguous(), part)
    if size == 1 then cr.yield() end
  end
  return #parts == 1 and parts[1] or cr.cat(parts, 1)
end

--- Generates a window.
--- @param numbers integer[] frame numbers of the idle clip
--- @param source {tokens: fun(self, frames: integer[]): Tensor} an Utterance
--- @param frames integer[] frame numbers of the source, one for each number
--- @param steps integer
--- @param stopped (fun(): boolean)? returns true if the window is no longer wanted
--- @param run_in integer? (0) number of first frames that are context only: the others attend to them, and they are not decoded
--- @return Tensor? faces f32 [n - run_in S S 3], complete and not owned by a scope; nil if it was stopped
--- @return {hear: number, denoise: number, decode: number}? seconds
function Maker:make(numbers, source, frames, steps, stopped, run_in)
  local model, sampler, ahead = self.model, self:sampler(steps), self.ahead
  local took, before = {}, clock()
  local function lap(name)
    model:wait()
    local now = clock()
    took[name], before = now - before, now
  end
  local ok, result, largest = pcall(cr.scope, function()
    local hear = idles.bring(source:tokens(frames), model.device)
    lap 'hear'
    local clip, cond = self.idle:window(numbers, model.device)
    local noise = idles.bring(self.idle.noise, model.device):expand(1, #numbers, model.latent, model.latent, model.channels):contiguous()
    sampler:use(self.idle.generator)
    local began = clock()
    local latents = sampler:run(model, { cond = cond, hear = hear }, noise, function()
      ahead:give(model:mark(), began)
      began = clock()
      if stopped and stopped() then error(STOPPED, 0) end
    end)
    lap 'denoise'
    local faces = decode(self, latents, clip, (run_in or 0) + 1)
    local largest = diagnosis.largest(faces)
    lap 'decode'
    return idles.bring(faces, self.idle.model.device), largest
  end)
  if not ok then
    if result == STOPPED then return nil end
    error(result, 0)
  end
  if not diagnosis.is_finite(largest) then
    errors.fail(('the faces of a window are not finite: --dtype bf16 or f32 may help (%s)'):format(model.dtype))
  end
  largest:free()
  return cr.keep(result), took
end

return M
