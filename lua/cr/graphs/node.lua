--- The argument of a row's `make`: one node, with the shapes, constants and attributes that are known when a plan is made.
--
-- Shapes are in the file's order ([N C H W]); tensors may be stored channels-last ([N H W C]). Calls of `any`,
-- `plain`, `last` and `extra` declare, in order, the arguments of the function that `make` returns.

local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local M = {}

local node = {}
node.__index = node

--- Returns the permutation that makes a picture channels-last, or with `last` false the inverse.
function M.order(rank, last)
  local order = { 1 }
  if last then
    for k = 3, rank do order[#order + 1] = k end
    order[#order + 1] = 2
  else
    order[2] = rank
    for k = 2, rank - 1 do order[#order + 1] = k end
  end
  return order
end

--- Converts a shape to the file's order.
function M.logical(shape, last)
  if not last then return shape end
  local out = { shape[1], shape[#shape] }
  for k = 2, #shape - 1 do out[#out + 1] = shape[k] end
  return out
end

--- Raises a sentence about the node; the runner puts the node's name before it. String values may come from the file.
function node:fail(format, ...)
  local values = { ... }
  for i, v in ipairs(values) do
    if type(v) == 'string' then values[i] = base.printable(v) end
  end
  error(format:format(unpack(values)), 0)
end

--- Refuses a result or an intermediate tensor with more elements than a graph of these inputs may have.
--- @param shape number[]
--- @return number[] shape
function node:room(shape)
  local count = 1
  for _, size in ipairs(shape) do
    count = count * size
    if size < 0 or size % 1 ~= 0 then self:fail('a size of %s', tostring(size)) end
  end
  if #shape > 8 then self:fail('a result of %d dimensions is not handled', #shape) end
  if count > self.plan.most then
    self:fail('a result of [%s] is too large for these inputs', table.concat(shape, ' '))
  end
  return shape
end

--- Returns whether input i is present.
function node:has(i)
  local v = self.inputs[i]
  return v ~= nil and v ~= false
end

function node:state(i)
  local v = self.inputs[i]
  if not v then self:fail('input %d is missing', i) end
  local s = self.states[v]
  if not s then self:fail('input %d (%s) is not available', i, v.name) end
  return s
end

function node:shape(i) return { unpack(self:state(i).shape) } end
function node:rank(i) return #self:state(i).shape end
function node:dtype(i) return self:state(i).dtype end

--- Returns whether the values of input i are known when the plan is made.
function node:is_constant(i) return self:has(i) and self:state(i).constant ~= nil end

--- Returns the constant that input i is, on the CPU, or nil if it is not present. If it depends on the graph's
--- inputs, their values become part of the key of the plan.
function node:constant(i)
  if not self:has(i) then return nil end
  local s = self:state(i)
  if s.constant then return s.constant end
  error({ need = s.from, what = self.node.what,
    text = ('input %d (%s) must be known before the run, but the graph computes it'):format(i, self.inputs[i].name) }, 0)
end

--- Returns the numbers of input i as a flat list.
function node:numbers(i)
  local t = self:constant(i)
  return t and tensor.scope(function() return t:reshape(-1):tolist() end)
end

--- Returns the single number of input i.
function node:number(i, default)
  local list = self:numbers(i)
  if not list then return default end
  if #list ~= 1 then self:fail('input %d holds %d numbers, not one', i, #list) end
  return list[1]
end

-- ---- attributes -------------------------------------------------------------------------------

local function typed(kind)
  return function(self, name, default)
    local v = self.node.attributes[name]
    if v == nil then return default end
    if type(v) ~= kind then self:fail('attribute %s is %s, not a %s', name, type(v) == 'table' and 'a list' or type(v), kind) end
    return v
  end
end
node.attribute, node.text = typed 'number', typed 'string'

--- Returns an attribute that is a list of numbers, or nil.
function node:list(name)
  local v = self.node.attributes[name]
  if v == nil then return nil end
  if type(v) ~= 'table' or v.tensor or v.graph then self:fail('attribute %s is not a list of numbers', name) end
  return v
end

--- Returns a list that is an attribute in older operator sets and input i in newer ones.
function node:list_or(name, i)
  if self:has(i) then return self:numbers(i) end
  return self:list(name)
end

-- ---- layouts ----------------------------------------------------------------------------------

--- Converts axis `a` of the file's order (from 0, negative from the end) to a dimension of a tensor (from 1).
function M.dim(a, rank, last)
  if not last then return a + 1 end
  if a == 0 then return 1 end
  return a == 1 and rank or a
end

--- Returns axis `a` as a non-negative number, after checking it.
function node:axis(a, rank)
  local k = a < 0 and a + rank or a
  if k < 0 or k >= rank or k % 1 ~= 0 then self:fail('there is no axis %s of %d', tostring(a), rank) end
  return k
end

--- Returns whether input i is stored channels-last.
function node:is_last(i) return self:state(i).last or false end

function node:feed(state)
  self.feeds[#self.feeds + 1] = state
  return state
end

--- Feeds input i in its current layout; the results have the same layout. Returns whether it is channels-last.
function node:any(i)
  local s = self:feed(self:state(i))
  self.lasts = s.last or false
  return self.lasts
end

--- Feeds input i in the file's order; the results are in that order, too.
function node:plain(i)
  self:feed(self.plan:converted(self:state(i), false))
  self.lasts = false
end

--- Feeds input i channels-last; the results are channels-last, too.
function node:last(i)
  self:feed(self.plan:converted(self:state(i), true))
  self.lasts = true
end

--- Feeds a constant.
--- @param t Tensor
--- @param pure boolean? whether it is the same for all input sizes
function node:extra(t, pure) self:feed { constant = t, shape = t.shape, dtype = t.dtype, pure = pure } end

-- Feeds a constant that fn makes, or nothing if fn returns nil. It is stored in `cache`, and the list `owned` owns it.
local function remembered(self, cache, owned, key, fn, pure)
  if cache[key] == nil then
    local t = tensor.scope(fn)
    if t then table.insert(owned, (tensor.keep(t))) end
    cache[key] = t or false
  end
  if cache[key] then self:extra(cache[key], pure) end
  return cache[key] ~= false
end

--- Feeds a constant that fn makes from the inputs with the numbers `sources`. It is made once for all plans if these
--- inputs are the same in all of them.
--- @return boolean false if fn returned nil
function node:once(key, sources, fn)
  local pure = true
  for _, i in ipairs(sources) do pure = pure and (not self:has(i) or self:state(i).pure or false) end
  if not pure then return self:sized(key, fn) end
  return remembered(self, self.node.cache, self.plan.net.owned, key, fn, true)
end

--- Feeds a constant made by fn that depends on the sizes, so each plan has its own.
function node:sized(key, fn) return remembered(self, {}, self.plan.owned, key, fn, false) end

--- Feeds inputs for NumPy broadcasting, in one layout, as tensors of equal rank.
function node:broadcast(list)
  local rank, last = 0, false
  for _, i in ipairs(list) do rank = math.max(rank, self:rank(i)) end
  for _, i in ipairs(list) do
    local s = self:state(i)
    if s.last and #s.shape == rank then last = true end
  end
  local shape = {}
  for k = 1, rank do
    shape[k] = 1
    for _, i in ipairs(list) do
      local size = self:shape(i)[k - rank + self:rank(i)]
      if size and size ~= 1 then shape[k] = size end
    end
  end
  self:room(shape)
  for _, i in ipairs(list) do self:aligned(i, rank, last) end
  self.lasts = last
end

--- Feeds input i in a layout, with leading dimensions of 1 up to a rank.
function node:aligned(i, rank, last)
  local s = self:state(i)
  if not last then return self:feed(self.plan:converted(s, false)) end
  if #s.shape == rank then return self:feed(self.plan:converted(s, true)) end
  if #s.shape == 0 then return self:feed(s) end
  s = self.plan:converted(s, false)
  local shape = {}
  for _ = 1, rank - #s.shape do shape[#shape + 1] = 1 end
  for _, size in ipairs(s.shape) do shape[#shape + 1] = size end
  local order = M.order(rank, true)
  local made = self.plan:step(function(x) return x:reshape(shape, nil):permute(order, nil):contiguous() end, { s }, true)[1]
  self.temporary[#self.temporary + 1] = made
  return self:feed(made)
end

--- Feeds false in place of an absent input.
function node:nothing() self:feed(false) end

--- Runs another node of the fused group on the result, as a separate step.
function node:after(other)
  self.afters[#self.afters + 1] = function(results)
    local before, states = results[1], setmetatable({}, { __index = self.states })
    for _, v in ipairs(self.fused.between) do states[v] = before end
    local n = M.new(self.plan, other, states)
    local made = self.plan:step(other.row.make(n), n.feeds, n.lasts)
    if before.tensor then self.plan:release(before) end
    return made
  end
end

function M.new(plan, given, states)
  given.cache = given.cache or {}
  return setmetatable({ plan = plan, node = given, states = states, inputs = given.inputs, opset = given.opset, feeds = {},
    lasts = false, afters = {}, temporary = {}, fused = given.fused or { between = {} } }, node)
end

return M
