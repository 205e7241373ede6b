--- Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) as script.
--
-- A guidance is { applies = function(self, step) ... end, combine = function(self, uncond, cond, step)
-- ... end }: whether a step needs the unconditional half at all, and what both halves together give.
-- step is {index, count, t}. The files of this folder are guidances around others, so that they
-- combine:
--
--     local g = guidance.new { scale = 1.5, interval = { 100, 800 }, rescale = 0.7, off_last = 2 }
--     local unet = guidance.wrap(model:denoiser(cond, hear, { guidance = 1.5, timesteps = ts }), g)
--     local eps = unet:call(x, i)

local arguments = require 'cr.arguments'
local cr = require 'cr'
local lists = require 'cr.sampling.lists'

local M = {}

local KNOWN = { 'scale', 'interval', 'rescale', 'off_last' }

--- A guidance from its settings; those that are left out change nothing. A setting that cannot be is an
--- error.
--- @param settings table {scale = 1.5, interval = {lowest, highest timestep}, rescale = 0 to 1, off_last = steps}
--- @return table
function M.new(settings)
  if type(settings) ~= 'table' then
    error(('guidance: settings must be a table such as { scale = 1.5 }, not %s'):format(settings == nil and 'nil'
      or 'a ' .. type(settings)), 0)
  end
  for _, key in ipairs(lists.keys(settings)) do
    if not lists.has(KNOWN, key) then
      error(('guidance: no setting "%s": %s: %s'):format(tostring(key), table.concat(KNOWN, ', '),
        require 'cr.errors'.did_you_mean(key, KNOWN, '"')), 0)
    end
  end
  local function value(key, default)
    if settings[key] == nil then return default end
    return settings[key]
  end
  local g = require 'cr.guidance.plain'.new(value('scale', 1.5))
  local interval = value 'interval'
  if interval ~= nil then g = require 'cr.guidance.interval'.of(g, interval) end
  if value('off_last', 0) ~= 0 then g = require 'cr.guidance.off_last'.new(g, settings.off_last) end
  if value('rescale', 0) ~= 0 then g = require 'cr.guidance.rescaled'.new(g, settings.rescale) end
  return g
end

--- @class Guided
--- @field timesteps number[]
local Guided = require 'cr.sampling.wrapper'.class 'predictor'

--- The guided prediction at step i.
--- @param x Tensor [1 F h w 4]
--- @param i integer
--- @return Tensor [1 F h w 4]
function Guided:call(x, i)
  return cr.scope(function()
    local step = { index = i, count = #self.timesteps, t = self.timesteps[i] }
    local y = self.predictor:predict(x, i, { guided = self.guidance:applies(step) })
    if y:size(1) == 1 then return y end
    return self.guidance:combine(y:narrow(1, 1, 1), y:narrow(1, 2, 1), step)
  end)
end

function Guided:free() self.predictor:free() end

--- A network whose call(x, i) is guided.
--- @param predictor table a denoiser (models/networks/unet3d_denoiser.lua), or a cache around one
--- @param g table a guidance
--- @return Guided
function M.wrap(predictor, g) return setmetatable({ predictor = predictor, guidance = g }, Guided) end

local object = arguments.table
arguments.methods(Guided, 'predictor', { call = { cr.kinds.alive, arguments.natural }, free = {} }, 'any')
return arguments.guard('guidance.', M, { new = { arguments.any }, wrap = { object, object } })
