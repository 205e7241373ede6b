--- Schedulers by name or by file: schedulers.load('dpmpp_2m', { steps = 10 }).
--
-- Each file of this folder is a scheduler; no other list names them. A file returns
--
--     { new = function(options) return { timesteps = {...}, step = function(self, m, t, x) ... end } end }
--
-- and may add `help` (one line), `options` (see cr.sampling.options), `variants` (names with preset options; by
-- default the only name is that of the file), `aliases`, `least_steps` (with fewer steps pictures have artefacts; a
-- number or a function of the options), `diffusers` (the class there, and how it `differs`) and `known_as` (names in
-- other programs, in lower case, used only to suggest our name). A file in any other place is named by its path, and a
-- script may pass what such a file returns. scripts/examples/my_scheduler.lua is an example to copy.
--
-- A name may carry options: dpmpp_2m_karras, dpmpp_2m:order=3,spacing=trailing, euler:sigmas=[14.6,3.9,0.9,0]
-- (lua/cr/sampling/spec.lua). A method that is loaded by name follows its paper. The path of diffusers'
-- scheduler_config.json may be given instead of a name. Then the numbers are those of diffusers, mistakes included.

local arguments = require 'cr.arguments'
local diffusers = require 'cr.sampling.diffusers'
local files = require 'cr.files'
local lists = require 'cr.sampling.lists'
local options_of = require 'cr.sampling.options'
local specs = require 'cr.sampling.spec'
local user_file = require 'cr.sampling.user_file'

local M = {}

local FOLDER = require 'cr'.root .. '/lua/cr/schedulers'

-- Suffixes for every name whose scheduler has the option.
local suffixes = {
  karras = { 'sigmas', 'karras' }, exponential = { 'sigmas', 'exponential' }, beta = { 'sigmas', 'beta' },
  lu = { 'sigmas', 'lu' }, trailing = { 'spacing', 'trailing' }, leading = { 'spacing', 'leading' },
  linspace = { 'spacing', 'linspace' }, ays = { 'sigmas', 'ays' }, gits = { 'sigmas', 'gits' }, v = { 'prediction', 'v' },
}

-- ---- files -----------------------------------------------------------------------------------

-- The types of the optional fields of a file.
local field_types = { help = 'string', variants = 'table', aliases = 'table', known_as = 'table', diffusers = 'table' }

-- Makes the module of a user's scheduler from the value of a file or a script. `must` is the beginning of the message
-- about an invalid value.
local function own_module(where, must, given)
  local module = type(given) == 'function' and { new = given } or given
  if type(module) ~= 'table' or type(module.new) ~= 'function' then
    error(('%s a table with a function new(options), not %s'):format(must, type(module) == 'table' and 'a table without it'
      or type(module)), 0)
  end
  for _, field in ipairs(lists.keys(field_types)) do
    local value = module[field]
    if value ~= nil and type(value) ~= field_types[field] then
      error(('%s: %s must be a %s, not a %s'):format(where, field, field_types[field], type(value)), 0)
    end
  end
  local least = type(module.least_steps)
  if least ~= 'nil' and least ~= 'number' and least ~= 'function' then
    error(('%s: least_steps must be a number or a function of the options, not a %s'):format(where, least), 0)
  end
  if module.options ~= nil then options_of.check_spec(where, module.options) end
  return module
end

local function run_file(path)
  local where = 'scheduler file ' .. path
  return own_module(where, where .. ' must return', user_file.run('scheduler', path))
end

local loaded = {} -- modules of FOLDER by file name

local function module_of(file)
  if not loaded[file] then
    local name = 'cr.schedulers.' .. file
    local module = package.loaded[name] or run_file(FOLDER .. '/' .. file .. '.lua')
    -- Files that require each other get the same table.
    package.loaded[name], loaded[file] = module, module
  end
  return loaded[file]
end

-- Calls visit(name, module, options, alias of) for every name. A file with a mistake is skipped, so that it does not
-- affect the others.
local function each_name(visit)
  for _, file in ipairs(files.modules(FOLDER)) do
    local ok, module = pcall(module_of, file)
    if ok then
      local variants, aliases = module.variants or { [file] = {} }, module.aliases or {}
      for _, name in ipairs(lists.keys(variants)) do visit(name, module, variants[name]) end
      for _, alias in ipairs(lists.keys(aliases)) do visit(alias, module, variants[aliases[alias]] or {}, aliases[alias]) end
    end
  end
end

