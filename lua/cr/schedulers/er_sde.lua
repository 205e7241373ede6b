--- ER-SDE-Solver, of order 1 to 3 (Cui et al. 2023, arXiv 2309.06169): extended reverse-time SDEs, in which a
--- function of the level determines the amount of noise.
--
-- With z = x / alpha and the level sigma, the exact solution between two levels multiplies z by phi(t) / phi(s). The
-- predicted sample is expanded with finite differences of earlier ones, and the integrals of 1 / phi are sums over
-- 200 points, as in the authors' code.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local POINTS = 200

-- The authors' "ER-SDE 5".
local function phi(sigma) return sigma * (math.exp(sigma ^ 0.3) + 10) end

local M = solver.class {
  name = 'er_sde', help = 'ER-SDE-Solver, multistep with fresh noise (Cui et al. 2023)',
  variants = { er_sde = { order = 3 }, er_sde_1 = { order = 1 }, er_sde_2 = { order = 2 } }, least_steps = solver.least_steps,
  aliases = { er_sde_3 = 'er_sde' },
  options = options.join(options.schedule, options.spacing, options.steps, options.sigmas, options.threshold, options.noise, {
    { 'order', 3, 'number of predictions that a step combines', integer = true, min = 1, max = 3 },
    { 's_noise', 1, 'standard deviation of the fresh noise', min = 0, max = 10 },
  }),
}

local prepare = M.prepare
function M:prepare(o)
  prepare(self, o)
  self.depth = o.order - 1
end

function M:update(i, now)
  local s, history, o = self.sigmas, self.history, self.options
  local from, to = s[i], s[i + 1]
  if to == 0 then return solver.form(self:data(now), 1) end
  local alpha_t, r = self:level(to), phi(to) / phi(from)
  local form = solver.form(now.x, alpha_t * r / now.alpha, self:data(now), alpha_t * (1 - r))
  local order = math.min(o.order, #history)
  if order >= 2 then
    local step, width = to - from, (from - to) / POINTS
    local sum, moment = 0, 0
    for k = 0, POINTS - 1 do
      local at = to + k * width
      sum, moment = sum + width / phi(at), moment + width * (at - from) / phi(at)
    end
    local function slope(k) -- finite difference of the predicted sample over the level, before step i - k + 1
      local by = s[i - k + 1] - s[i - k]
      return solver.form(self:data(history[k]), 1 / by, self:data(history[k + 1]), -1 / by)
    end
    form:add(slope(1), alpha_t * (step + sum * phi(to)))
    if order == 3 then
      local half = (from - s[i - 2]) / 2
      form:add(solver.form(slope(1), 1 / half, slope(2), -1 / half), alpha_t * (step * step / 2 + moment * phi(to)))
    end
  end
  return form:add(self:fresh(now), alpha_t * o.s_noise * math.sqrt(math.max(0, to * to - (from * r) ^ 2)))
end

return M
