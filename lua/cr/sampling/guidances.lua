--- What guidances are made of: a method's class from its file, wrappers around it, and what it is told of a step.

local arguments = require 'cr.arguments'
local cr = require 'cr'
local held = require 'cr.sampling.held'
local lists = require 'cr.sampling.lists'
local options_of = require 'cr.sampling.options'
local solver = require 'cr.sampling.solver'
local wrapper = require 'cr.sampling.wrapper'

local M = {}

-- ---- what a method is told -------------------------------------------------------------------

--- @class Step of a window, as guidances see it
--- @field index integer from 1
--- @field count integer of all steps
--- @field t number timestep
--- @field x Tensor [1 F h w 4] what the network was asked about
--- @field alpha number the signal's share in x: x = alpha data + sigma noise
--- @field sigma number the noise's
--- @field prediction string what the network predicts: 'epsilon', 'v' or 'sample'
--- @field held table<string, Tensor> what keep() kept in this window's steps before
--- @field ask function
local Step = {}
Step.__index = Step

--- The predicted data as coefficients of x and of a prediction.
--- @return number of_x
--- @return number of_m
function Step:data_weights() return solver.data_weights(self.prediction, self.alpha, self.sigma) end

--- The predicted noise as coefficients of x and of a prediction.
--- @return number of_x
--- @return number of_m
function Step:noise_weights() return solver.noise_weights(self.prediction, self.alpha, self.sigma) end

--- Keeps a tensor for the window's next steps, as step.held[name]; what was there is freed.
--- @param name string
--- @param t Tensor
function Step:keep(name, t) held.put(self.held, name, t) end

--- Asks the network once more, past caches: at the same step, for the conditional half, with a hook of its layers.
--- @param how table {x = latents in place of the step's, guided = true for both halves, hook = (models/networks/unet3d_hook.lua)}
--- @return Tensor [1 F h w 4], or [2 F h w 4]
function Step:predict(how) return self.ask(how or {}) end

local maybe = arguments.maybe
arguments.methods(Step, 'step', {
  data_weights = {}, noise_weights = {}, keep = { arguments.string, cr.kinds.alive }, predict = { maybe(arguments.options {
    x = maybe(cr.kinds.alive), guided = maybe(arguments.boolean), hook = maybe(arguments.table),
  }) },
}, 'any')

--- A step's description.
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

--- The class of a method from what its file returned; a mistake in it is one sentence.
--- @param where string the file, for sentences
--- @param declared any see lua/cr/guidance/init.lua
--- @param own boolean? one of the library's: its methods are checked where scripts call them
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

--- A method.
--- @param class table
--- @param name string as it was asked for
--- @param given table? options
--- @param scale number
--- @return table
function M.make(class, name, given, scale)
  return setmetatable({ name = name, options = options_of.parse('guidance ' .. name, class.spec, given), scale = scale }, class)
end

--- A class of guidances around others: what it does not define is the inner one's.
--- @return table
function M.around()
  local class = wrapper.class 'inner'
  function class:combine(uncond, cond, step) return self.inner:combine(uncond, cond, step) end
  function class:applies(step) return self.inner:applies(step) end
  function class:halves() return self.inner:halves() end
  return class
end

--- Puts checks before the methods of such a class.
--- @param class table
--- @return table class
function M.guard(class) return check(class) end

return M
