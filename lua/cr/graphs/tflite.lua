--- TFLite graphs, run: a small interpreter over cr's operations.
--
-- `tflite.open(path)` reads and checks the file (cr.tflite_graph), converts the weights once and
-- plans the graph; `net:run(x)` then runs it. Layout is TFLite's own, NHWC, which is ours; float16
-- weights become float32 while loading. Activations and sums are folded into the convolution before
-- them where the graph allows, and every intermediate result is freed after its last use.

local ffi = require 'ffi'
local cr = require 'cr'
local nn = require 'cr.nn'
local base = require 'cr.ffi'
local graph = require 'cr.graphs.tflite_file'

local C, numel, same, show = base.C, graph.numel, graph.same, graph.show

local tflite = {}

-- ---- the plan ---------------------------------------------------------------------------------

local function load_constant(r, v, shape)
  local t = cr.empty(shape or v.shape, { dtype = v.dtype })
  ffi.copy(t:pointer(), r.base + v.at, v.bytes)
  if v.dtype == 'f32' then return t end
  local wide = t:to('f32')
  t:free()
  return wide
end

--- The same tensor on a device; the one given goes.
local function moved_to(device, t)
  local there = t:to(device)
  if not rawequal(there, t) then t:free() end
  return there
end

--- Depthwise weights [1 kh kw C] as the grouped convolution's [C kh kw 1].
local function load_depthwise(r, v)
  local w = load_constant(r, v)
  local _, kh, kw, c = unpack(v.shape)
  local moved = w:view(kh * kw, c):t():contiguous()
  local out = moved:view(c, kh, kw, 1):clone()
  moved:free()
  w:free()
  return out
end

local steps = {}

--- An activation on a fresh result that nobody else holds.
local function relu_(t)
  base.check(C.cr_unary(t.c, C.CR_RELU, t.c))
  return t
end

--- Slopes below zero, likewise in place: max(x, 0) + slope * min(x, 0). The slope is repeated for a
--- whole row of pixels, so that the inner loops are long.
local function prelu_(t, slope)
  cr.scope(function()
    local rows = t:view(-1, slope:numel())
    local below = rows:minimum(0)
    base.check(C.cr_binary(below.c, C.CR_MUL, below.c, slope.c))
    relu_(rows)
    base.check(C.cr_binary(rows.c, C.CR_ADD, rows.c, below.c))
  end)
  return t
end

function steps.conv(s, get)
  return nn.conv2d(s.w, get(s.x), { stride = s.stride, padding = s.padding, dilation = s.dilation,
    groups = s.groups, act = s.act, residual = s.residual and get(s.residual) })
end

function steps.MAX_POOL_2D(s, get)
  return nn.max_pool2d(get(s.x), { kernel = s.kernel, stride = s.stride, padding = s.padding })
end

function steps.ADD(s, get) return get(s.x) + get(s.y) end
function steps.LOGISTIC(s, get) return get(s.x):sigmoid() end
function steps.RELU(s, get) return get(s.x):relu() end
function steps.RELU6(s, get) return get(s.x):clamp(0, 6) end
function steps.PRELU(s, get) return prelu_(get(s.x):clone(), s.slope) end
function steps.PAD(s, get) return nn.pad(get(s.x), s.before, s.after, 0) end
function steps.RESHAPE(s, get) return get(s.x):reshape(s.shape) end

function steps.RESIZE_BILINEAR(s, get)
  return nn.resize(get(s.x), s.height, s.width, s.method)
end

function steps.CONCATENATION(s, get)
  local list = {}
  for i, v in ipairs(s.list) do list[i] = get(v) end
  return cr.cat(list, s.dim)
end

-- oneDNN 2.7 runs a convolution with PReLU inside 60 times slower than without: PReLU stays apart.
local IN_CONV = { RELU = 'relu', RELU6 = 'relu6' }
local IS_ACT = { RELU = 'relu', RELU6 = 'relu6', PRELU = 'prelu' }
local IS_CONV = { CONV_2D = true, DEPTHWISE_CONV_2D = true }

