--- Every operation of the table on the CPU, compared with float64 arithmetic; names and help.
local t = require 'tests.support.tap'
local base = require 'cr.ffi'
local cr = require 'cr'
local help = require 'cr.tools.help'
local trace = require 'cr.tools.trace'

local C = base.C

require 'tests.support.operations'.run(t.test, 'cpu')

local header = assert(io.open(cr.root .. '/core/crescent.h', 'rb')):read '*a'

-- The enumerators of crescent.h up to the one that counts them: a list of {name = 'EXP', value = 2}.
local function enumerators(count)
  local block, list = header:sub(1, header:find(count, 1, true) - 1):match '.*enum {(.*)', {}
  block = block:gsub('/%*.-%*/', '')
  for name in block:gmatch 'CR_([%w_]+)' do list[#list + 1] = { name = name, value = tonumber(C['CR_' .. name]) } end
  return list
end

-- Names that differ from the enumerator's.
local own_names = {
  NOT = 'logical_not', MAX = 'maximum', MIN = 'minimum', AMAX = 'max', AMIN = 'min', RNG_TORCH_CPU = 'torch-cpu',
  RNG_TORCH_CUDA = 'torch-cuda',
}

t.test('names equal those of the enumerators', function()
  for count, names in pairs {
    CR_DTYPES = base.dtypes, CR_UNARY_OPS = base.unary, CR_BINARY_OPS = base.binary, CR_REDUCE_OPS = base.reduce,
    CR_ACTS = base.acts, CR_RESIZE_METHODS = base.resize_methods, CR_RNG_KINDS = base.generator_kinds,
  } do
    local list = enumerators(count)
    t.equal(#list, tonumber(C[count]), count)
    for _, e in ipairs(list) do
      local plain = own_names[e.name] or e.name:lower():gsub('^act_', ''):gsub('^rng_', '')
      t.equal(names[e.value], plain, 'the name of CR_' .. e.name)
      t.equal(names[plain], e.value, plain)
    end
  end
  for _, name_of in ipairs { C.cr_unary_name, C.cr_binary_name, C.cr_reduce_name, C.cr_act_name,
    C.cr_resize_method_name, C.cr_generator_kind_name } do
    t.ok(name_of(-1) == nil and name_of(1000) == nil, 'numbers of no operation have no name')
  end
end)

t.test('each operation has help and its name in a trace', function()
  local x, y = cr.ones(2, 2), cr.ones(2)
  for _, names in ipairs { base.unary, base.binary, base.reduce } do
    local count = names == base.unary and 'CR_UNARY_OPS' or names == base.binary and 'CR_BINARY_OPS' or 'CR_REDUCE_OPS'
    local comments = base.comments_of(names, count)
    for op = 0, tonumber(C[count]) - 1 do
      local name = names[op]
      t.ok(comments[name], ('%s has no comment in crescent.h'):format(name))
      local text, found = help.text('x:' .. name)
      t.ok(found and text:find('tensor:' .. name .. '(', 1, true) and text:find(comments[name] or '?', 1, true), text)
      local events = trace.run(function()
        cr.scope(function()
          local given = name == 'logical_not' and x:gt(0) or x
          if names == base.binary then
            given[name](given, y)
            given[name](given, 2)
          else
            given[name](given)
          end
        end)
      end)
      local seen = 0
      for _, e in ipairs(events) do seen = seen + (e.name == name and 1 or 0) end
      t.equal(seen, names == base.binary and 2 or 1, name .. ' in a trace')
    end
  end
end)

t.test('invalid operation numbers are refused', function()
  local out, x = cr.zeros(2), cr.ones(2)
  local function refused(rc, text)
    t.equal(rc, C.CR_EINVAL, text)
    local message = require 'ffi'.string(C.cr_last_error())
    t.ok(message:find(text, 1, true), message)
  end
  refused(C.cr_unary(out.c, C.CR_UNARY_OPS, x.c), 'unary: unknown operation')
  refused(C.cr_binary(out.c, -1, x.c, x.c), 'binary: unknown operation -1')
  refused(C.cr_binary_scalar(out.c, C.CR_BINARY_OPS, x.c, 1, 0), 'binary: unknown operation')
  refused(C.cr_reduce(out.c, C.CR_REDUCE_OPS, x.c, 0, 0), 'reduce: unknown operation')
  local w = cr.ones(2, 2)
  refused(C.cr_linear(out.c, x.c, w.c, nil, nil, C.CR_ACTS), 'linear: there is no activation')
end)

t.done()
