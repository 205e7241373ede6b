--- The grammar of formulas for cr.kernel: 'y = x * s + b', with statements separated by newlines or semicolons.
--
-- An expression consists of names, numbers, + - * / % ^, comparisons (1 or 0), and the functions below. A name that
-- is assigned but not declared is an intermediate value. A statement whose whole right side is sum(...), mean(...),
-- max(...) or min(...) of one expression reduces the last dimension. A formula is parsed to a tree of nodes:
--     { op = 'number', value = 2 }   { op = 'name', name = 'x' }   { op = 'exp', node, ... }

local base = require 'cr.ffi'
local errors = require 'cr.errors'

local M = {}

--- Elementwise functions: their number of arguments, and their text in C. F(exp) is expf, or exp if numbers are double.
M.FUNCTIONS = {
  add = { 2, '(%s + %s)' }, sub = { 2, '(%s - %s)' }, mul = { 2, '(%s * %s)' }, div = { 2, '(%s / %s)' }, neg = { 1, '(-%s)' },
  lt = { 2, '(R)(%s < %s)' }, le = { 2, '(R)(%s <= %s)' }, gt = { 2, '(R)(%s > %s)' }, ge = { 2, '(R)(%s >= %s)' },
  eq = { 2, '(R)(%s == %s)' }, ne = { 2, '(R)(%s != %s)' },
  pow = { 2, 'F(pow)(%s, %s)' }, remainder = { 2, 'remainder_of(%s, %s)' }, fmod = { 2, 'F(fmod)(%s, %s)' },
  maximum = { 2, 'larger(%s, %s)' }, minimum = { 2, 'smaller(%s, %s)' }, atan2 = { 2, 'F(atan2)(%s, %s)' },
  where = { 3, '(%s != 0 ? %s : %s)' }, clamp = { 3, 'smaller(larger(%s, %s), %s)' },
  exp = { 1, 'F(exp)(%s)' }, log = { 1, 'F(log)(%s)' }, log2 = { 1, 'F(log2)(%s)' }, log10 = { 1, 'F(log10)(%s)' },
  log1p = { 1, 'F(log1p)(%s)' }, expm1 = { 1, 'F(expm1)(%s)' }, sqrt = { 1, 'F(sqrt)(%s)' }, rsqrt = { 1, '(1 / F(sqrt)(%s))' },
  sin = { 1, 'F(sin)(%s)' }, cos = { 1, 'F(cos)(%s)' }, tan = { 1, 'F(tan)(%s)' }, atan = { 1, 'F(atan)(%s)' },
  tanh = { 1, 'F(tanh)(%s)' }, erf = { 1, 'F(erf)(%s)' }, abs = { 1, 'F(fabs)(%s)' }, floor = { 1, 'F(floor)(%s)' },
  ceil = { 1, 'F(ceil)(%s)' }, trunc = { 1, 'F(trunc)(%s)' }, round = { 1, 'F(rint)(%s)' }, sign = { 1, 'sign_of(%s)' },
  sigmoid = { 1, '(1 / (1 + F(exp)(-%s)))' }, silu = { 1, 'silu_of(%s)' }, gelu = { 1, 'gelu_of(%s)' },
  relu = { 1, 'larger(%s, (R)0)' }, square = { 1, 'square_of(%s)' }, reciprocal = { 1, '(1 / %s)' },
  logical_not = { 1, '(R)(%s == 0)' }, logical_and = { 2, '(R)(%s != 0 && %s != 0)' }, logical_or = { 2, '(R)(%s != 0 || %s != 0)' },
}
--- Shorter names in formulas.
local SHORT = { min = 'minimum', max = 'maximum', ['not'] = 'logical_not', ['and'] = 'logical_and', ['or'] = 'logical_or' }
--- Reductions of the last dimension.
M.REDUCTIONS = { sum = true, mean = true, max = true, min = true }

local OPERATORS = { -- by precedence, lowest first
  { ['<'] = 'lt', ['<='] = 'le', ['>'] = 'gt', ['>='] = 'ge', ['=='] = 'eq', ['~='] = 'ne' },
  { ['+'] = 'add', ['-'] = 'sub' },
  { ['*'] = 'mul', ['/'] = 'div', ['%'] = 'remainder' },
}

-- Operators of C, and how formulas write them.
local INSTEAD = { ['?'] = 'where(condition, a, b)', ['&'] = 'and(a, b)', ['|'] = 'or(a, b)', ['!'] = 'not(a), or a ~= b' }

-- ---- reading ---------------------------------------------------------------------------------------------

