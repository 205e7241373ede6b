--- What a row's `make` is given: one node with the shapes, constants and attributes that are known when a plan is made.
--
-- Shapes are the file's own order ([N C H W]); tensors may lie channels-last ([N H W C]). `any`, `plain`, `last` and `extra`
-- say, in order, what the function that `make` returns will be given.

local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local M = {}

local node = {}
node.__index = node

--- The order of dimensions that makes a picture channels-last, or (last false) that takes it back.
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

--- The shape in the file's order.
function M.logical(shape, last)
  if not last then return shape end
  local out = { shape[1], shape[#shape] }
  for k = 2, #shape - 1 do out[#out + 1] = shape[k] end
  return out
end

--- Raises what is wrong with the node; the runner puts its name in front. Strings may be the file's own.
function node:fail(format, ...)
  local values = { ... }
  for i, v in ipairs(values) do
    if type(v) == 'string' then values[i] = base.printable(v) end
  end
  error(format:format(unpack(values)), 0)
end

--- Refuses a result (or what is made on the way) with more elements than a graph of these inputs may have.
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

--- Whether input i is given.
function node:has(i)
  local v = self.inputs[i]
  return v ~= nil and v ~= false
end

function node:state(i)
  local v = self.inputs[i]
  if not v then self:fail('input %d is missing', i) end
  local s = self.states[v]
  if not s then self:fail('input %d (%s) cannot be had', i, v.name) end
  return s
end

function node:shape(i) return { unpack(self:state(i).shape) } end
function node:rank(i) return #self:state(i).shape end
function node:dtype(i) return self:state(i).dtype end

--- Whether the numbers of input i are known now.
function node:is_constant(i) return self:has(i) and self:state(i).constant ~= nil end

--- The constant that input i is, on the CPU; nil if it is not given. If it depends on the graph's inputs, these become
--- part of what a plan is made for.
function node:constant(i)
  if not self:has(i) then return nil end
  local s = self:state(i)
  if s.constant then return s.constant end
  error({ need = s.from, what = self.node.what,
    text = ('input %d (%s) must be known before the run, and depends on what the graph computes'):format(i, self.inputs[i].name) }, 0)
end

--- Its numbers as a flat list.
function node:numbers(i)
  local t = self:constant(i)
  return t and tensor.scope(function() return t:reshape(-1):tolist() end)
end

--- Its one number.
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

--- A list of numbers, or nil.
function node:list(name)
  local v = self.node.attributes[name]
  if v == nil then return nil end
  if type(v) ~= 'table' or v.tensor or v.graph then self:fail('attribute %s is not a list of numbers', name) end
  return v
end

--- A list that is an attribute in older operator sets and input i in newer ones.
function node:list_or(name, i)
  if self:has(i) then return self:numbers(i) end
  return self:list(name)
end

-- ---- layouts ----------------------------------------------------------------------------------

--- Dimension (from 1) of a tensor for axis `a` (from 0, negative from the end) of the file's order.
function M.dim(a, rank, last)
  if not last then return a + 1 end
  if a == 0 then return 1 end
  return a == 1 and rank or a
end

--- Axis `a` made positive and checked.
function node:axis(a, rank)
  local k = a < 0 and a + rank or a
  if k < 0 or k >= rank or k % 1 ~= 0 then self:fail('there is no axis %s of %d', tostring(a), rank) end
  return k
end

--- Whether input i lies channels-last.
function node:is_last(i) return self:state(i).last or false end

function node:feed(state)
  self.feeds[#self.feeds + 1] = state
  return state
end

--- Gives input i as it lies; the results lie the same way. Returns whether that is channels-last.
function node:any(i)
  local s = self:feed(self:state(i))
  self.lasts = s.last or false
  return self.lasts
end

--- Gives input i in the file's order; results are in it.
function node:plain(i)
  self:feed(self.plan:converted(self:state(i), false))
  self.lasts = false
end

--- Gives input i channels-last; results are so too.
function node:last(i)
  self:feed(self.plan:converted(self:state(i), true))
  self.lasts = true
end

--- Gives a constant.
--- @param t Tensor
--- @param pure boolean? whether it is the same for all input sizes
function node:extra(t, pure) self:feed { constant = t, shape = t.shape, dtype = t.dtype, pure = pure } end

-- Gives a constant that fn makes, or nil; it is remembered in `cache` and belongs to `owner`.
local function remembered(self, cache, owned, key, fn, pure)
  if cache[key] == nil then
    local t = tensor.scope(fn)
    if t then table.insert(owned, (tensor.keep(t))) end
    cache[key] = t or false
  end
  if cache[key] then self:extra(cache[key], pure) end
  return cache[key] ~= false
end

--- Gives a constant made by fn of the inputs `sources` (numbers), once for all plans if these are the same in all of them.
--- @return boolean false: fn made none
function node:once(key, sources, fn)
  local pure = true
  for _, i in ipairs(sources) do pure = pure and (not self:has(i) or self:state(i).pure or false) end
  if not pure then return self:sized(key, fn) end
  return remembered(self, self.node.cache, self.plan.net.owned, key, fn, true)
end

--- Gives a constant made by fn that depends on sizes: each plan has its own.
function node:sized(key, fn) return remembered(self, {}, self.plan.owned, key, fn, false) end

--- Gives inputs that are combined with NumPy's broadcasting, in one layout, as tensors of one rank.
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

--- Gives input i with ones in front up to a rank, in a layout.
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

--- Gives nothing in an input's place.
function node:nothing() self:feed(false) end

--- Does another node of the group on the result, as a step of its own.
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
