--- Guidance with one weight at all steps: uncond + scale (cond - uncond).

local cr = require 'cr'
local guidances = require 'cr.sampling.guidances'
local lists = require 'cr.sampling.lists'

local Plain = {}
Plain.__index = Plain

function Plain:applies() return self.scale > 1 end

function Plain:combine(uncond, cond)
  return cr.lincomb({ uncond, cond }, { 1 - self.scale, self.scale })
end

guidances.methods(Plain)

--- @param scale number at 1 or less there is no guidance
local function new(scale)
  if type(scale) ~= 'number' or not (scale >= 0 and scale < math.huge) then
    error(('guidance scale: %s is no weight: a number from 0 on, 1 for no guidance'):format(lists.shown(scale)), 0)
  end
  return setmetatable({ scale = scale }, Plain)
end

return { new = new }
