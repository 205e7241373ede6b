--- Options of scripts, over lua-argparse.
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
--       },
--       positional = { { 'in', 'file', help = '...' }, { 'more', 'file', optional = true, many = true } },
--     })
--     args.video, args.steps, args.no_label (dashes become underscores)
--
-- argparse parses and knows the usage; added here: types and ranges, one line of help an option
-- with unit and default, negative numbers as values, and errors as one sentence: exit code 2 for an
-- unknown option or a value of the wrong type, 1 for the rest. A repeated option's last value wins.

local errors = require 'cr.errors'

local M = { fail = errors.fail, nearest = errors.nearest }

-- text -> value, or nil and what was wanted
local types = {
  int = function(text)
    local n = text:match '^[+-]?%d+$' and tonumber((text:gsub('^%+', '')))
    if n and math.abs(n) <= 2 ^ 53 then return n end
    return nil, 'a whole number'
  end,
  number = function(text)
    -- tonumber alone would also take hexadecimal, nan and inf.
    local n = text:match '^[+-]?[%d.]+[eE]?[+-]?%d*$' and tonumber((text:gsub('^%+', '')))
    if n then return n end
    return nil, 'a number'
  end,
  file = function(text)
    if text == '' then return nil, 'the name of a file' end
    return text
  end,
  string = function(text) return text end,
}

local metavars = { int = 'N', number = 'X', file = 'FILE', string = 'TEXT', choice = 'NAME' }

local function either(choices) return table.concat(choices, ', '):gsub(', ([^,]*)$', ' or %1') end

local function key_of(name) return (name:gsub('^%-+', ''):gsub('-', '_')) end

-- Raised through argparse as its error, with our code.
local function wrong(spec, text, wanted, code)
  errors.fail(("%s: '%s' is not %s"):format(spec[1], text, wanted), code)
end

local function converter(spec)
  local kind = spec[2] or 'string'
  if kind == 'choice' then
    return function(text)
      for _, choice in ipairs(spec.choices) do
        if text == choice then return text end
      end
      wrong(spec, text, either(spec.choices), 2)
    end
  end
  local convert = type(kind) == 'function' and kind or types[kind]
  if not convert then error(('option %s: unknown type %s'):format(spec[1], tostring(kind))) end
  return function(text)
    local value, wanted = convert(text)
    if value == nil then wrong(spec, text, wanted or 'a valid value', 2) end
    if spec.min and value < spec.min then
      errors.fail(('%s: %s is less than %s'):format(spec[1], text, spec.min))
    elseif spec.max and value > spec.max then
      errors.fail(('%s: %s is more than %s'):format(spec[1], text, spec.max))
    end
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

