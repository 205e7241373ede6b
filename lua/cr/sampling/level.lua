--- Returns the coefficients of signal and noise in a sample at a scheduler's step.

local options_of = require 'cr.sampling.options'
local tables = require 'cr.sampling.tables'

local plain -- LatentSync's noise schedule, for schedulers without a method `level`

--- @param scheduler table?
--- @param i integer step
--- @param t number its timestep
--- @return number alpha x = alpha data + sigma noise
--- @return number sigma
return function(scheduler, i, t)
  if scheduler and scheduler.begins_at then
    local alpha, sigma = scheduler:begins_at(i)
    return alpha, sigma
  end
  local alphas = scheduler and scheduler.alphas
  if type(alphas) ~= 'table' or type(alphas[0]) ~= 'number' then
    plain = plain or tables.alphas(options_of.parse('scheduler', options_of.schedule))
    alphas = plain
  end
  return tables.level_at(alphas, t)
end
