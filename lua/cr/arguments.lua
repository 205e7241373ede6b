--- Checks the arguments of public functions. One row of kinds declares what a function takes.
--
--     return arguments.guard('', image, {
--       erode = { kinds.alive, arguments.integer, arguments.integer },
--     })
--
-- A wrong argument, an unknown option and a surplus argument each raise one sentence at the caller's position:
-- "erode: before: a whole number is needed, not 'a'". When all arguments are valid, a check costs one function call
-- for each argument.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local errors = require 'cr.errors'

local M = {}

local LARGEST = 2 ^ 31 - 1 -- of C's int32_t
local tobit = bit.tobit

--- @class Kind
--- @field what string 'a number'
--- @field test fun(v: any): boolean
--- @field some function? only in a kind made by `maybe`: the test for a value that is not nil
--- @field why (fun(v: any): string?, boolean?)? returns a sentence about a value that fails, and whether the sentence
---   stands alone, without the parameter's name
--- @field options string[]? names of the options that a table may hold, sorted
--- @field fields table<string, Kind>? the kind of each option
--- @field names (string[]|fun(): string[])? the strings that are valid, for completion at the prompt

--- Makes a kind of argument.
--- @param what string names the kind in messages, before "is needed"
--- @param test fun(v: any): boolean
--- @param why (fun(v: any): string?, boolean?)? returns a sentence about a value that fails, which replaces "... is
---   needed, not ..."
--- @return Kind
function M.kind(what, test, why) return { what = what, test = test, why = why } end

-- `tobit` truncates a number to 32 bits and compiles to one machine instruction.
local function is_whole(v) return type(v) == 'number' and tobit(v) == v end

M.any = M.kind('anything', function() return true end)
M.number = M.kind('a number', function(v) return type(v) == 'number' end)
M.finite = M.kind('a finite number', function(v) return type(v) == 'number' and v - v == 0 end)
local function too_large(v)
  if type(v) ~= 'number' or v - v ~= 0 or math.abs(v) <= LARGEST then return nil end
  return ('%s is too large: whole numbers go to 2^31 - 1'):format(tostring(v))
end
M.integer = M.kind('a whole number', is_whole, too_large)
M.natural = M.kind('a whole number from 0', function(v) return is_whole(v) and v >= 0 end, too_large)
M.positive = M.kind('a whole number from 1', function(v) return is_whole(v) and v >= 1 end, too_large)
M.string = M.kind('a string', function(v) return type(v) == 'string' end)
M.boolean = M.kind('true or false', function(v) return type(v) == 'boolean' end)
M.table = M.kind('a table', function(v) return type(v) == 'table' end)
--- Accepts a callable table such as a graph, too.
M.callable = M.kind('a function', function(v)
  if type(v) == 'function' then return true end
  local meta = type(v) == 'table' and getmetatable(v)
  return type(meta) == 'table' and meta.__call ~= nil
end)
--- A seed is any whole number of 64 bits, as a Lua number or as a boxed integer.
M.seed = M.kind('a whole number', function(v)
  if type(v) == 'number' then return v % 1 == 0 and v >= -2 ^ 63 and v < 2 ^ 64 end
  return ffi.istype('int64_t', v) or ffi.istype('uint64_t', v)
end)

--- Makes a kind that accepts nil as well.
--- @param kind Kind
--- @return Kind
function M.maybe(kind)
  local test = kind.test
  return {
    what = kind.what, why = kind.why, options = kind.options, fields = kind.fields, names = kind.names, some = test,
    test = function(v) return v == nil or test(v) end,
  }
end

--- Makes a kind that accepts either of two kinds.
--- @param what string
--- @param a Kind
--- @param b Kind
--- @return Kind
function M.either(what, a, b)
  local first, second = a.test, b.test
  return M.kind(what, function(v) return first(v) or second(v) end, function(v)
    local why, whole
    if a.why then why, whole = a.why(v) end
    if not why and b.why then return b.why(v) end
    return why, whole
  end)
end

--- Makes a kind that accepts one of several names.
--- @param what string 'method'
--- @param names string[]
--- @param instead table<string, string>? for names that other libraries use: what to use here
--- @return Kind
function M.choice(what, names, instead)
  local known = {}
  for _, name in ipairs(names) do known[name] = true end
  local kind = M.kind('the name of a ' .. what, function(v) return known[v] == true end, function(v)
    if type(v) ~= 'string' then return nil end
    return ("there is no %s '%s': %s (%s)"):format(what, base.printable(v), instead and instead[v] or errors.did_you_mean(v, names),
      table.concat(names, ', '))
  end)
  kind.names = names
  return kind
end

--- Makes a kind that accepts anything: the function checks the value itself. The names are for completion only.
--- @param names string[]|fun(): string[]
--- @return Kind
function M.one_of(names)
  local kind = M.kind('anything', M.any.test)
  kind.names = names
  return kind
end

