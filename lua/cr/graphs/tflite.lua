--- Runs TFLite graphs: the rows of their operators for cr.graphs.runner.
--
-- `tflite.open(path)` reads and checks the file (cr.graphs.tflite_file); `net:run(x)` runs it. The layout is
-- TFLite's, NHWC, as everywhere here. float16 weights become float32 on loading.

local graph = require 'cr.graphs.tflite_file'
local layers = require 'cr.graphs.layers'
local nn = require 'cr.nn'
local runner = require 'cr.graphs.runner'
local tensor = require 'cr.tensor'

local same, show = graph.same, graph.show

local tflite = {}

-- ---- the operators ----------------------------------------------------------------------------

local rows = {}

--- Loads a constant; `r` is the reader of the file.
local function load_constant(r, v)
  return tensor.scope(function()
    local t = tensor.empty(v.shape, { dtype = v.dtype })
    require 'ffi'.copy(t:pointer(), r.base + v.at, v.bytes)
    return t:to 'f32'
  end)
end

local function lies_as_it_is(n, i) n:any(i) end

local function conv_of(turned)
  return { kind = 'conv', make = function(n)
    local o, shape = n.node.options, n.node.shape
    n:any(1)
    return layers.convolution(n, { sources = { 2, 3 }, shape = shape, channels = shape[#shape], lie = lies_as_it_is,
      stride = { o.stride_h, o.stride_w }, dilation = { o.dilation_h, o.dilation_w }, padding = o.padding,
      groups = n.node.groups, weight = function() return turned(n:constant(2)) end,
      bias = n:has(3) and function() return n:constant(3):reshape(-1):clone() end })
  end }
end

rows.CONV_2D = conv_of(function(w) return w:clone() end)
-- Depthwise weights [1 kh kw C] are the grouped convolution's [C kh kw 1].
rows.DEPTHWISE_CONV_2D = conv_of(function(w) return w:permute(4, 2, 3, 1):contiguous() end)

--- Makes the row of a unary operator.
local function unary(act, fn)
  return { make = function(n)
    n:any(1)
    return fn
  end, act = function() return { act = act } end }
end

rows.RELU = unary('relu', function(x) return x:relu() end)
rows.RELU6 = unary('relu6', function(x) return x:clamp(0, 6) end)
rows.LOGISTIC = unary('sigmoid', function(x) return x:sigmoid() end)

rows.PRELU = { make = function(n)
  local shape = n:shape(1)
  n:any(1)
  return layers.feed_prelu(n, 2, shape[#shape - 1] or 1, shape[#shape])
end, act = function(node) return { act = 'prelu', slope = node.inputs[2], by_channel = true } end }

rows.ADD = { kind = 'add', make = function(n)
  n:any(1)
  n:any(2)
  return function(x, y) return x + y end
end }

rows.MAX_POOL_2D = { make = function(n)
  local o = n.node.options
  local options = { kernel = { o.kernel_h, o.kernel_w }, stride = { o.stride_h, o.stride_w }, padding = o.padding }
  n:any(1)
  return function(x) return nn.max_pool2d(x, options) end
end }

rows.PAD = { make = function(n)
  local before, after = n.node.before, n.node.after
  n:any(1)
  return function(x) return nn.pad(x, before, after, 0) end
end }

-- In a batch of inputs, each input is reshaped separately.
rows.RESHAPE = { make = function(n)
  local shape = n.node.shape
  n:any(1)
  local target = { n:shape(1)[1] / n.node.inputs[1].shape[1] * shape[1], unpack(shape, 2) }
  return function(x) return x:reshape(target) end
end }

rows.CONCATENATION = { make = function(n)
  local dim = n.node.dim
  for i = 1, #n.inputs do n:any(i) end
  return function(...) return tensor.cat({ ... }, dim) end
end }

rows.RESIZE_BILINEAR = { make = function(n)
  local shape, method = n.node.shape, n.node.options.half_pixel and 'bilinear' or 'bilinear_edge'
  n:any(1)
  return function(x) return nn.resize(x, shape[2], shape[3], method) end
end }

local OWN_ACT = { relu = 'RELU', relu6 = 'RELU6' }

--- Returns the file's nodes with their rows. The fused activation of an operator becomes a separate node after it.
local function nodes_of(g)
  local nodes = {}
  for _, node in ipairs(g.nodes) do
    if node.op ~= 'DEQUANTIZE' then
      local out, act = node.outputs[1], OWN_ACT[node.options.act]
      node.row, node.shape, node.attributes = rows[node.op], out.shape, {}
      nodes[#nodes + 1] = node
      if act then
        node.outputs = { { name = out.name } }
        nodes[#nodes + 1] = { op = act, what = node.what, row = rows[act], inputs = { node.outputs[1] }, outputs = { out },
          shape = out.shape, attributes = {} }
      end
    end
  end
  return nodes
end

-- ---- the network ------------------------------------------------------------------------------

--- @class cr.tflite.net: cr.graphs.net
--- @field path string
--- @field several boolean whether the input may be a batch
--- @field input {name: string, shape: integer[]}
--- @field outputs {name: string, shape: integer[]}[]
local net = setmetatable({}, { __index = runner.net })
net.__index = net

-- Returns whether several inputs can be stacked along the first dimension: all computed values have size 1 there.
local function takes_several(g)
  for _, node in ipairs(g.nodes) do
    if node.op == 'CONCATENATION' and node.dim == 1 or node.op == 'PAD' and (node.before[1] > 0 or node.after[1] > 0) then
      return false
    end
    for _, v in ipairs(node.outputs) do
      if not v.at and v.shape[1] ~= 1 then return false end
    end
  end
  return g.inputs[1].shape[1] == 1
end

--- Runs the graph on x, f32 of the input's shape on the network's device. Returns the outputs in the file's order. A
--- network for one picture may take a batch in the first dimension, which its outputs then have, too.
--- @param x Tensor
--- @return Tensor ...
function net:run(x)
  if not self.plans then error(self.path .. ': this network was freed', 2) end
  local shape = self.input.shape
  if not same(x.shape, shape) and not (self.several and x.shape[1] > 0 and same({ 1, unpack(x.shape, 2) }, shape)) then
    error(('%s: the input is %s, but it must be %s')
      :format(self.path, show(x.shape), show(self.input.shape)), 2)
  end
  return self:compute { x }
end

--- Fails, and frees the network, unless its input is a square RGB picture and it has all outputs.
--- @param what string what the file should hold, for the message
--- @param complete any whether it has all outputs that are needed
function net:expect(what, complete)
  local s = self.input.shape
  if complete and #s == 4 and s[1] == 1 and s[2] == s[3] and s[4] == 3 then return end
  self:free()
  error(self.path .. ': not ' .. what, 0)
end

--- Prepares a TFLite graph to run. It handles float graphs of the operators that MediaPipe's face models use. Other
--- operators and damaged data raise one sentence.
--- @param path string names the file in messages
--- @param data string the file's bytes
--- @param options {threads: integer, device: string, record: boolean}? threads = number of CPU threads (cr.threads());
---   device = 'cpu' by default; record = record the work of a run on a card and replay it as a whole
--- @return cr.tflite.net
function tflite.parse(path, data, options)
  local g, r = graph.parse(path, data)
  local several = takes_several(g)
  for _, v in pairs(g.values) do
    if v.at and v.dtype ~= 'i32' then v.load = function() return load_constant(r, v) end end
  end
  local outputs = {}
  for i, v in ipairs(g.outputs) do outputs[i] = { name = v.name, shape = v.shape } end
  return runner.new(net, { path = path, nodes = nodes_of(g), entries = g.inputs, results = g.outputs, outputs = outputs,
    threads = options and options.threads, device = options and options.device, record = options and options.record,
    several = several, input = { name = g.inputs[1].name, shape = g.inputs[1].shape } })
end

--- Opens a TFLite file and prepares it to run.
--- @param path string
--- @param options {threads: integer, device: string, record: boolean}? as for tflite.parse
--- @return cr.tflite.net
function tflite.open(path, options) return tflite.parse(path, graph.load(path), options) end

return tflite
