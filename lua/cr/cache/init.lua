--- Caches over steps, by name: a step reuses parts of an earlier step's work.
--
-- A cache is a small file that returns { help, parse(...), new(predictor, options, count) }, or only the function new.
-- The result of `new` wraps a denoiser: it has predict(x, i, how), and free() if it keeps anything; other fields are those
-- of the denoiser. Without parse(...), the options are the values after the name, with numbers converted. Caches can be
-- nested; the first in a plan is next to the network:
--
--     local plan = cache.plan 'deepcache:3,tea:0.2'
--     local unet = guidance.wrap(cache.wrap(model:denoiser(...), plan), g)
--
-- Your own file is named by its path: './mine.lua:VALUE:VALUE'; a session also takes such a table or function. A cache of
-- single layers uses a hook around them (models/networks/unet3d_hook.lua), as fora.lua does; scripts/examples/my_cache.lua
-- is an example to copy.

local arguments = require 'cr.arguments'
local cr = require 'cr'
local user_file = require 'cr.sampling.user_file'

local M = {}

local FOLDER = cr.root .. '/lua/cr/cache'

--- Returns the names of all caches, sorted.
--- @return string[]
function M.names() return require 'cr.files'.modules(FOLDER) end

local function words(...)
  local values = {}
  for k, word in ipairs { ... } do values[k] = tonumber(word) or word end
  return values
end

-- Makes the module of a user's cache from the value of a file or a script. `must` is the beginning of the message
-- about an invalid value.
local function own(where, must, given)
  local module = type(given) == 'function' and { new = given } or given
  if type(module) ~= 'table' or type(module.new) ~= 'function' or module.parse ~= nil and type(module.parse) ~= 'function' then
    error(('%s a table with a function new(predictor, options, count), and parse(...) to check options, not %s')
      :format(must, type(module) == 'table' and 'a table without it' or type(module)), 0)
  end
  return { help = module.help, new = module.new, parse = module.parse or words, own = where }
end

local function module_of(name)
  if name:find '%.lua$' then return own('cache file ' .. name, 'cache file ' .. name .. ' must return', user_file.run('cache', name)) end
  if name == '' then error('the name of a cache is missing: write deepcache:3, tea:0.2, or both with a comma', 0) end
  local names = M.names()
  for _, other in ipairs(names) do if other == name then return require('cr.cache.' .. name) end end
  error(("there is no cache '%s': %s (%s)"):format(name, require 'cr.errors'.did_you_mean(name, names, ''), table.concat(names, ', ')), 0)
end

--- Describes one cache, or lists all.
--- @param name string? or a .lua file
--- @return string
function M.help(name)
  local lines = {}
  if name ~= nil and type(name) ~= 'string' then error(('cache.help needs a name as text, not a %s'):format(type(name)), 0) end
  for _, other in ipairs(name and { name } or M.names()) do
    lines[#lines + 1] = ('%s: %s'):format(other, module_of(other).help or 'has no description')
  end
  return table.concat(lines, '\n')
end

-- Wraps what a user's cache made: it checks predictions, and other fields fall back on the inner denoiser.
local Own = {}
function Own:__index(key)
  local value = Own[key]
  if value ~= nil then return value end
  value = self.made[key]
  if value ~= nil then return value end
  return self.inner[key]
end

function Own:predict(x, i, how)
  local y = self.made:predict(x, i, how)
  local problem = user_file.misfit(y, x)
  if problem and not (cr.is_tensor(y) and y:size(1) == 2 and not user_file.misfit(y:narrow(1, 1, 1), x)) then
    error(('%s: predict returned %s; it must return the prediction, %s on %s [%s], or twice that size with both halves'):format(self.where,
      problem, x.dtype, x.device, table.concat(x.shape, ' ')), 0)
  end
  return y
end

function Own:free()
  local free = self.made.free
  if type(free) == 'function' and free ~= self.inner.free then free(self.made) end -- unless it is the inner one's, by __index
  self.inner:free()
end

-- Returns what a module makes of a predictor.
local function made(entry, inner, count)
  local module = entry.module
  local cache = module.new(inner, entry.options, count)
  if not module.own or rawequal(cache, inner) then return cache end
  if type(cache) ~= 'table' or type(cache.predict) ~= 'function' then
    error(('%s: new() returned %s; it must return a table with a function predict(self, x, i, how)'):format(module.own,
      type(cache) == 'table' and 'a table without it' or cache == nil and 'nothing' or 'a ' .. type(cache)), 0)
  end
  return setmetatable({ made = cache, inner = inner, where = module.own }, Own)
end

--- Parses a plan such as 'deepcache:3:0,tea:0.2' and raises an error for every mistake in it.
---
---     local plan = cache.plan 'fora:2,tea:0.1'
--- @param asked string|table|function a string, a value that a cache's file may return, or a plan
--- @return table
function M.plan(asked)
  if type(asked) == 'table' and type(asked.text) == 'string' then return asked end
  if type(asked) == 'table' or type(asked) == 'function' then
    local module = own('cache', "a cache is a string such as 'deepcache:3,tea:0.2', a plan, or", asked)
    return { text = 'own', { module = module, options = module.parse() } }
  end
  if type(asked) ~= 'string' then
    error(("cache: a plan is a string such as 'deepcache:3,tea:0.2', not %s"):format(asked == nil and 'nil' or 'a ' .. type(asked)), 0)
  end
  local text = asked
  local plan = { text = text }
  for part in (text .. ','):gmatch '(.-),' do
    local name, rest = part:match '^%s*(.-%.lua):?(.*)$'
    if not name then name, rest = part:match '^%s*([^:]*):?(.*)$' end
    local values = {}
    if rest ~= '' then
      for value in (rest .. ':'):gmatch '(.-):' do values[#values + 1] = value:match '^%s*(.-)%s*$' end
    end
    local module = module_of(name:match '^(.-)%s*$')
    plan[#plan + 1] = { module = module, options = module.parse(unpack(values)) }
  end
  return plan
end

--- Wraps a denoiser with the caches of a plan.
--- @param predictor table
--- @param plan table? from plan(); nil: no cache
--- @param counts table? counters to which the numbers of full, shallow and reused steps are added
--- @return table
function M.wrap(predictor, plan, counts)
  counts = counts or {}
  local function count(kind) counts[kind] = (counts[kind] or 0) + 1 end
  if plan ~= nil and type(plan) ~= 'table' then
    error(("cache.wrap needs a plan as from cache.plan 'deepcache:3', not a %s"):format(type(plan)), 0)
  end
  for _, entry in ipairs(plan or {}) do predictor = made(entry, predictor, count) end
  return predictor
end

local name = arguments.one_of(M.names) -- the functions check the value themselves
return arguments.guard('cache.', M, {
  names = {}, help = { name }, plan = { name }, wrap = { arguments.table, arguments.any, arguments.maybe(arguments.table) },
})