local function fail(r, ...) base.fail(('kernel: %s in \'%s\''):format((...):format(select(2, ...)), r.text)) end

local function tokens_of(r)
  local list, at, text = {}, 1, r.text
  while true do
    at = text:find('[^ \t]', at)
    if not at then break end
    local token = text:match('^%d+%.?%d*[eE][+-]?%d+', at) or text:match('^%d+%.?%d*', at) or text:match('^%.%d+', at) or
      text:match('^[%a_][%w_]*', at) or text:match('^[<>=~]=', at) or text:match('^[-+*/%%^<>=(),;\n]', at)
    if not token then
      local wrong = text:sub(at, at)
      fail(r, "unexpected '%s'%s", base.printable(wrong), INSTEAD[wrong] and ': use ' .. INSTEAD[wrong] or '')
    end
    list[#list + 1], at = token, at + #token
  end
  return list
end

local expression

local function peek(r) return r.tokens[r.at] end
local function take(r, token)
  if peek(r) ~= token then return false end
  r.at = r.at + 1
  return true
end
local function need(r, token)
  if not take(r, token) then fail(r, "'%s' is missing before '%s'", token, base.printable(peek(r) or 'the end')) end
end

local function call(r, name)
  local wanted = SHORT[name] or name
  local fn = M.FUNCTIONS[wanted]
  local node = { op = wanted }
  need(r, '(')
  if not take(r, ')') then
    repeat node[#node + 1] = expression(r, 1) until not take(r, ',')
    need(r, ')')
  end
  if M.REDUCTIONS[name] and #node == 1 then return { op = 'reduce', how = name, node[1] } end
  if not fn then
    local names = {}
    for known in pairs(M.FUNCTIONS) do names[#names + 1] = known end
    fail(r, 'there is no function %s: %s', name, errors.did_you_mean(name, names))
  end
  if #node ~= fn[1] then fail(r, '%s takes %d argument%s, not %d', name, fn[1], fn[1] > 1 and 's' or '', #node) end
  return node
end

local function atom(r)
  local token = peek(r)
  if not token then fail(r, 'an operand is missing at the end') end
  if take(r, '(') then
    local node = expression(r, 1)
    need(r, ')')
    return node
  end
  r.at = r.at + 1
  if tonumber(token) then return { op = 'number', value = tonumber(token) } end
  if token == 'pi' then return { op = 'number', value = math.pi } end
  if not token:find '^[%a_]' then fail(r, "an operand is missing before '%s'", base.printable(token)) end
  if peek(r) == '(' then return call(r, token) end
  return { op = 'name', name = token }
end

local function power(r)
  if take(r, '-') then return { op = 'neg', power(r) } end
  local node = atom(r)
  if take(r, '^') then return { op = 'pow', node, power(r) } end
  return node
end

function expression(r, rank)
  if rank > #OPERATORS then return power(r) end
  local node = expression(r, rank + 1)
  while peek(r) and OPERATORS[rank][peek(r)] do
    local op = OPERATORS[rank][peek(r)]
    r.at = r.at + 1
    node = { op = op, node, expression(r, rank + 1) }
  end
  return node
end

-- Calls fn(name) for every name in a tree, in order.
local function each_name(node, fn)
  if node.op == 'name' then fn(node.name) end
  for _, child in ipairs(node) do each_name(child, fn) end
end
M.each_name = each_name

local function no_reduction(r, node)
  if node.op == 'reduce' then fail(r, '%s(...) of one value must be the whole right side', node.how) end
  for _, child in ipairs(node) do no_reduction(r, child) end
end

--- Parses a formula and returns its statements, in order.
--- @param text string
--- @return table[] {name =, node =, how = 'sum' or nil: the node is reduced} each
function M.parse(text)
  local r = { text = text:match '^%s*(.-)%s*$', at = 1 }
  r.tokens = tokens_of(r)
  local list = {}
  while peek(r) do
    if not take(r, ';') and not take(r, '\n') then
      local name = peek(r)
      if not name:find '^[%a_]' then fail(r, "a name is missing before '%s'", base.printable(name)) end
      r.at = r.at + 1
      need(r, '=')
      local node = expression(r, 1)
      local how = node.op == 'reduce' and node.how or nil
      if how then node = node[1] end
      no_reduction(r, node)
      if peek(r) and peek(r) ~= ';' and peek(r) ~= '\n' then fail(r, "unexpected '%s' after a statement", base.printable(peek(r))) end
      list[#list + 1] = { name = name, node = node, how = how }
    end
  end
  if #list == 0 then fail(r, 'there is no statement') end
  return list
end

return M
