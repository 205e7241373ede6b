--- The object that schedulers.load returns. It wraps the scheduler of a file and checks its inputs and outputs.

local arguments = require 'cr.arguments'
local cr = require 'cr'
local level = require 'cr.sampling.level'
local options_of = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'
local user_file = require 'cr.sampling.user_file'
local wrapper = require 'cr.sampling.wrapper'

local M = {}

--- @class Scheduler
--- @field name string as the user wrote it
--- @field file string? the path of a user's file
--- @field options table all options with their values
--- @field timesteps number[] the timesteps at which the network is called, in order
--- @field begin_index integer number of first steps to skip; if it is not 0, start() needs a sample besides the noise
--- @field init_noise_sigma number factor of the initial noise (1)
--- @field least_steps integer|function|nil with fewer steps its results have visible artefacts; may be a function of
---   the options
--- @field inner table the object that the file made
local Scheduler = wrapper.class 'inner'

--- Returns the initial sample.
--- @param noise Tensor standard normal
--- @param source Tensor? a clean sample to which noise of the first step's level is added (for begin_index); nil
---   starts from pure noise
--- @return Tensor
function Scheduler:start(noise, source)
  if source then
    local alpha, sigma = level(self, 1, self.timesteps[1])
    return cr.lincomb({ source, noise }, { alpha, sigma })
  end
  return self.init_noise_sigma == 1 and noise or noise * self.init_noise_sigma
end

--- Makes one step and returns x at the next timestep. A step that fails changes no state and can be repeated.
--- @param prediction Tensor the network's output for x at t
--- @param t number the next of self.timesteps
--- @param x Tensor
--- @param noise Tensor? standard normal noise for methods that add noise, instead of drawing it
--- @return Tensor of x's shape and dtype
function Scheduler:step(prediction, t, x, noise)
  solver.check_step('scheduler ' .. self.name, prediction, x, noise)
  local y = self.inner:step(prediction, t, x, noise)
  local problem = user_file.misfit(y, x)
  if not problem then return y end
  error(('scheduler %s: step returned %s at timestep %s; it must return the next sample, %s on %s [%s]'):format(self.name,
    problem, tostring(t), x.dtype, x.device, table.concat(x.shape, ' ')), 0)
end

--- Drops the state of a window that was not finished. After the last step this happens automatically.
function Scheduler:reset()
  if self.inner.reset then self.inner:reset() end
end

--- Sets the generator of fresh noise.
--- @param generator Generator
function Scheduler:use(generator)
  options_of.check('scheduler ' .. self.name, 'use', { 'generator', kind = 'generator' }, generator)
  self.inner.generator = generator
end

--- Returns a warning about too few steps, or nil if there are enough.
--- @param least integer? smallest sufficient number of steps (the method's own bound)
--- @return string?
function Scheduler:warning(least)
  least = least or self.least_steps
  if least ~= nil and type(least) ~= 'function' and type(least) ~= 'number' then
    error(('scheduler %s: warning takes a number of steps, not a %s'):format(self.name, type(least)), 0)
  end
  if type(least) == 'function' then least = least(self.options) end
  local steps = self.options.steps or #self.timesteps
  if not least or steps >= least then return end
  return ('scheduler %s: %d %s too few for this method, which needs at least %d; expect patches or blur')
    :format(self.name, steps, steps == 1 and 'step is' or 'steps are', least)
end

-- Returns whether JSON can represent a value.
local function is_plain(v)
  if type(v) == 'table' then
    for _, item in ipairs(v) do if not is_plain(item) then return false end end
    return #v > 0
  end
  return type(v) == 'string' or type(v) == 'boolean' or type(v) == 'number' and v - v == 0
end

--- Returns name and options for reports, with plain values and lists only.
--- @return table {name, file, options}
function Scheduler:settings()
  local list = {}
  for k, v in pairs(self.options) do if is_plain(v) then list[k] = v end end
  return { name = self.name, file = rawget(self, 'file'), options = list }
end

local any = arguments.any -- the scheduler checks these itself and names itself in the message
arguments.methods(Scheduler, 'scheduler', {
  start = { cr.kinds.alive, arguments.maybe(cr.kinds.alive) },
  step = { any, any, any, any }, reset = {}, use = { any }, warning = { any }, settings = {},
})

-- Checks what a file's new() returned, and fails for each kind of mistake. Only timesteps of users' files must
-- decrease: some of our methods call the network twice at one level.
local function check_made(name, inner, options, own_file)
  local function bad(text, ...) error(('scheduler %s: new() ' .. text):format(name, ...), 0) end
  if type(inner) ~= 'table' then bad('must return a table with timesteps and step, not %s', type(inner)) end
  if type(inner.step) ~= 'function' then bad 'returned a table without a function step' end
  if type(inner.timesteps) ~= 'table' or #inner.timesteps == 0 then bad 'returned a table without timesteps' end
  if inner.reset ~= nil and type(inner.reset) ~= 'function' then
    bad('returned a reset that must be a function, not a %s', type(inner.reset))
  end
  if inner.options ~= nil and type(inner.options) ~= 'table' then
    bad('returned options that must be a table, not a %s', type(inner.options))
  end
  local scale = inner.init_noise_sigma
  if scale ~= nil and not (type(scale) == 'number' and scale > 0 and scale < math.huge) then
    bad('returned an init_noise_sigma that must be a number above 0, not %s', tostring(scale))
  end
  local trained = (inner.options or options).train_steps
  local last = (type(trained) == 'number' and trained or 1000) - 1
  for i, t in ipairs(inner.timesteps) do
    if type(t) ~= 'number' or t ~= t or math.abs(t) == math.huge then
      bad('returned timesteps of which number %d is %s', i, type(t) == 'number' and tostring(t) or 'a ' .. type(t))
    elseif t < 0 or t > last then
      bad('returned timesteps of which number %d is %g, but the network was trained with 0 to %d', i, t, last)
    elseif own_file and i > 1 and t > inner.timesteps[i - 1] then
      bad('returned timesteps that increase: number %d is %g, after %g; they must decrease as the noise does', i, t, inner.timesteps[i - 1])
    end
  end
end

--- Wraps what a file's new() returned.
--- @param inner any
--- @param fields table {name, file, options, least_steps}
--- @param own_file boolean? whether it is a user's file
--- @return Scheduler
function M.wrap(inner, fields, own_file)
  check_made(fields.name, inner, fields.options, own_file)
  fields.inner, fields.options = inner, inner.options or fields.options
  fields.init_noise_sigma = inner.init_noise_sigma or 1
  return setmetatable(fields, Scheduler)
end

return M
