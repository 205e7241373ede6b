--- Caches over steps, by name: parts of the network's work that a step takes from an earlier one.
--
-- A cache is a small file around a denoiser: { help, parse(...), new(predictor, options, count) },
-- whose result has the denoiser's predict(x, i, how). Several combine, the first next to the network:
--
--     local plan = cache.plan 'deepcache:3,tea:0.2'
--     local unet = guidance.wrap(cache.wrap(model:denoiser(...), plan), g)
--
-- A file of one's own serves by its path: './mine.lua:VALUE:VALUE'. A cache of single layers asks with a hook around them
-- (models/networks/unet3d_hook.lua), as fora.lua does; scripts/examples/my_cache.lua is one to copy.

local arguments = require 'cr.arguments'
local user_file = require 'cr.sampling.user_file'

local M = {}

local FOLDER = require 'cr'.root .. '/lua/cr/cache'

--- The names of all caches, sorted.
--- @return string[]
function M.names() return require 'cr.files'.modules(FOLDER) end

local function module_of(name)
  if name:find '%.lua$' then
    local module = user_file.run('cache', name)
    if type(module) ~= 'table' or type(module.new) ~= 'function' or type(module.parse) ~= 'function' then
      error(('cache file %s must return a table with functions parse and new'):format(name), 0)
    end
    return module
  end
  if name == '' then error('a cache is missing: deepcache:3, tea:0.2, or both with a comma', 0) end
  local names = M.names()
  for _, other in ipairs(names) do if other == name then return require('cr.cache.' .. name) end end
  error(("there is no cache '%s': %s (%s)"):format(name, require 'cr.errors'.did_you_mean(name, names, ''), table.concat(names, ', ')), 0)
end

--- What a cache is, or a list of all.
--- @param name string? or a .lua file
--- @return string
function M.help(name)
  local lines = {}
  if name ~= nil and type(name) ~= 'string' then error(('cache.help needs a name as text, not a %s'):format(type(name)), 0) end
  for _, other in ipairs(name and { name } or M.names()) do
    lines[#lines + 1] = ('%s: %s'):format(other, module_of(other).help or 'says nothing of itself')
  end
  return table.concat(lines, '\n')
end

--- What a text such as 'deepcache:3:0,tea:0.2' asks for; every mistake in it is an error here.
---
---     local plan = cache.plan 'fora:2,tea:0.1'
--- @param text string
--- @return table
function M.plan(text)
  if type(text) ~= 'string' then
    error(("cache: a plan is text such as 'deepcache:3,tea:0.2', not %s"):format(text == nil and 'nil' or 'a ' .. type(text)), 0)
  end
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

--- The denoiser with the plan's caches around it.
--- @param predictor table
--- @param plan table?  from plan(); nil: none
--- @param counts table? to which the numbers of steps are added, by kind: full, shallow, reused
--- @return table
function M.wrap(predictor, plan, counts)
  counts = counts or {}
  local function count(kind) counts[kind] = (counts[kind] or 0) + 1 end
  if plan ~= nil and type(plan) ~= 'table' then
    error(("cache.wrap needs a plan as from cache.plan 'deepcache:3', not a %s"):format(type(plan)), 0)
  end
  for _, entry in ipairs(plan or {}) do predictor = entry.module.new(predictor, entry.options, count) end
  return predictor
end

local name = arguments.one_of(M.names) -- which these judge themselves
return arguments.guard('cache.', M, {
  names = {}, help = { name }, plan = { name }, wrap = { arguments.table, arguments.any, arguments.maybe(arguments.table) },
})
