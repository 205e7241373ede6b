--- Schedulers by name or by file: schedulers.load('dpmpp_2m', { steps = 10 }).
--
-- Each file of this folder is a scheduler; there is no list of them besides. A file returns
--
--     { new = function(options) return { timesteps = {...}, step = function(self, m, t, x) ... end } end }
--
-- and may add `help` (a line), `options` (see cr.sampling.options), `variants` (names of ready-made
-- options; without them the file's own name), `aliases` and `diffusers` (whose class it is). A file
-- anywhere else serves as well, by its path. scripts/examples/my_scheduler.lua is one to copy.
--
-- A name may carry options: dpmpp_2m_karras, dpmpp_2m:order=3,spacing=trailing. diffusers'
-- scheduler_config.json is read where its path stands in place of a name.

local cr = require 'cr'
local errors = require 'cr.errors'
local files = require 'cr.files'
local options_of = require 'cr.sampling.options'

local M = {}

local FOLDER = cr.root .. '/lua/cr/schedulers'

-- What may be hung on any name whose scheduler has the option.
local suffixes = {
  karras = { 'sigmas', 'karras' }, exponential = { 'sigmas', 'exponential' }, beta = { 'sigmas', 'beta' },
  lu = { 'sigmas', 'lu' }, trailing = { 'spacing', 'trailing' }, leading = { 'spacing', 'leading' },
  linspace = { 'spacing', 'linspace' }, v = { 'prediction', 'v' },
}

-- ---- files -----------------------------------------------------------------------------------

local function run_file(path)
  local chunk, problem = loadfile(path)
  if not chunk then error('scheduler file ' .. problem, 0) end
  local ok, module = pcall(chunk)
  if not ok then error('scheduler file ' .. tostring(errors.is_failure(module) and module.message or module), 0) end
  if type(module) == 'function' then module = { new = module } end
  if type(module) ~= 'table' or type(module.new) ~= 'function' then
    error(('scheduler file %s must return a table with a function new(options), not %s'):format(path,
      type(module) == 'table' and 'a table without it' or type(module)), 0)
  end
  return module
end

local loaded = {} -- modules of FOLDER by file name

local function module_of(file)
  if not loaded[file] then
    local name = 'cr.schedulers.' .. file
    local module = package.loaded[name] or run_file(FOLDER .. '/' .. file .. '.lua')
    -- Files that require one another get the same table.
    package.loaded[name], loaded[file] = module, module
  end
  return loaded[file]
end

-- Calls visit(name, module, options, alias of) for every name; a file with a mistake is left out,
-- since it must not stand in the way of others.
local function each_name(visit)
  for _, file in ipairs(files.modules(FOLDER)) do
    local ok, module = pcall(module_of, file)
    if ok then
      for name, given in pairs(module.variants or { [file] = {} }) do visit(name, module, given) end
      for alias, name in pairs(module.aliases or {}) do visit(alias, module, (module.variants or {})[name] or {}, name) end
    end
  end
end

--- The names of all schedulers, sorted; those with suffixes (_karras, _trailing, ...) not counted.
--- @return string[]
function M.names()
  local list = {}
  each_name(function(name, _, _, alias) if not alias then list[#list + 1] = name end end)
  table.sort(list)
  return list
end

local function choice_of(module, option, value)
  for _, o in ipairs(module.options or {}) do
    if o[1] == option then
      for _, choice in ipairs(o.choices or {}) do if choice == value then return true end end
    end
  end
  return false
end

-- The names that are most like `word`, at most three.
local function nearest(word)
  local list = {}
  local function consider(name) list[#list + 1] = { name, errors.distance(word, name) } end
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
  -- The file of that name first: others need not be loaded, and a mistake in it is told.
  if name:find '^[%w_]+$' and name ~= 'init' and require 'lfs'.attributes(FOLDER .. '/' .. name .. '.lua') then
    module = module_of(name)
    return module, module.variants and module.variants[name] or {}
  end
  each_name(function(other, m, o) if other == name then module, given = m, o end end)
  return module, given
end

-- The module and options of a name with its suffixes.
local function resolve(name)
  local module, given = find(name)
  if module then return module, given end
  local base, suffix = name:match '^(.+)_(%l+)$'
  if base and suffixes[suffix] then
    module, given = resolve(base)
    if module then
      local option, value = unpack(suffixes[suffix])
      if not choice_of(module, option, value) then
        error(("scheduler %s has no option %s = %s, so there is no '%s'"):format(base, option, value, name), 0)
      end
      local joined = { [option] = value }
      for k, v in pairs(given) do if k ~= option then joined[k] = v end end
      return module, joined
    end
  end
end

-- ---- diffusers' configuration ----------------------------------------------------------------

-- What diffusers' classes have where the file is silent.
local diffusers_defaults = { beta_start = 0.0001, beta_end = 0.02, beta_schedule = 'linear', steps_offset = 0 }

local function read_config(path)
  local f, problem = io.open(path, 'rb')
  if not f then error(problem, 0) end
  local text = f:read '*a'
  f:close()
  local cjson = require 'cjson'
  local ok, config = pcall(cjson.decode, text or '')
  if not ok or type(config) ~= 'table' or type(config._class_name) ~= 'string' then
    error(path .. " is not a scheduler's configuration of diffusers: JSON with _class_name", 0)
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
    error(('%s: there is no %s here: %s'):format(path, config._class_name, table.concat(classes, ', ')), 0)
  end
  local given = {}
  for _, part in ipairs { diffusers_defaults, module.diffusers.defaults or {}, config } do
    for k, v in pairs(part) do if v ~= cjson.null then given[k] = v end end
  end
  -- As values by our names, so that options that are given besides may have either's.
  return module, options_of.parse(path, module.options, given, true)
end

-- ---- what load() returns ---------------------------------------------------------------------

--- @class Scheduler
--- @field name string as it was asked for
--- @field file string? its path, if it came from one
--- @field options table all options with their values
--- @field timesteps number[] what the network is asked about, in order
--- @field init_noise_sigma number what the first noise is multiplied by (1)
--- @field inner table what the file made
local Scheduler = {}
function Scheduler:__index(key)
  local own = Scheduler[key]
  if own ~= nil then return own end
  return rawget(self, 'inner')[key]
end

--- The sample to begin with.
--- @param noise Tensor standard normal
--- @return Tensor
function Scheduler:start(noise)
  return self.init_noise_sigma == 1 and noise or noise * self.init_noise_sigma
end

--- One step: x at the next timestep.
--- @param prediction Tensor what the network gave for x at t
--- @param t number the next of self.timesteps
--- @param x Tensor
--- @param noise Tensor? fresh normal numbers for methods that add some, instead of drawing them
--- @return Tensor of x's shape and dtype
function Scheduler:step(prediction, t, x, noise)
  local y = self.inner:step(prediction, t, x, noise)
  local problem
  if not cr.is_tensor(y) then
    problem = y == nil and 'nothing' or 'a ' .. type(y)
  else
    local got, wanted = table.concat(y.shape, ' '), table.concat(x.shape, ' ')
    if got ~= wanted then
      problem = ('[%s]'):format(got)
    elseif y.dtype ~= x.dtype or y.device ~= x.device then
      problem = ('%s on %s'):format(y.dtype, y.device)
    else
      return y
    end
  end
  error(('scheduler %s: step returned %s at timestep %s; it must return the next sample, %s on %s [%s]'):format(self.name,
    problem, tostring(t), x.dtype, x.device, table.concat(x.shape, ' ')), 0)
end

--- Forgets a window whose steps were not all made; after the last step that is so by itself.
function Scheduler:reset()
  if self.inner.reset then self.inner:reset() end
end

--- Draws fresh noise with this generator from now on.
--- @param generator Generator
function Scheduler:use(generator) self.inner.generator = generator end

-- Whether JSON can hold it.
local function is_plain(v)
  if type(v) == 'table' then
    for _, item in ipairs(v) do if not is_plain(item) then return false end end
    return #v > 0
  end
  return type(v) == 'string' or type(v) == 'boolean' or type(v) == 'number' and v - v == 0
end

--- Name and options for reports: plain values and lists only.
--- @return table {name, file, options}
function Scheduler:settings()
  local list = {}
  for k, v in pairs(self.options) do if is_plain(v) then list[k] = v end end
  return { name = self.name, file = rawget(self, 'file'), options = list }
end

local function wrap(inner, fields)
  local shown = fields.name
  local function bad(text) error(('scheduler %s: new() %s'):format(shown, text), 0) end
  if type(inner) ~= 'table' then bad('must return a table with timesteps and step, not ' .. type(inner)) end
  if type(inner.step) ~= 'function' then bad 'returned a table without a function step' end
  if type(inner.timesteps) ~= 'table' or #inner.timesteps == 0 then bad 'returned a table without timesteps' end
  for i, t in ipairs(inner.timesteps) do
    if type(t) ~= 'number' or t ~= t or math.abs(t) == math.huge then
      bad(('returned timesteps of which number %d is %s'):format(i, tostring(t)))
    end
  end
  fields.inner, fields.options = inner, inner.options or fields.options
  fields.init_noise_sigma = inner.init_noise_sigma or 1
  return setmetatable(fields, Scheduler)
end

-- 'NAME:key=value,key=value' as name and options; a colon separates too, for lists of specs.
local function split(spec)
  local name, tail = spec:match '^(.-):([%a_][%w_]*=.*)$'
  if not name then return spec, {} end
  local given = {}
  for part in (tail .. ','):gmatch '(.-)[,:]' do
    local key, text = part:match '^%s*([%a_][%w_]*)%s*=%s*(.-)%s*$'
    if not key then error(("scheduler '%s': '%s' is not of the form option=value"):format(spec, part), 0) end
    local value = tonumber(text)
    if text == 'true' or text == 'false' then value = text == 'true' end
    if value == nil then value = text end
    given[key] = value
  end
  return name, given
end

--- Makes a scheduler.
--- @param spec string a name (with suffixes, with :option=value), the path of a .lua file, or of
---   diffusers' scheduler_config.json or its folder
--- @param options table? by our names or diffusers': {steps = 20, ...}; those written in the spec win
--- @return Scheduler
function M.load(spec, options)
  local name, own = split(spec)
  local module, given, file
  if name:find '/' and require 'lfs'.attributes(name, 'mode') == 'directory' then name = name .. '/scheduler_config.json' end
  if name:find '%.json$' then
    module, given = read_config(name)
    file = name
  elseif name:find '/' or name:find '%.lua$' then
    if not require 'lfs'.attributes(name) then error(('there is no scheduler file %s'):format(name), 0) end
    module, given, file = run_file(name), {}, name
  else
    module, given = resolve(name)
    if not module then error(("there is no scheduler '%s': did you mean %s?"):format(name, nearest(name)), 0) end
  end
  local shown = file and file:find '%.json$' and ('%s (%s)'):format(module.name, file) or name
  local all = {}
  for _, part in ipairs { given, options or {}, own } do
    -- By one name each, so that what comes later replaces what came before.
    local ok, values = true, part
    if module.options then ok, values = pcall(options_of.translate, module.options, part) end
    if not ok then error(('%s: %s'):format(shown, values), 0) end
    for k, v in pairs(values) do all[k] = v end
  end
  if module.options then
    all = options_of.parse(shown, module.options, all)
  else
    all.steps = all.steps or 20
    options_of.parse(shown, options_of.schedule, { steps = all.steps })
  end
  local inner = module.new(all, { name = shown })
  return wrap(inner, { name = file and shown or spec, file = file, options = all })
end

--- What a scheduler is, and its options, as text; without a name the list of all.
--- @param name string?
--- @return string text, boolean found
function M.help(name)
  if not name then
    local lines = {}
    for _, file in ipairs(files.modules(FOLDER)) do
      local ok, module = pcall(module_of, file)
      if ok then
        local names = {}
        for variant in pairs(module.variants or { [file] = true }) do names[#names + 1] = variant end
        table.sort(names)
        lines[#lines + 1] = ('%s\n    %s'):format(table.concat(names, ', '), module.help or '')
      else
        lines[#lines + 1] = ('%s\n    %s'):format(file, tostring(module))
      end
    end
    return table.concat(lines, '\n'), true
  end
  local plain = split(name)
  local ok, module, given
  if plain:find '/' or plain:find '%.lua$' then
    ok, module = pcall(run_file, plain)
    given = {}
  else
    ok, module, given = pcall(resolve, plain)
  end
  if not ok then return module, false end
  if not module then return ("there is no scheduler '%s': did you mean %s?"):format(plain, nearest(plain)), false end
  local lines = { ('%s: %s'):format(plain, module.help or 'no help in its file') }
  if module.options then lines[#lines + 1] = options_of.text(module.options, given) end
  return table.concat(lines, '\n'), true
end

return M