--- Folds what follows a convolution into it. A node whose only user is the next one may run as late
--- as that one does, so a group runs where its last node stood.
local function fold(g)
  local users = {}
  for _, node in ipairs(g.nodes) do
    for _, v in ipairs(node.inputs) do
      if v then users[v] = users[v] or {}; table.insert(users[v], node) end
    end
  end
  for _, v in ipairs(g.outputs) do users[v] = users[v] or {}; table.insert(users[v], 'output') end
  local function only_user(v)
    local list = users[v]
    return list and #list == 1 and list[1] ~= 'output' and list[1] or nil
  end
  for _, node in ipairs(g.nodes) do
    if IS_CONV[node.op] and not node.dropped then
      local act, residual, last = node.options.act, nil, node
      local next_node = only_user(last.outputs[1])
      if act == 'none' and next_node and IN_CONV[next_node.op] then
        act = IN_CONV[next_node.op]
        last.dropped, last = true, next_node
        next_node = only_user(last.outputs[1])
      end
      if next_node and next_node.op == 'ADD' and not next_node.conv then
        local a, b = next_node.inputs[1], next_node.inputs[2]
        if a ~= b then
          residual = a == last.outputs[1] and b or a
          last.dropped, last = true, next_node
        end
      end
      last.dropped = nil
      last.conv = { node = node, act = act, residual = residual }
    end
  end
  -- an activation after a sum or a convolution works in place on it
  for _, node in ipairs(g.nodes) do
    if (node.op == 'ADD' or IS_CONV[node.op]) and not node.dropped and node.options.act == 'none' then
      local next_node = only_user(node.outputs[1])
      if next_node and IS_ACT[next_node.op] then
        node.late, next_node.dropped = next_node, true
      end
    end
  end
end