--- Returns the names of all schedulers without suffixes (_karras, _trailing, ...), sorted.
--- @return string[]
function M.names()
  local list = {}
  each_name(function(name, _, _, alias) if not alias then list[#list + 1] = name end end)
  table.sort(list)
  return list
end

local function choice_of(module, option, value)
  local o = lists.find(module.options or {}, option)
  return o ~= nil and lists.has(o.choices, value)
end

-- Returns the names that are most similar to `word`, at most three.
local function nearest(word)
  local list = {}
  local function consider(name) list[#list + 1] = { name, require 'cr.errors'.distance(word, name) } end
  each_name(function(name, module)
    consider(name)
    for suffix, o in pairs(suffixes) do
      if choice_of(module, o[1], o[2]) then consider(name .. '_' .. suffix) end
    end
  end)
  table.sort(list, function(a, b)
    if a[2] ~= b[2] then return a[2] < b[2] end
    return a[1] < b[1]
  end)
  local names = {}
  for i = 1, math.min(3, #list) do
    if list[i][2] <= list[1][2] + 1 then names[#names + 1] = list[i][1] end
  end
  return table.concat(names, ', ')
end

local function find(name)
  local module, given
  -- The file of that name is tried first, so that others need not be loaded and a mistake in it is reported.
  if name:find '^[%w_]+$' and name ~= 'init' and require 'lfs'.attributes(FOLDER .. '/' .. name .. '.lua') then
    module = module_of(name)
    return module, module.variants and module.variants[name] or {}
  end
  each_name(function(other, m, o) if other == name then module, given = m, o end end)
  return module, given
end

-- Returns the module and options of a name with its suffixes, and which options the suffixes set.
local function resolve(name)
  local module, given = find(name)
  if module then return module, given, {} end
  local base, suffix = name:match '^(.+)_(%l+)$'
  if not base or not suffixes[suffix] then return end
  local said
  module, given, said = resolve(base)
  if not module then return end
  local option, value = unpack(suffixes[suffix])
  if not choice_of(module, option, value) then
    error(("scheduler %s has no option %s = %s, so there is no '%s'"):format(base, option, value, name), 0)
  end
  if given[option] and given[option] ~= value then
    error(("scheduler '%s': '%s' already has %s = %s, so '_%s' contradicts it"):format(name, base, option, given[option],
      suffix), 0)
  end
  local joined, known = { [option] = value }, { [option] = value }
  for k, v in pairs(given) do joined[k] = v end
  for k, v in pairs(said) do known[k] = v end
  return module, joined, known
end

-- Converts a name such as 'DPM++ 2M Karras' or 'EulerDiscreteScheduler' to our spelling.
local function canonical(word)
  return (word:lower():gsub('%+%+', 'pp'):gsub('[%s%-]+', '_'):gsub('_?scheduler$', ''):gsub('_gpu$', ''))
end

--- Returns our name of a method that other programs call differently, or nil.
--- @param word string 'DPM++ 2M Karras', 'EulerDiscreteScheduler', 'k_euler_a'
--- @return string?
function M.known_elsewhere(word)
  local wanted, found = canonical(word), nil
  local ok, module = pcall(resolve, wanted)
  if ok and module then return wanted end
  each_name(function(name, m)
    local own = m.diffusers
    if own and own.class and canonical(own.class) == wanted then found = own.name or m.name or name end
    for other, ours in pairs(m.known_as or {}) do if other == wanted then found = ours end end
  end)
  local base, suffix = wanted:match '^(.+)_(%l+)$'
  if found or not base or not suffixes[suffix] then return found end
  local ours = M.known_elsewhere(base)
  ours = ours and ours .. '_' .. suffix
  ok, module = pcall(resolve, ours or '')
  return ok and module and ours or nil
end

local function no_such(name)
  return ("there is no scheduler '%s': did you mean %s?"):format(name, M.known_elsewhere(name) or nearest(name))
end

-- ---- diffusers' configuration ----------------------------------------------------------------

-- diffusers' defaults for keys that the file omits.
local diffusers_defaults = { beta_start = 0.0001, beta_end = 0.02, beta_schedule = 'linear', steps_offset = 0 }

local function read_config(path)
  local f, problem = io.open(path, 'rb')
  if not f then error(problem, 0) end
  local text = f:read '*a'
  f:close()
  local config = require 'cr.json'.decode(text or '')
  if type(config) ~= 'table' or type(config._class_name) ~= 'string' then
    error(path .. " is not a scheduler configuration of diffusers, which is JSON with a _class_name", 0)
  end
  local module, classes = nil, {}
  each_name(function(_, m)
    local class = m.diffusers and m.diffusers.class
    if class and not classes[class] then
      classes[class], classes[#classes + 1] = true, class
    end
    if class == config._class_name then module = m end
  end)
  if not module then
    table.sort(classes)
    local like = M.known_elsewhere(config._class_name)
    error(('%s: the class %s is not supported; supported are %s%s'):format(path, config._class_name, table.concat(classes, ', '),
      like and ("; the most similar scheduler is '%s'"):format(like) or ''), 0)
  end
  local given, null = {}, require 'cjson'.null
  for _, part in ipairs { diffusers_defaults, module.diffusers.defaults or {}, config } do
    for k, v in pairs(part) do if v ~= null then given[k] = v end end
  end
  -- Values are translated to our names, so that further options may use either kind of name.
  return module, options_of.parse(path, module.options, given, true)
end

-- ---- loading ---------------------------------------------------------------------------------

-- Returns the module for a name or a path: {module, given, said, file, shown, diffusers}.
local function source_of(name)
  if type(name) ~= 'string' then
    local given = name
    if type(given) == 'table' and given.step ~= nil then given = function() return name end end
    local module = own_module('scheduler', 'a scheduler is a name, a file, a table with timesteps and a function step, or', given)
    return { module = module, shown = 'own', said = {}, given = {}, own = true }
  end
  if name:find '/' and require 'lfs'.attributes(name, 'mode') == 'directory' then name = name .. '/scheduler_config.json' end
  local source = { shown = name, said = {}, given = {} }
  if name:find '%.json$' then
    source.module, source.given = read_config(name)
    source.file, source.diffusers = name, true
    source.shown = ('%s (%s)'):format(source.module.name, name)
  elseif name:find '/' or name:find '%.lua$' then
    source.module, source.file, source.own = run_file(name), name, true
  else
    source.module, source.given, source.said = resolve(name)
    if not source.module then error(no_such(name), 0) end
  end
  return source
end

-- Returns the options of a scheduler's module, which always include `steps`.
local function spec_of(module)
  if not module.options or lists.find(module.options, 'steps') then return module.options end
  return options_of.join({ lists.find(options_of.schedule, 'steps') }, module.options)
end

-- Merges all given options to one table by our names. Later ones replace earlier ones.
local function gather(source, spec, parts)
  local all = {}
  for i, part in ipairs(parts) do
    local ok, values = true, part
    if spec then ok, values = pcall(diffusers.translate, spec, part) end
    if not ok then error(('%s: %s'):format(source.shown, values), 0) end
    for k, v in pairs(values) do
      if i > 1 and source.said[k] ~= nil and source.said[k] ~= v then
        error(('%s: the name sets %s = %s, but an option sets %s: leave one out'):format(source.shown, k, source.said[k],
          type(v) == 'table' and '[' .. table.concat(v, ',') .. ']' or tostring(v)), 0)
      end
      all[k] = v
    end
  end
  return all
end

-- A list determines the number of steps, so a different number of steps is an error.
local function count_listed(shown, all, parts)
  local list = all.timesteps or type(all.sigmas) == 'table' and all.sigmas
  if type(list) ~= 'table' then return end
  local count = all.timesteps and #list or #list - 1
  for _, part in ipairs(parts) do
    local steps = part.steps or part.num_inference_steps
    if (part.timesteps or type(part.sigmas) == 'table') and steps and steps ~= count then
      error(('%s: steps = %s and a list of %d contradict each other: leave steps out'):format(shown, tostring(steps), count), 0)
    end
  end
  all.steps = math.max(1, count)
end

-- For files without the option begin_index, the first steps are removed here.
local function without_first(shown, inner, left_out)
  if left_out == 0 or type(inner) ~= 'table' or type(inner.timesteps) ~= 'table' or inner.begin_index == left_out then return end
  if left_out >= #inner.timesteps then
    error(('%s: begin_index = %d skips all %d steps'):format(shown, left_out, #inner.timesteps), 0)
  end
  return { unpack(inner.timesteps, left_out + 1) }
end

--- Makes a scheduler.
---
---     local s = schedulers.load('euler:timesteps=[999,700,400,100]', { final_sigma = 'sigma_min' })
--- @param spec string|table|function a name (with suffixes, with :option=value), the path of a .lua file, or of
---   diffusers' scheduler_config.json or its folder: then it reproduces diffusers' numbers, mistakes included; or what
---   such a .lua file may return; or a scheduler that was made before
--- @param options table? by our names or diffusers': {steps = 20, ...}; options in the spec take precedence
--- @return Scheduler
function M.load(spec, options)
  local is_code = type(spec) == 'table' or type(spec) == 'function'
  if not is_code and (type(spec) ~= 'string' or not spec:find '%S') then
    error(("schedulers.load needs a string, a name such as 'ddim' or the path of a file, not %s"):format(
      spec == nil and 'nil' or type(spec) == 'string' and 'an empty string' or 'a ' .. type(spec)), 0)
  end
  local name, own = spec, {}
  if not is_code then name, own = specs.split('scheduler', spec) end
  local source = source_of(name)
  local module, shown = source.module, source.shown
  if options ~= nil and type(options) ~= 'table' then
    error(('%s: options must be a table such as { steps = 20 }, not a %s'):format(shown, type(options)), 0)
  end
  local list = spec_of(module)
  local all = gather(source, list, { source.given, options or {}, own })
  count_listed(shown, all, { options or {}, own })
  if all.spacing and not source.diffusers and (all.timesteps or type(all.sigmas) == 'table') then
    error(('%s: spacing = %s and listed steps contradict each other: leave one out'):format(shown, all.spacing), 0)
  end
  if module.formula_spreads and not source.diffusers and all.spacing and (all.sigmas or 'timesteps') ~= 'timesteps' then
    error(('%s: spacing = %s and sigmas = %s contradict each other: a formula spreads the noise levels itself'):format(shown,
      all.spacing, all.sigmas), 0)
  end
  local left_out = 0
  if not (list and lists.find(list, 'begin_index')) and all.begin_index ~= nil then
    left_out, all.begin_index = options_of.parse(shown, options_of.steps, { begin_index = all.begin_index }).begin_index, nil
  end
  if list then
    all = options_of.parse(shown, list, all)
  else
    if all.steps == nil then all.steps = 20 end
    options_of.parse(shown, options_of.schedule, { steps = all.steps })
    if left_out > 0 then all.begin_index = left_out end -- for a scheduler that reports its options
  end
  local ok, inner = pcall(module.new, all, { name = shown, diffusers = source.diffusers })
  if not ok then error(user_file.sentence(inner), 0) end
  return require 'cr.sampling.scheduler'.wrap(inner, { name = (source.file or is_code) and shown or spec, file = source.file, options = all,
    least_steps = module.least_steps, timesteps = without_first(shown, inner, left_out),
    begin_index = math.max(left_out, all.begin_index or 0) }, source.own)
end

--- Returns the first scheduler, in the order of names, that has an option, or nil.
--- @param option string
--- @return string?
function M.having(option)
  for _, name in ipairs(M.names()) do
    if lists.find((find(name)).options or {}, option) then return name end
  end
end

local function list_of_all()
  local lines = {}
  for _, file in ipairs(files.modules(FOLDER)) do
    local ok, module = pcall(module_of, file)
    local names = ok and lists.keys(module.variants or { [file] = true }) or { file }
    lines[#lines + 1] = ('%s\n    %s'):format(table.concat(names, ', '), ok and (module.help or '') or tostring(module))
  end
  return table.concat(lines, '\n')
end

--- Describes a scheduler and its options, or lists all schedulers without a name. An unknown name is an error.
--- @param name string?
--- @return string
function M.help(name)
  if name == nil then return list_of_all() end
  if type(name) ~= 'string' then error(('schedulers.help needs a name as text, not a %s'):format(type(name)), 0) end
  local source = source_of((specs.split('scheduler', name)))
  local module = source.module
  local lines = { ('%s: %s'):format(source.shown, module.help or 'no help in its file') }
  local spec = spec_of(module)
  if spec then lines[#lines + 1] = options_of.text(spec, source.given) end
  local theirs = module.diffusers
  if theirs and theirs.class then
    lines[#lines + 1] = ("  From diffusers' scheduler_config.json (%s) the numbers are diffusers'%s."):format(theirs.class,
      theirs.differs and ', mistakes included: ' .. theirs.differs or ' too')
  end
  local least = module.least_steps
  if type(least) == 'function' then least = least(source.given) end
  if least then lines[#lines + 1] = ('  It needs at least %d steps.'):format(least) end
  return table.concat(lines, '\n')
end

local name = arguments.one_of(M.names) -- load and help check the value themselves
return arguments.guard('schedulers.', M, { names = {}, load = { name, arguments.any }, having = { arguments.string }, help = { name },
  known_elsewhere = { arguments.string } })
