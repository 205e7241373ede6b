--- PNDM (Liu et al. 2022, arXiv 2202.09778): linear multistep in the predicted noise. It starts either with a step
--- that is made twice (PLMS, as in Stable Diffusion) or with Runge-Kutta steps.

local options = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'
local tables = require 'cr.sampling.tables'

local floor, sqrt = math.floor, math.sqrt

local M = solver.class {
  name = 'pndm', help = 'PNDM: multistep in the noise (Liu et al. 2022)',
  variants = { pndm = {} }, least_steps = solver.least_steps,
  aliases = { plms = 'pndm' },
  known_as = { ipndm = 'pndm', ipndm_v = 'pndm' },
  diffusers = { class = 'PNDMScheduler',
    differs = "steps have a fixed stride and do not end where the next one begins; with prediction=v the predictions of several "
      .. 'levels are combined as if they belonged to one level',
    defaults = { skip_prk_steps = false, timestep_spacing = 'leading' } },
  options = options.join(options.schedule, options.spacing, options.steps, options.listed, {
    { 'prediction', 'epsilon', 'what the network predicts', choices = { 'epsilon', 'v' } },
    { 'spacing', 'leading', 'how the steps are spaced over the training timesteps', choices = { 'leading', 'trailing', 'linspace' } },
    { 'steps_offset', 1, "added to the timesteps of 'leading'", integer = true, min = 0 },
    { 'skip_prk_steps', true, 'start with a step made twice, not with three Runge-Kutta steps of four calls each' },
    { 'set_alpha_to_one', false, 'the last step ends at alpha 1, not at that of training step 0' },
  }),
}

-- Adams-Bashforth's weights, newest first.
local WEIGHTS = { { 1 }, { 3 / 2, -1 / 2 }, { 23 / 12, -16 / 12, 5 / 12 }, { 55 / 24, -59 / 24, 37 / 24, -9 / 24 } }
local RUNGE_KUTTA = { 1 / 6, 1 / 3, 1 / 3, 1 / 6 }

-- Plans the calls in order: self.plan[i] = {from, to = timesteps, base = how many calls ago the starting sample was
-- current, terms = pairs of how many calls ago and weight}.
function M:prepare(o)
  local stride = floor(o.train_steps / o.steps)
  local falling = self:cut(tables.listed_whole(self.name, o, self.alphas)
    or tables.check(self.name, o, tables.timesteps(o, true, self.as_diffusers)))
  -- The step from falling[n] ends where the next one begins. diffusers uses a fixed stride.
  local function after(n) return self.as_diffusers and falling[n] - stride or falling[n + 1] or -1 end
  -- A step that begins at training step 0 must end clean, since otherwise it would change nothing.
  local ends_clean = o.set_alpha_to_one or falling[#falling] == 0 and not self.as_diffusers
  self.final_alpha = ends_clean and 1 or self.alphas[0]
  self.timesteps, self.plan = {}, {}
  local kept = {} -- the calls that multistep combines, newest first
  local function plan(t, from, to, base, terms)
    local i = #self.timesteps + 1
    self.timesteps[i], self.plan[i] = t, { from = from, to = to, base = base, terms = terms }
  end
  local function multistep(n)
    local i = #self.timesteps + 1
    table.insert(kept, 1, i)
    kept[5] = nil
    local terms = {}
    for k, weight in ipairs(WEIGHTS[#kept]) do terms[k] = { i - kept[k], weight } end
    plan(falling[n], falling[n], after(n), 0, terms)
  end

  if o.skip_prk_steps then
    for n, t in ipairs(falling) do
      -- The first step is made again with the mean of both predictions.
      if n == 2 then plan(t, self.as_diffusers and t + stride or falling[1], t, 1, { { 0, 0.5 }, { 1, 0.5 } }) end
      multistep(n)
    end
    self.depth = 4
    return
  end
  if #falling < 4 then error(self.name .. ': Runge-Kutta at the beginning needs at least 4 steps', 0) end
  for n = 1, 3 do
    local top, below = falling[n], falling[n + 1]
    local half = floor((self.as_diffusers and stride or top - below) / 2)
    table.insert(kept, 1, #self.timesteps + 1)
    plan(top, top, self.as_diffusers and top - half or below + half, 0, { { 0, 1 } })
    plan(below + half, top, below + half, 1, { { 0, 1 } })
    plan(below + half, top, below, 2, { { 0, 1 } })
    local terms = {}
    for back = 0, 3 do terms[back + 1] = { back, RUNGE_KUTTA[4 - back] } end
    plan(below, top, below, 3, terms)
  end
  for n = 4, #falling do multistep(n) end
  self.depth = 12
end

function M:update(i, now)
  local o, plan, history = self.options, self.plan[i], self.history
  local a = self.alphas[plan.from]
  local a_to = plan.to >= 0 and self.alphas[plan.to] or self.final_alpha
  local sample = plan.base == 0 and now.x or history[plan.base + 1].x
  local noise = solver.form()
  -- For v prediction, the noise of each call depends on the level of that call. diffusers combines the predictions of
  -- several levels and converts them as if they belonged to one level.
  local by_call = o.prediction == 'v' and not self.as_diffusers
  for _, term in ipairs(plan.terms) do
    local call = history[term[1] + 1]
    if by_call then
      local a_call = self.alphas[call.t]
      noise:add(call.m, term[2] * sqrt(a_call)):add(call.x, term[2] * sqrt(1 - a_call))
    else
      noise:add(call.m, term[2])
    end
  end
  if o.prediction == 'v' and self.as_diffusers then noise = solver.form(noise, sqrt(a), sample, sqrt(1 - a)) end
  -- Equation 9 of the paper.
  local denominator = a * sqrt(1 - a_to) + sqrt(a * (1 - a) * a_to)
  return solver.form(sample, sqrt(a_to / a), noise, -(a_to - a) / denominator)
end

return M