--- Makes a kind that accepts a list of values of one kind, without gaps and without other keys.
--- @param what string 'a list of numbers'
--- @param kind Kind
--- @param least integer? 0
--- @param most integer? no limit
--- @return Kind
function M.list(what, kind, least, most)
  local test = kind.test
  return M.kind(what, function(v)
    if type(v) ~= 'table' then return false end
    local n, count = #v, 0
    if n < (least or 0) or n > (most or n) then return false end
    for key, value in pairs(v) do
      if type(key) ~= 'number' or not test(value) then return false end
      count = count + 1
    end
    return count == n
  end, function(v)
    if type(v) ~= 'table' or not kind.why then return nil end
    for _, one in ipairs(v) do
      if not test(one) then return kind.why(one) end
    end
  end)
end

--- Formats a value for a message.
--- @param v any
--- @return string
function M.shown(v)
  local kind = type(v)
  if kind == 'string' then return "'" .. base.printable(v) .. "'" end
  if kind == 'nil' or kind == 'number' or kind == 'boolean' then return tostring(v) end
  if kind == 'cdata' then -- tostring of a tensor would print its numbers
    local text = tostring(v):match '^[^\n]*'
    return text:find '^cdata' and 'C data' or text:find '^%-?%d+U?L?L$' and text or 'a tensor ' .. text
  end
  return (kind == 'table' and next(v) == nil and 'an empty ' or 'a ') .. kind
end

-- Says why a kind refuses a value. `name` is the parameter or option that the value was given for.
local function complaint(kind, v, name)
  local why, whole
  if kind.why then why, whole = kind.why(v) end
  if whole then return why end
  return name .. ': ' .. (why or ('%s is needed, not %s'):format(kind.what, M.shown(v)))
end