local function make_plan(r, g, device)
  fold(g)
  local constants, plan = {}, {}
  local function keep(t)
    t = moved_to(device, t)
    constants[#constants + 1] = t
    return t
  end
  local function slope_of(node)
    local shape, v = node.outputs[1].shape, node.inputs[2]
    local one = load_constant(r, v, { 1, numel(v.shape) })
    local row = one:expand(shape[#shape - 1] or 1, numel(v.shape)):clone():view(-1)
    one:free()
    return keep(row)
  end
  for _, node in ipairs(g.nodes) do
    if not node.dropped and node.op ~= 'DEQUANTIZE' then
      local o, s = node.options, { op = node.op, out = node.outputs[1] }
      if node.conv then
        local c, n = node.conv, node.conv.node
        o = n.options
        s.op, s.x, s.residual = 'conv', n.inputs[1], c.residual
        local w, b = n.inputs[2], n.inputs[3]
        s.w = { weight = keep(n.op == 'CONV_2D' and load_constant(r, w) or load_depthwise(r, w)),
          bias = b and keep(load_constant(r, b, { numel(b.shape) })) or nil }
        s.stride, s.dilation = { o.stride_h, o.stride_w }, { o.dilation_h, o.dilation_w }
        s.padding, s.groups = o.padding, n.groups
        s.act = c.act ~= 'none' and c.act or nil
        -- a sum's own activation comes after it, a convolution's before
        s.late = node.op == 'ADD' and node.options.act or 'none'
      else
        s.x, s.y = node.inputs[1], node.inputs[2] or nil
        s.late = o.act
        if node.op == 'MAX_POOL_2D' then
          s.kernel, s.stride = { o.kernel_h, o.kernel_w }, { o.stride_h, o.stride_w }
          s.padding = o.padding
        elseif node.op == 'PRELU' then
          s.slope = slope_of(node)
        elseif node.op == 'PAD' then
          s.before, s.after = node.before, node.after
        elseif node.op == 'RESHAPE' then
          s.shape = node.outputs[1].shape
        elseif node.op == 'CONCATENATION' then
          s.list, s.dim = node.inputs, node.dim
        elseif node.op == 'RESIZE_BILINEAR' then
          s.height, s.width = node.outputs[1].shape[2], node.outputs[1].shape[3]
          s.method = o.half_pixel and 'bilinear' or 'bilinear_edge'
        end
      end
      if node.late then
        s.out = node.late.outputs[1]
        s.late = IS_ACT[node.late.op]
        s.late_slope = s.late == 'prelu' and slope_of(node.late) or nil
      end
      plan[#plan + 1] = s
    end
  end
  -- a constant addend (or a joined one) is loaded like a weight
  local ready = {}
  for _, s in ipairs(plan) do
    for _, v in ipairs(s.list or { s.x or false, s.residual or s.y or false }) do
      if v and v.at and s.op ~= 'PRELU' and not ready[v] and v.dtype ~= 'i32' then
        ready[v] = keep(load_constant(r, v))
      end
    end
  end
  return plan, constants, ready
end

--- After which step each value may go.
local function plan_frees(plan, g)
  local last = {}
  for i, s in ipairs(plan) do
    last[s.out] = i
    for _, v in ipairs(s.list or {}) do last[v] = i end
    for _, v in pairs { x = s.x, y = s.y, residual = s.residual } do last[v] = i end
  end
  for _, v in ipairs(g.outputs) do last[v] = nil end
  last[g.inputs[1]] = nil
  for v, i in pairs(last) do
    if not v.at then
      plan[i].frees = plan[i].frees or {}
      table.insert(plan[i].frees, v)
    end
  end
end

-- ---- the network ------------------------------------------------------------------------------

---@class cr.tflite.net
---@field path string
---@field input {name: string, shape: integer[]}
---@field outputs {name: string, shape: integer[]}[]
local net = {}
net.__index = net

--- The outputs for `x`, in a list.
local function compute(self, x)
  local values = { [self.graph.inputs[1]] = x }
  local function get(v) return values[v] or self.ready[v] end
  for _, s in ipairs(self.plan) do
    local t = steps[s.op](s, get)
    if s.late == 'prelu' then
      t = prelu_(t, s.late_slope)
    elseif s.late == 'relu' then
      t = relu_(t)
    elseif s.late == 'relu6' then
      t = t:clamp(0, 6)
    end
    values[s.out] = t
    for _, v in ipairs(s.frees or {}) do
      if v ~= s.out then values[v]:free() end
      values[v] = nil
    end
  end
  local out = {}
  for i, v in ipairs(self.graph.outputs) do out[i] = values[v] end
  return out
end

--- Runs the graph. x f32, of the input's shape, on the network's device; gives the outputs in the
--- file's order.
---@param x Tensor
---@return Tensor ...
function net:run(x)
  if not self.plan then error(self.path .. ': this network was freed', 2) end
  if not same(x.shape, self.input.shape) then
    error(('%s: the input is %s, must be %s')
      :format(self.path, show(x.shape), show(self.input.shape)), 2)
  end
  local before = cr.threads()
  if self.threads then cr.threads(self.threads) end
  local ok, outputs = pcall(cr.scope, compute, self, x)
  cr.threads(before)
  if not ok then error(outputs, 0) end
  return unpack(outputs)
end

--- Refuses a network that does not look at a square RGB picture, or that lacks outputs; it is freed then.
---@param what string for the message: what the file should hold
---@param complete any whether it has the outputs that are needed
function net:expect(what, complete)
  local s = self.input.shape
  if complete and #s == 4 and s[1] == 1 and s[2] == s[3] and s[4] == 3 then return end
  self:free()
  error(self.path .. ': not ' .. what, 0)
end

--- Frees the weights; the network cannot run any more. Twice is fine.
function net:free()
  for _, t in ipairs(self.constants or {}) do t:free() end
  self.plan, self.constants, self.ready = nil, nil, nil
end

--- Prepares a TFLite graph to run. Float graphs of the operators that MediaPipe's face models use;
--- data that are damaged or use others are refused in one sentence.
---@param path string names the file in messages
---@param data string the file's bytes
---@param options {threads: integer, device: string}? threads: how many run it, instead of
--- cr.threads(); device: where ('cpu')
---@return cr.tflite.net
function tflite.parse(path, data, options)
  local g, r = graph.parse(path, data)
  local plan, constants, ready = cr.scope(make_plan, r, g, options and options.device or 'cpu')
  plan_frees(plan, g)
  local outputs = {}
  for i, v in ipairs(g.outputs) do outputs[i] = { name = v.name, shape = v.shape } end
  return setmetatable({ path = path, graph = g, plan = plan, constants = constants, ready = ready,
    threads = options and options.threads,
    input = { name = g.inputs[1].name, shape = g.inputs[1].shape }, outputs = outputs }, net)
end

--- Opens a TFLite file and prepares it to run.
---@param path string
---@param options {threads: integer, device: string}? as tflite.parse's
---@return cr.tflite.net
function tflite.open(path, options) return tflite.parse(path, graph.load(path), options) end

return tflite
