--- The annotations of lua/ that lua-language-server reads: what it completes is what there is. Its stubs in lua/types/ and the
--- functions written in the sources are compared with the live modules, and every type that an annotation names is declared.

local base = require 'cr.ffi'
local cr = require 'cr'
local stubs = require 'tests.support.stubs'
local t = require 'tests.support.tap'

local ROOMS = { 'lua', 'models', 'scripts', 'tests' }

local function read(path)
  local f = assert(io.open(base.root .. '/' .. path, 'rb'))
  local text = f:read '*a'
  f:close()
  return text
end

local function files_of(folder)
  local list = {}
  local found = io.popen(("cd '%s' && find %s -name '*.lua' -not -path 'models/fetched/*' | sort"):format(base.root, folder))
  for path in found:lines() do list[#list + 1] = path end
  found:close()
  return list
end

-- Every line of an annotation, as fn(path, line number, indent and dashes, tag, rest).
local function each_annotation(rooms, fn)
  for _, room in ipairs(rooms) do
    for _, path in ipairs(files_of(room)) do
      local number = 0
      for line in read(path):gmatch '([^\n]*)\n' do
        number = number + 1
        local dashes, tag, rest = line:match '^%s*(%-%-%-%s*)@(%a+)%s*(.*)$'
        if tag then fn(path, number, dashes, tag, rest) end
      end
    end
  end
end

-- The names after `function OWNER.`, `function OWNER:` and `OWNER.NAME =` in files of a folder, into a set; a name twice is an error.
local function declared(folder, owner, into)
  for _, path in ipairs(files_of(folder)) do
    for line in read(path):gmatch '[^\n]+' do
      local name = line:match('^%s*function ' .. owner .. '[.:]([%w_]+)') or line:match('^' .. owner .. '%.([%w_]+) = ')
      if name then
        if into[name] then error(('%s is declared in %s and in %s'):format(name, path, into[name]), 0) end
        into[name] = path
      end
    end
  end
  return into
end

-- Both sets of names are the same.
local function same(what, live, known)
  for name in pairs(live) do t.ok(known[name], ('%s.%s has no annotation: run `make docs`'):format(what, name)) end
  for name in pairs(known) do t.ok(live[name] ~= nil, ('%s.%s is annotated and not there'):format(what, name)) end
end

local function keys(list)
  local set = {}
  for name, value in pairs(list) do
    if type(value) == 'function' then set[name] = true end
  end
  return set
end

t.test('tensors: methods of the sources and of the stubs are the live ones', function()
  local known = declared('lua/types', 'Tensor', {})
  t.ok(known.add and known.add_ and known.exp and known.sum, 'the stubs hold the operations')
  declared('lua/cr/tensor', 'methods', known)
  same('Tensor', keys(require 'cr.tensor'.methods), known)
end)

t.test('tensors: fields that are annotated can be read', function()
  local fields, x = 0, cr.ones(2, 3)
  for name in read 'lua/cr/tensor/init.lua':match '%-%-%- @class Tensor\n(.-)\nlocal':gmatch '@field ([%w_]+)' do
    fields = fields + 1
    t.ok(x[name] ~= nil, name)
  end
  t.ok(fields >= 5, 'shape, dtype, device, ndim, T')
end)

t.test('nn: functions of the sources are the live ones', function()
  same('nn', keys(require 'cr.nn'), declared('lua/cr/nn', 'nn', {}))
end)

t.test('cr: functions of lua/cr/init.lua and of the stubs are the live ones', function()
  local text = read 'lua/types/cr.lua'
  local known = {}
  for name, expression in text:gmatch '\ncr%.([%w_]+) = ([^\n]+)' do
    known[name] = true
    local value = assert(loadstring('return ' .. expression))()
    t.ok(cr[name] == value, ('cr.%s is %s'):format(name, expression))
  end
  local listed = {}
  for name in pairs(stubs.functions()) do listed[name] = true end
  same('cr (stubs)', listed, known)
  for name in read 'lua/cr/init.lua':gmatch '\nfunction cr%.([%w_]+)' do known[name] = true end
  for name in read 'lua/cr/init.lua':match '\nlocal cr = {(.-)\n}':gmatch '([%w_]+) = ' do known[name] = true end
  local live = {}
  for name in pairs(cr) do live[name] = true end
  for name in pairs(listed) do live[name] = true end
  same('cr', live, known)
end)

t.test('annotations are written in one way: three dashes, a space, the tag', function()
  local wrong, seen = {}, 0
  each_annotation(ROOMS, function(path, number, dashes)
    seen = seen + 1
    if dashes ~= '--- ' then wrong[#wrong + 1] = path .. ':' .. number end
  end)
  t.ok(seen > 1000, 'annotations are found')
  t.equal(table.concat(wrong, '\n'), '')
end)

-- Types of the language server, and those of LuaJIT's FFI and of luv that it knows.
local BUILT_IN = {}
for name in ('nil any boolean string number integer function table thread userdata lightuserdata self true false fun '
  .. 'ffi.cdata* ffi.ctype* uv'):gmatch '%S+' do BUILT_IN[name] = true end

-- The type at the beginning of an annotation: up to a space outside of brackets, unless that stands around a | or after a colon.
local function type_of(text)
  local depth, at = 0, 1
  while at <= #text do
    local c = text:sub(at, at)
    if c:find '[%(%{%[<]' then depth = depth + 1 end
    if c:find '[%)%}%]>]' then depth = depth - 1 end
    if c == ' ' and depth <= 0 and not text:sub(1, at - 1):find '[:,|]$' and not text:sub(at + 1):find '^|' then break end
    at = at + 1
  end
  return text:sub(1, at - 1)
end

-- The names in a type that stand for types: not those of parameters and fields, which a colon follows, nor texts in quotes.
local function names_in(text, fn)
  local plain = text:gsub("'[^']*'", ''):gsub('"[^"]*"', ''):gsub('[%w_]+%??%s*:', '')
  for name in plain:gmatch '[%a_][%w_.]*%*?' do fn(name) end
end

t.test('every type that an annotation names is declared', function()
  local classes = {}
  each_annotation(ROOMS, function(_, _, _, tag, rest)
    if tag == 'class' or tag == 'alias' then classes[rest:match '^[%w_.*]+'] = true end
  end)
  t.ok(classes.Tensor and classes.Scheduler, 'classes are found')
  local wrong = {}
  each_annotation(ROOMS, function(path, number, _, tag, rest)
    local of = tag == 'return' and type_of(rest)
      or (tag == 'param' or tag == 'field') and type_of(rest:match '^%S+%s+(.*)$' or '')
      or tag == 'class' and (rest:match '^[%w_.]+:%s*(%S+)' or '')
    if not of then return end
    if of == '' and tag ~= 'class' then wrong[#wrong + 1] = ('%s:%d: @%s has no type'):format(path, number, tag) end
    names_in(of, function(name)
      -- A single capital is a generic type.
      if not classes[name] and not BUILT_IN[name] and not name:find '^%u$' and name ~= '...' then
        wrong[#wrong + 1] = ('%s:%d: there is no type %s'):format(path, number, name)
      end
    end)
  end)
  t.equal(table.concat(wrong, '\n'), '')
end)

t.done()