-- `--seed -1`: argparse would take -1 for an option.
local function join_negative_numbers(arg, takes_value)
  local out, i = {}, 1
  while i <= #arg do
    local word, value = arg[i], arg[i + 1]
    if word == '--' then
      for k = i, #arg do out[#out + 1] = arg[k] end
      break
    elseif takes_value[word] and value and value:find '^%-[%d.]' then
      out[#out + 1] = word .. '=' .. value
      i = i + 1
    else
      out[#out + 1] = word
    end
    i = i + 1
  end
  return out
end

local function check_names(arg, known, takes_value)
  local names = {}
  for name in pairs(known) do names[#names + 1] = name end
  local i = 1
  while i <= #arg do
    local word = arg[i]
    if word == '--' then return end
    local name = word:match '^(%-%-[^=]*)' or (word:find '^%-.' and word) or nil
    if name and not known[name] then
      errors.fail(("unknown option '%s': did you mean '%s'?"):format(name, errors.nearest(name, names)), 2)
    end
    if name and takes_value[name] and name == word then
      local value = arg[i + 1]
      if not value or known[value:match '^[^=]*'] then errors.fail(name .. ' needs a value') end
      i = i + 1
    end
    i = i + 1
  end
end

local function metavar(option) return option.metavar or metavars[option[2]] or 'VALUE' end

-- What must be given, and that there is more: argparse would list every option.
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

local function fail(...) M.fail((...):format(select(2, ...))) end

--- What `--device NAME` stands for; one sentence if it is no device, or one that cannot be used.
--- @param name string 'auto', 'cpu', 'cuda' or 'cuda:N'
--- @return string 'cpu', or the card
function M.device(name)
  if name == 'cpu' then return 'cpu' end
  if name ~= 'auto' and not name:find '^cuda:?%d*$' then
    fail("--device: '%s' is not auto, cpu, cuda or cuda:N", name)
  end
  local available, why = require 'cr.cuda'.available()
  if available then return name == 'auto' and 'cuda' or name end
  if name == 'auto' then return 'cpu' end
  fail('--device %s: %s', name, why)
end

--- Fails unless a file can be written at `path`: its folder is there, and it is none itself.
--- @param option string for the message: '--out'
function M.check_folder(option, path)
  local lfs = require 'lfs'
  local folder = path:match '^(.*)/[^/]*$' or '.'
  if folder == '' then folder = '/' end
  if lfs.attributes(folder, 'mode') ~= 'directory' then
    fail('%s: the folder %s does not exist', option, folder)
  end
  if lfs.attributes(path, 'mode') == 'directory' then fail('%s: %s is a folder', option, path) end
end

--- Fails unless `path` is a file with something in it.
--- @param option string? for the message: '--video'
function M.check_readable(option, path)
  option = option and option .. ': ' or ''
  local f, reason = io.open(path, 'rb')
  if not f then fail('%s%s', option, reason) end
  local some = f:read(1)
  f:close()
  if not some then fail('%s%s is empty, or a folder', option, path) end
end

--- Parses a script's arguments, or prints its help and ends.
--- @param arg string[]
--- @param spec table {name=, summary=, options={...}, positional={...}, epilog=}: see the top of cli.lua
--- @return table<string, any>
function M.parse(arg, spec)
  local parser = load_argparse()('crescent ' .. spec.name, spec.summary, spec.epilog)
  parser:add_help(false)
  parser:usage(usage(spec)):help_max_width(100):help_description_margin(28)
  local known, takes_value = { ['--help'] = true, ['-h'] = true }, {}

  for _, option in ipairs(spec.options or {}) do
    local name = option[1]
    known[name] = true
    if option[2] == 'flag' then
      parser:flag(name):target(key_of(name)):description(describe(option)):action('store_true')
      if option.negatable then
        known['--no-' .. name:sub(3)] = true
        parser:flag('--no-' .. name:sub(3)):target(key_of(name)):action('store_false')
            :description('the opposite of ' .. name)
      end
    else
      takes_value[name] = true
      parser:option(name):target(key_of(name)):description(describe(option)):convert(converter(option))
          :argname(metavar(option))
    end
  end
  for _, argument in ipairs(spec.positional or {}) do
    local args = argument.many and (argument.optional and '*' or '+') or (argument.optional and '?' or 1)
    parser:argument(argument[1]):target(key_of(argument[1])):description(describe(argument))
        :convert(converter(argument)):args(args)
  end
  parser:flag '-h --help':description 'print this and end':action(function()
    io.stdout:write(parser:get_help(), '\n')
    os.exit(0, true)
  end)

  function parser.error(_, message) errors.fail((message:gsub('\n.*', ''))) end

  arg = join_negative_numbers(arg, takes_value)
  check_names(arg, known, takes_value)
  local values = parser:parse(arg)
  for _, option in ipairs(spec.options or {}) do
    local key = key_of(option[1])
    if values[key] == nil then
      if option.required then
        errors.fail(option[1] .. ' is missing: ' .. (option.help or 'it is required'))
      end
      values[key] = option.default
      if option[2] == 'flag' and not option.negatable and values[key] == nil then values[key] = false end
    end
  end
  return values
end

return M
