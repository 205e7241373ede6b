--- Parses options of scripts, on top of lua-argparse.
--
--     local args = cli.parse(arg, {
--       name = 'lipsync', summary = 'Makes a face say what a voice says.',
--       options = {
--         { '--video', 'file', required = true, help = 'the face' },
--         { '--steps', 'int', default = 20, min = 1, help = 'denoising steps' },
--         { '--start', 'number', default = 0, unit = 'seconds', help = 'where to begin' },
--         { '--paste', 'choice', default = 'region', choices = { 'region', 'reference' }, help = '...' },
--         { '--quiet', 'flag', help = 'no progress' },
--         { '--smooth', 'flag', negatable = true, help = '...' },   -- also --no-smooth; nil: not given
--         { '--in', 'string', many = true, help = '...' },          -- repeated; a list, perhaps empty
--       },
--       positional = { { 'in', 'file', help = '...' }, { 'more', 'file', optional = true, many = true } },
--       groups = { { 'Files', 'input', 'output' } },  -- titles in the help for options of these stages; others follow
--     })
--     args.video, args.steps, args.no_label (dashes become underscores)
--
-- Options are rows of cr.schema, with dashes before their names; `settings:options()` returns those of a schema.
-- argparse parses the words. This file adds types and ranges, one line of help for each option with unit and default,
-- values that begin with a dash, and errors as one sentence. The exit status is 2 for an unknown option or a value of
-- the wrong type, and 1 for other errors. If an option is repeated, the last value counts, unless the option takes
-- many, or one for each person.

local errors = require 'cr.errors'
local files = require 'cr.files'
local schema = require 'cr.schema'

local M = {
  fail = errors.fail, failf = errors.failf, nearest = errors.nearest,
  check_folder = files.check_folder, check_readable = files.check_readable,
}

local function key_of(spec) return spec.key or (spec[1]:gsub('^%-+', ''):gsub('-', '_')) end

-- Converters raise our own errors, which argparse passes on.
local function converter(spec)
  return function(text)
    local value, problem, code = schema.read(spec, text)
    if value == nil then errors.fail(('%s: %s'):format(spec[1], problem), code) end
    return value
  end
end

