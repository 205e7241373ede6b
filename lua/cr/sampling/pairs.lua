--- Methods that call the network twice for each step: at the beginning of the step, and again inside it or at its end.
--
-- A plan is a list of steps {from, to, t, up}: two noise levels, the timestep at the beginning of the step (derived
-- from the level if nil), and the level to which fresh noise leads after the step (nil: no fresh noise).
-- self.calls[i] is {step, second}, the step of the i-th call of the network, and whether it is the second call.

local solver = require 'cr.sampling.solver'
local tables = require 'cr.sampling.tables'

local M = {}

--- Makes the plan of steps from timesteps and levels.
--- @param timesteps number[]
--- @param sigmas number[] one more
--- @return table[]
function M.plan(timesteps, sigmas)
  local plan = {}
  for i, t in ipairs(timesteps) do plan[i] = { from = sigmas[i], to = sigmas[i + 1], t = t } end
  return plan
end

--- Sets the calls of a scheduler from a plan: self.timesteps, self.calls, self.levels.
--- @param self Solver
--- @param plan table[]
--- @param second fun(step: table, next: table?): number?, number? returns the level of a step's second call, and its
---   timestep if that is known, or nil if there is no second call
function M.set(self, plan, second)
  local last = self.options.train_steps - 1
  self.plan, self.timesteps, self.calls, self.levels = plan, {}, {}, {}
  local function call(k, is_second, level, t)
    local i = #self.calls + 1
    self.calls[i] = { step = k, second = is_second }
    self.levels[i], self.timesteps[i] = level, t or tables.timestep_of(level, self.alphas, last)
  end
  for k, step in ipairs(plan) do
    call(k, false, step.from, step.t)
    local level, t = second(step, plan[k + 1])
    step.middle = level
    if level then call(k, true, level, t) end
  end
end

--- The same for ancestral steps. The second call is at the geometric mean of two levels: the one where the step
--- begins, and the level `down`, from which fresh noise leads up to the end of the step (solver.ancestral).
--- @param self Solver
--- @param timesteps number[]
--- @param sigmas number[] one more
function M.set_ancestral(self, timesteps, sigmas)
  M.set(self, M.plan(timesteps, sigmas), function(step)
    step.down, step.rise = solver.ancestral(step.from, step.to, self.options.eta)
    return step.down > 0 and math.sqrt(step.from * step.down) or nil
  end)
end

--- The update of such a step: half of the step in the first of two calls, otherwise the whole step with its noise.
--- @param self Solver
--- @param i integer the call
--- @param now table the history entry of this call
--- @param without_noise fun(start: table, from: number, to: number, alpha: number): table returns the form of a step
---   between two levels, where alpha is the signal's coefficient at the end
--- @return table form
function M.update_ancestral(self, i, now, without_noise)
  local call = self.calls[i]
  local step = self.plan[call.step]
  local start = call.second and self.history[2] or now
  local whole = call.second or not step.middle
  local alpha = self:level(whole and step.to or step.middle)
  local form = without_noise(start, step.from, whole and step.down or step.middle, alpha)
  if whole and step.rise > 0 then form:add(self:fresh(now), alpha * step.rise * self.options.s_noise) end
  return form
end

--- Returns the level at which the network is called in the i-th call.
function M.begins_at(self, i) return self:level(self.levels[i]) end

return M