--- Makes a kind that accepts a table of options. Options that are not named here are refused.
--- @param fields table<string, Kind>
--- @return Kind
function M.options(fields)
  local tests, names = {}, {}
  local required = {}
  for name, kind in pairs(fields) do
    tests[name] = kind.some or kind.test
    names[#names + 1] = name
    if not kind.test(nil) then required[#required + 1] = name end
  end
  table.sort(names)
  table.sort(required)
  local function rest(v, name)
    for key, value in next, v, name do
      local is = tests[key]
      if not is or not is(value) then return false end
    end
    return true
  end
  -- The first three options are unrolled, because LuaJIT ends a trace at an inner loop, and few calls have more options.
  local function known(v)
    local name, value = next(v)
    if name == nil then return true end
    local is = tests[name]
    if not is or not is(value) then return false end
    name, value = next(v, name)
    if name == nil then return true end
    is = tests[name]
    if not is or not is(value) then return false end
    name, value = next(v, name)
    if name == nil then return true end
    is = tests[name]
    return is ~= nil and is(value) and rest(v, name)
  end
  local function complete(v)
    for _, name in ipairs(required) do
      if v[name] == nil then return false end
    end
    return true
  end
  local test
  if #required > 0 then
    test = function(v) return type(v) == 'table' and known(v) and complete(v) end
  else
    test = function(v) return type(v) == 'table' and known(v) end
  end
  local example = #required > 0 and required[1] or names[1]
  local what = example and ('a table such as {%s = ...}'):format(example) or 'an empty table'
  local kind = M.kind(what, test, function(v)
    if type(v) ~= 'table' then return nil end
    local unknown = {}
    for name in pairs(v) do
      if not tests[name] then unknown[#unknown + 1] = tostring(name) end
    end
    table.sort(unknown) -- so that several mistakes always report the same one first
    if unknown[1] then
      if #names == 0 then return ("there are no options, and '%s' is none"):format(base.printable(unknown[1])) end
      return ("there is no option '%s': %s (%s)"):format(base.printable(unknown[1]),
        errors.did_you_mean(unknown[1], names), table.concat(names, ', '))
    end
    for _, name in ipairs(names) do
      if not fields[name].test(v[name]) then return complaint(fields[name], v[name], name) end
    end
  end)
  kind.options, kind.fields = names, fields
  return kind
end

--- Raises one sentence at the caller's position unless a value is of a kind. It serves for arguments that no row can describe.
--- @param where string 'arange: step'
--- @param kind Kind
--- @param v any
--- @return any v
function M.want(where, kind, v)
  if not kind.test(v) then base.fail(complaint(kind, v, where)) end
  return v
end

local abouts = setmetatable({}, { __mode = 'k' }) -- checked function -> {fn, row, name, of}

--- Returns the function behind a check, or the function itself if it has none. Help uses it to find the source.
--- @param fn function
--- @return function
function M.behind(fn) return abouts[fn] and abouts[fn].fn or fn end

--- Returns the row of kinds of a checked function.
--- @param fn function
--- @return table? nil if the function has none
function M.row(fn) return abouts[fn] and abouts[fn].row end

-- Returns the parameter names of a checked function.
local function parameters_of(about)
  local takes = {}
  for i = about.of and 2 or 1, #about.row do takes[#takes + 1] = debug.getlocal(about.fn, i) end
  return table.concat(takes, ', ')
end

-- Returns the __given of an argument, or of the first value in a list: it replaces the function while values are recorded
-- instead of computed.
local function stand_in(...)
  for i = 1, select('#', ...) do
    local v = select(i, ...)
    if type(v) == 'table' then
      for _, one in ipairs { v, rawget(v, 1) } do
        local meta = type(one) == 'table' and getmetatable(one)
        if type(meta) == 'table' and meta.__given then return meta.__given end
      end
    end
  end
end

-- Raises a sentence about the first wrong argument, or about the first surplus one.
local function refuse(about, ...)
  local instead = stand_in(...)
  if instead then return instead(about.name, ...) end
  local fn, row, name, of = about.fn, about.row, about.name, about.of
  local first = ...
  local meta = type(first) == 'table' and getmetatable(first)
  local path = type(meta) == 'table' and (of and of ~= 'x' and rawget(first, 'path') or rawget(meta, '__path'))
  local where = type(path) == 'string' and path .. ': ' .. name or name
  for i, kind in ipairs(row) do
    local v = select(i, ...)
    if not kind.test(v) then
      local parameter = debug.getlocal(fn, i) or ('argument %d'):format(i)
      if i == 1 and of then parameter = ('call it as %s(...)'):format(of == 'x' and 'x:' .. name or name) end
      local text, order = complaint(kind, v, parameter), ''
      if #row > (of and 2 or 1) and (i > 1 or not of) and text:find ' is needed, not ' then
        order = (': %s%s(%s)'):format(of == 'x' and 'x:' or '', name, parameters_of(about))
      end
      base.fail(where .. ': ' .. text .. order)
    end
  end
  local takes = parameters_of(about)
  base.fail(('%s: %s is an argument too many: it takes %s'):format(where, M.shown((select(#row + 1, ...))),
    takes ~= '' and takes or 'none'))
end

-- Generates, for each sequence of kinds, a function maker(fn, refuse, about, test1, ...) that makes a check. The
-- source is generated with the tests unrolled, because a loop over the arguments would cost more than the small
-- operations that the check guards.
local makers = {}
local function maker(row)
  local values, names, tests = {}, {}, {}
  for i, kind in ipairs(row) do
    values[i], names[i] = 'a' .. i, 't' .. i
    tests[i] = (kind.some and '(a%d == nil or t%d(a%d))' or kind == M.any and 'true' or 't%d(a%d)'):format(i, i, i)
  end
  local given = table.concat(values, ',')
  values[#values + 1] = row.vararg and '...' or 'more'
  if row.vararg then given = table.concat(values, ',') else tests[#tests + 1] = 'more == nil' end
  local all = table.concat(values, ',')
  local text = ('local f,refuse,about,%s=... return function(%s) if %s then return f(%s) end return refuse(about,%s) end')
    :format(names[1] and table.concat(names, ',') or '_', all, tests[1] and table.concat(tests, ' and ') or 'true', given, all)
  makers[text] = makers[text] or assert(loadstring(text, '@lua/cr/arguments.lua'))
  return makers[text]
end

--- Wraps each function of a table that has a row with a check. A row lists a kind for each parameter; `vararg = true`
--- allows further arguments, which the function checks itself; `name` replaces the function's name in messages.
--- Functions without a row stay as they are.
--- @generic T
--- @param prefix string before the functions' names in messages: 'cuda.'
--- @param functions T a table of functions by their names
--- @param signatures table<string, table>
--- @param of string? for methods: the variable in "call it as x:sum(...)"
--- @return T functions
function M.guard(prefix, functions, signatures, of)
  for name, row in pairs(signatures) do
    local about = { fn = functions[name], row = row, name = row.name or prefix .. name, of = of }
    local tests = {}
    for i, kind in ipairs(row) do tests[i] = kind.some or kind.test end
    local checked = maker(row)(about.fn, refuse, about, unpack(tests))
    abouts[checked], functions[name] = about, checked
  end
  return functions
end

-- They run once for each function when the program starts, so compiling them would never pay off.
jit.off(maker)
jit.off(M.guard)

--- All classes whose methods are checked, each as {class, of, meta}.
M.classes = {}

--- Wraps the methods of a class with checks. The rows leave out the object itself.
--- @param class table
--- @param of string what an object is called in messages: 'reader'
--- @param signatures table<string, table>
--- @param meta table|'any'|nil the metatable of its objects (the class); 'any': any table may be one
--- @return table class
function M.methods(class, of, signatures, meta)
  meta = meta or class
  M.classes[#M.classes + 1] = { class = class, of = of, meta = meta }
  local object = M.kind('a ' .. of, function(v)
    if meta == 'any' then return type(v) == 'table' end
    return getmetatable(v) == meta
  end)
  local rows = {}
  for name, row in pairs(signatures) do rows[name] = { object, vararg = row.vararg, name = row.name, unpack(row) } end
  return M.guard(of .. ':', class, rows, of)
end

return M