local function describe(spec)
  local notes = {}
  if spec.choices then notes[1] = table.concat(spec.choices, '|') end
  if spec.unit then notes[#notes + 1] = spec.unit end
  if spec.required then
    notes[#notes + 1] = 'required'
  elseif spec.default_text or (spec.default ~= nil and spec[2] ~= 'flag') then
    notes[#notes + 1] = 'default ' .. (spec.default_text or tostring(spec.default))
  end
  return (spec.help or '') .. (#notes > 0 and ' (' .. table.concat(notes, ', ') .. ')' or '')
end

-- Handles `--seed -1` and `--video -x.mp4`: the word after an option that takes a value is its value, unless it is
-- another option or begins with two dashes (write `--video=--x.mp4` then). argparse would take such a word for an
-- option.
local function join_values(arg, known, takes_value)
  local out, i = {}, 1
  while i <= #arg do
    local word, value = arg[i], arg[i + 1]
    if word == '--' then
      for k = i, #arg do out[#out + 1] = arg[k] end
      break
    elseif takes_value[word] and value and value:find '^%-[^%-]' and not known[value] then
      out[#out + 1] = word .. '=' .. value
      i = i + 1
    else
      out[#out + 1] = word
    end
    i = i + 1
  end
  return out
end

local function check_names(arg, known, takes_value, options)
  local names = {}
  for name in pairs(known) do names[#names + 1] = name end
  local i = 1
  while i <= #arg do
    local word = arg[i]
    if word == '--' then return end
    local name = word:match '^(%-%-[^=]*)' or (word:find '^%-.' and word) or nil
    if name and not known[name] then
      local setting = name:gsub('^%-+', ''):gsub('%-', '_')
      errors.fail(("unknown option '%s': %s"):format(name, schema.unknown(options or {}, setting, name, names)), 2)
    end
    if name and takes_value[name] and name == word then
      local value = arg[i + 1]
      if not value or value == '--' or known[value:match '^[^=]*'] then errors.fail(name .. ' needs a value') end
      if value:find '^%-%-' then
        errors.fail(("%s needs a value before '%s' (or is that the value? then %s=%s)"):format(name, value, name, value))
      end
      i = i + 1
    end
    i = i + 1
  end
end

local function metavar(option)
  local kind = type(option[2]) == 'table' and option[2] or schema.types[option[2]]
  return option.metavar or kind and kind.metavar or 'VALUE'
end

-- Returns a short usage line with the required arguments only, since argparse would list every option.
local function usage(spec)
  local words, more = { 'Usage: crescent ' .. spec.name }, false
  for _, option in ipairs(spec.options or {}) do
    if option.required then
      words[#words + 1] = option[1] .. ' ' .. metavar(option)
    else
      more = true
    end
  end
  if more then words[#words + 1] = '[options]' end
  for _, argument in ipairs(spec.positional or {}) do
    local word = argument[1]:upper() .. (argument.many and ' ...' or '')
    words[#words + 1] = argument.optional and '[' .. word .. ']' or word
  end
  return table.concat(words, ' ')
end

local function load_argparse()
  local ok, argparse = pcall(require, 'argparse')
  if not ok then errors.fail 'lua-argparse is missing: apt-get install lua-argparse' end
  return argparse
end

--- Joins lists of options.
function M.join(...)
  local all = {}
  for i = 1, select('#', ...) do
    for _, option in ipairs((select(i, ...))) do all[#all + 1] = option end
  end
  return all
end

--- Resolves `--device NAME`; see cr.cuda.choose.
function M.device(name)
  if name == 'cpu' then return 'cpu' end
  return require 'cr.cuda'.choose(name, '--device')
end

-- Returns the first word that is neither an option nor one of the arguments that a command takes.
local function one_too_many(arg, positional, takes_value)
  local place = 0
  for i, word in ipairs(arg) do
    if not takes_value[arg[i - 1]] and (word:sub(1, 1) ~= '-' or word == '-') then
      place = place + 1
      if place > #positional then return word end
    end
  end
end

local FIELDS = { 'name', 'summary', 'options', 'positional', 'epilog', 'groups' }
for _, field in ipairs(FIELDS) do FIELDS[field] = true end

--- Parses the arguments of a script, or prints its help and exits.
--- @param arg string[]
--- @param spec table {name=, summary=, options={...}, positional={...}, epilog=, groups={...}}: see the top of cli.lua
--- @return table<string, any>
function M.parse(arg, spec)
  for key in pairs(spec) do
    if not FIELDS[key] then error(("cli.parse: there is no field '%s', only %s"):format(key, table.concat(FIELDS, ', ')), 2) end
  end
  local parser = load_argparse()('crescent ' .. spec.name, spec.summary, spec.epilog)
  parser:add_help(false)
  parser:usage(usage(spec)):help_max_width(100):help_description_margin(28)
  local known, takes_value, of_stage = { ['--help'] = true, ['-h'] = true }, {}, {}

  for _, option in ipairs(spec.options or {}) do
    local name, key, stage = option[1], key_of(option), option.stage or ''
    local list = of_stage[stage] or {}
    known[name], of_stage[stage] = true, list
    if option[2] == 'flag' then
      list[#list + 1] = parser:flag(name):target(key):description(describe(option))
          :action(option.store == false and 'store_false' or 'store_true')
      if option.negatable then
        known['--no-' .. name:sub(3)] = true
        list[#list + 1] = parser:flag('--no-' .. name:sub(3)):target(key):action('store_false')
            :description('the opposite of ' .. name)
      end
    else
      takes_value[name] = true
      local added = parser:option(name):target(key):description(describe(option)):convert(converter(option))
          :argname(metavar(option))
      if option.per_person or option.many then added:count('*'):action('append') end
      list[#list + 1] = added
    end
  end
  for _, group in ipairs(spec.groups or {}) do
    local elements = {}
    for i = 2, #group do
      for _, element in ipairs(of_stage[group[i]] or {}) do elements[#elements + 1] = element end
    end
    if #elements > 0 then parser:group(group[1], unpack(elements)) end
  end
  for _, argument in ipairs(spec.positional or {}) do
    local args = argument.many and (argument.optional and '*' or '+') or (argument.optional and '?' or 1)
    parser:argument(argument[1]):target(key_of(argument)):description(describe(argument))
        :convert(converter(argument)):args(args)
  end
  parser:flag '-h --help':description 'print this help and exit':action(function()
    io.stdout:write(parser:get_help(), '\n')
    os.exit(0, true)
  end)

  arg = join_values(arg, known, takes_value)
  function parser.error(_, message)
    local extra = message:find '^too many arguments' and one_too_many(arg, spec.positional or {}, takes_value)
    errors.fail(extra and ("'%s' is one argument too many: --help says what is taken"):format(extra) or (message:gsub('\n.*', '')))
  end

  check_names(arg, known, takes_value, spec.options)
  local values = parser:parse(arg)
  for _, option in ipairs(spec.options or {}) do
    local key = key_of(option)
    if option.per_person and values[key] and #values[key] < 2 then values[key] = values[key][1] end
    if values[key] == nil then
      if option.required then
        errors.fail(option[1] .. ' is missing: ' .. (option.help or 'it is required'))
      end
      values[key] = option.default
      if option[2] == 'flag' and not option.negatable and not option.unset and values[key] == nil then values[key] = false end
    end
  end
  return values
end

return M
