--- DPM-Solver++ and DPM-Solver, singlestep, of order 1 to 3, and their SDE form (Lu et al. 2022,
--- arXiv 2211.01095 and 2206.00927).
--
-- Steps form blocks whose length is the order. Each step of a block starts from the first sample of the block and
-- uses all predictions of the block so far. So a block is one step of higher order, and each network call counts as
-- one of `steps`.

local multistep = require 'cr.schedulers.dpmpp'
local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'

local variants = {}
for order = 1, 3 do
  variants[('dpm_single_%d'):format(order)] = { order = order }
  variants[('dpm_single_%d_sde'):format(order)] = { order = order, algorithm = 'sde-dpmsolver++' }
end

local M = solver.class {
  name = 'dpm_single', help = 'DPM-Solver++ and DPM-Solver, singlestep (Lu et al. 2022)',
  variants = variants, least_steps = solver.least_steps,
  aliases = { dpmpp_2s = 'dpm_single_2', dpmpp_3s = 'dpm_single_3' },
  known_as = { dpm_fast = 'dpm_single_3', dpm_adaptive = 'dpm_single_3' },
  diffusers = { class = 'DPMSolverSinglestepScheduler', name = 'dpm_single_2',
    differs = "each step of a block of sde-dpmsolver++ draws all noise of the block again, and its third order has, with "
      .. "solver=heun, a term of the wrong sign; the last step of a formula changes nothing if final_sigma is sigma_min" },
  options = options.join(options.schedule, options.steps, options.sigmas, options.final_sigma, options.threshold, options.noise,
    options.sde, {
    { 'order', 2, 'order of the method, and number of steps in a block', integer = true, min = 1, max = 3 },
    { 'algorithm', 'dpmsolver++', 'expands the predicted sample (++) or noise; sde adds fresh noise',
      choices = { 'dpmsolver++', 'dpmsolver', 'sde-dpmsolver++' } },
    { 'solver', 'midpoint', 'variant of orders 2 and 3', choices = { 'midpoint', 'heun' } },
    { 'lower_order_final', false, 'use blocks of lower order at the end; always done if the steps are not a multiple of the '
      .. 'order or end without noise' },
    { 'lambda_min_clipped', nil, 'leave out timesteps below this lambda', kind = 'number', infinite = true },
  }),
}

-- Returns the position of each step in its block.
local function places(o)
  local order, steps, list = o.order, o.steps, {}
  local lower = o.lower_order_final or steps % order ~= 0 or o.final_sigma == 'zero'
  -- At the end a full block is replaced by shorter ones, the last of order 1.
  local rest = steps % order
  local tail = {}
  if lower and order > 1 then
    if order == 3 then
      tail = rest == 0 and { 1, 2, 1 } or rest == 1 and { 1 } or { 1, 2 }
    else
      tail = rest == 0 and { 1, 1 } or { 1 }
    end
  end
  for i = 1, steps - #tail do list[i] = (i - 1) % order + 1 end
  for _, place in ipairs(tail) do list[#list + 1] = place end
  if o.final_sigma == 'zero' then list[steps] = 1 end
  return list
end

function M:prepare(o)
  if not o.algorithm:find '++' and o.final_sigma == 'zero' then
    error(('%s: algorithm %s cannot end without noise; use final_sigma = "sigma_min"'):format(self.name, o.algorithm), 0)
  end
  multistep.check_noise(self, o)
  -- Blocks require even spacing, so `spacing` is not an option.
  self.timesteps, self.sigmas = self:spread(setmetatable({ spacing = 'linspace', steps_offset = 0 }, { __index = o }),
    o.final_sigma)
  self.places = places(o)
  self.depth = o.order - 1
end

-- Returns the noise that was added since the beginning of the block. All steps of a block follow one sample path: the
-- noise up to this step's level decays on the way to the next, and only the rest is new. diffusers draws all noise
-- again in each step, so the predictions of a block come from other paths than its result.
function M:noise_since(now, place, of_noise, alpha_t, sigma_t, lambda_t)
  local fresh = self:keep(now, 'fresh', self:fresh(now))
  now.noise = solver.form(fresh, of_noise)
  if place > 1 and not self.as_diffusers then
    local stays, _, _, _, new = multistep.weights(self.options, lambda_t - now.lambda, now.alpha, now.sigma, alpha_t,
      sigma_t)
    now.noise = solver.form(fresh, new, self.history[2].noise, stays)
  end
  return now.noise
end

function M:update(i, now)
  local o, history, place = self.options, self.history, self.places[i]
  local first = history[place]
  local alpha_t, sigma_t, lambda_t = self:level(self.sigmas[i + 1])
  local h = lambda_t - first.lambda
  local data = o.algorithm:find '++' ~= nil
  local function predicted(entry) return data and self:data(entry) or self:noise(entry) end
  local of_x, d0, d1, d2, of_noise = multistep.weights(o, h, first.alpha, first.sigma, alpha_t,
    sigma_t, self.as_diffusers)

  local form = solver.form(first.x, of_x, predicted(first), d0)
  local function slope(entry)
    local r = (entry.lambda - first.lambda) / h
    return solver.form(predicted(entry), 1 / r, predicted(first), -1 / r), r
  end
  if place == 2 then
    form:add((slope(history[1])), o.solver == 'midpoint' and d0 / 2 or d1)
  elseif place == 3 then
    local near, r1 = slope(history[2])
    local far, r0 = slope(history[1])
    if o.solver == 'midpoint' then
      form:add(far, d1)
    else
      form:add(near, (d1 * r0 - 2 * d2) / (r0 - r1)):add(far, (2 * d2 - d1 * r1) / (r0 - r1))
    end
  end
  if of_noise == 0 then return form end
  return form:add(self:noise_since(now, place, of_noise, alpha_t, sigma_t, lambda_t), o.s_noise)
end

return M
