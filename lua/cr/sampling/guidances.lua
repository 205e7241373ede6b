--- Parts of guidances: the class of a method from its file, wrappers around it, and the description of a step that it gets.

local arguments = require 'cr.arguments'
local cr = require 'cr'
local held = require 'cr.sampling.held'
local lists = require 'cr.sampling.lists'
local options_of = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'
local wrapper = require 'cr.sampling.wrapper'

local M = {}

-- ---- what a method is told -------------------------------------------------------------------

--- @class Step of a window, as guidance methods see it
--- @field index integer from 1
--- @field count integer of all steps
--- @field t number timestep
--- @field x Tensor [1 F h w 4] the input of the network
--- @field alpha number the signal's coefficient: x = alpha data + sigma noise
--- @field sigma number the noise's coefficient
--- @field prediction string what the network predicts: 'epsilon', 'v' or 'sample'
--- @field held table<string, Tensor> tensors that keep() stored in earlier steps of this window
--- @field ask function
local Step = {}
Step.__index = Step

--- Returns the coefficients of x and of the prediction that give the predicted data.
--- @return number of_x
--- @return number of_m
function Step:data_weights() return solver.data_weights(self.prediction, self.alpha, self.sigma) end

--- Returns the coefficients of x and of the prediction that give the predicted noise.
--- @return number of_x
--- @return number of_m
function Step:noise_weights() return solver.noise_weights(self.prediction, self.alpha, self.sigma) end

--- Stores a tensor for later steps of the window as step.held[name]. The previous one is freed.
--- @param name string
--- @param t Tensor
function Step:keep(name, t) held.put(self.held, name, t) end

--- Runs the network once more at the same step, bypassing caches, by default for the conditional half. A hook may
--- change its layers.
--- @param how table {x = latents (the step's), guided = true for both halves, hook = see models/networks/unet3d_hook.lua}
--- @return Tensor [1 F h w 4], or [2 F h w 4]
function Step:predict(how) return self.ask(how or {}) end

local maybe = arguments.maybe
arguments.methods(Step, 'step', {
  data_weights = {}, noise_weights = {}, keep = { arguments.string, cr.kinds.alive }, predict = { maybe(arguments.options {
    x = maybe(cr.kinds.alive), guided = maybe(arguments.boolean), hook = maybe(arguments.table),
  }) },
}, 'any')

--- Makes the description of a step.
--- @param fields table all but `keep` and `predict`
--- @return Step
function M.step(fields) return setmetatable(fields, Step) end

-- ---- classes ---------------------------------------------------------------------------------

local function check(class)
  local x, step = cr.kinds.alive, arguments.table
  arguments.methods(class, 'guidance', {
    applies = { step }, halves = {}, combine = { arguments.maybe(x), x, arguments.maybe(step) },
  }, 'any')
  return class
end

local FIELDS = { help = 'string', options = 'table', combine = 'function', applies = 'function', halves = 'function', moves = 'boolean' }

--- Makes the class of a method from the value that its file returned, or fails with a sentence about a mistake in it.
--- @param where string names the file in messages
--- @param declared any see lua/cr/guidance/init.lua
--- @param own boolean? whether it is part of the library: the arguments of its methods are then checked
--- @return table class that make() takes
function M.method(where, declared, own)
  if type(declared) == 'function' then declared = { combine = declared } end
  if type(declared) ~= 'table' or type(declared.combine) ~= 'function' then
    error(('%s must return a table with a function combine(self, uncond, cond, step), not %s'):format(where,
      type(declared) == 'table' and 'a table without it' or type(declared)), 0)
  end
  for _, field in ipairs(lists.keys(declared)) do
    local kind = FIELDS[field]
    if kind and type(declared[field]) ~= kind then
      error(('%s: %s must be a %s, not a %s'):format(where, field, kind, type(declared[field])), 0)
    end
  end
  if declared.options ~= nil then options_of.check_spec(where, declared.options) end
  local class = { help = declared.help, spec = declared.options or {}, moves = declared.moves or false }
  class.__index = class
  class.combine = declared.combine
  class.applies = declared.applies or function(self) return self.scale > 1 end
  class.halves = declared.halves or function(self) return self.scale > 1 end
  for key, value in pairs(declared) do if class[key] == nil then class[key] = value end end
  return own and check(class) or class
end

--- Makes a guidance from the class of a method.
--- @param class table
--- @param name string as it was given
--- @param given table? options
--- @param scale number
--- @return table
function M.make(class, name, given, scale)
  return setmetatable({ name = name, options = options_of.parse('guidance ' .. name, class.spec, given), scale = scale }, class)
end

--- Makes a class of guidances that wrap another: methods that it does not define are those of the inner guidance.
--- @return table
function M.around()
  local class = wrapper.class 'inner'
  function class:combine(uncond, cond, step) return self.inner:combine(uncond, cond, step) end
  function class:applies(step) return self.inner:applies(step) end
  function class:halves() return self.inner:halves() end
  return class
end

--- Wraps the methods of such a class with checks.
--- @param class table
--- @return table class
function M.guard(class) return check(class) end

return M
