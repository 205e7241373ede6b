--- ONNX files as networks:
---
---     local net = cr.onnx.open 'model.onnx'
---     local y = net:run { ['input.1'] = x }
--
-- cr.weights reads the files: it executes nothing, and it takes external data only from the folder of the file. Sizes
-- come from the input tensors, never from the file's declarations. Operator sets 7 to 25 are handled, without control
-- flow and recurrent layers. `net.missing` lists the nodes that are not handled, and running such a file raises one
-- sentence.

local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local files = require 'cr.graphs.onnx.file'
local runner = require 'cr.graphs.runner'
local tensor = require 'cr.tensor'

local onnx = {}

--- @class cr.onnx.net: cr.graphs.net
--- @field path string
--- @field opset integer
--- @field inputs {name: string, dtype: string, shape: (integer|string)[]?}[] as the file declares them
--- @field outputs {name: string, dtype: string, shape: (integer|string)[]?}[]
--- @field operators table<string, integer> the number of nodes by operator
--- @field missing {op: string, what: string}[] nodes that are not handled
--- @field file WeightsFile holds the constants
--- @field dtype string? dtype of the floats inside, if one was requested
local net = setmetatable({}, { __index = runner.net })
net.__index = net

local function fail(self, format, ...) error(self.path .. ': ' .. format:format(...), 0) end

local HANDLED = { f32 = true, f16 = true, bf16 = true, f64 = true, u8 = true, i8 = true, i16 = true, i32 = true, i64 = true, bool = true }

--- Fails if the file cannot be run.
function net:expect_handled()
  local first = self.missing[1]
  if first then
    local more = #self.missing > 1 and (', and %d more nodes are not handled'):format(#self.missing - 1) or ''
    fail(self, 'the operator %s of %s, operator set %d, is not handled%s', base.printable(first.op), first.what, self.opset, more)
  end
  if self.opset < files.OLDEST or self.opset > files.NEWEST then
    fail(self, 'operator set %d is not handled: %d to %d are handled', self.opset, files.OLDEST, files.NEWEST)
  end
  for _, v in ipairs(self.inputs) do
    if not HANDLED[v.dtype] then
      fail(self, "input '%s' is %s, which is not handled", base.printable(v.name), v.dtype == 'other' and 'no tensor of numbers' or v.dtype)
    end
  end
end

local function names_of(list)
  local names = {}
  for i, v in ipairs(list) do names[i] = "'" .. base.printable(v.name) .. "'" end
  return table.concat(names, ', ')
end

local FLOATS = { f32 = true, f16 = true, bf16 = true, f64 = true }

-- Returns the given tensors in the order of the inputs, on the device, with floats in the network's dtype.
local function in_order(self, given)
  local list, known = {}, {}
  if tensor.is_tensor(given) then given = { [self.inputs[1] and self.inputs[1].name or ''] = given } end
  for i, v in ipairs(self.inputs) do
    known[v.name] = true
    local x = given[v.name]
    if x == nil then fail(self, "input '%s' is missing: the inputs are %s", base.printable(v.name), names_of(self.inputs)) end
    local dtype = FLOATS[v.dtype] and FLOATS[x.dtype] and (v.dtype == 'f32' and self.dtype or v.dtype) or v.dtype
    if FLOATS[dtype] ~= FLOATS[x.dtype] then
      fail(self, "input '%s' is %s, and a tensor of %s was given", base.printable(v.name), v.dtype, x.dtype)
    end
    list[i] = x:to(self.device):to(dtype):contiguous()
  end
  for name in pairs(given) do
    if not known[name] then
      fail(self, "there is no input '%s': the inputs are %s", base.printable(tostring(name)), names_of(self.inputs))
    end
  end
  return list
end

--- Runs the graph.
--- @param inputs Tensor|table<string, Tensor> by the inputs' names, in the file's layout [N C H W], on any device; a
---   single tensor is the first input
--- @return Tensor ... the outputs in the file's order and layout; 16-bit floats are returned as f32
function net:run(inputs)
  self:expect_handled()
  return tensor.scope(function()
    local out = { self:compute(in_order(self, inputs)) }
    for i, t in ipairs(out) do
      if self.dtype and t.dtype == self.dtype and self.outputs[i].dtype == 'f32' then out[i] = t:to 'f32' end
    end
    return unpack(out)
  end)
end

--- Frees the weights. The network cannot run afterwards. Calling it twice is allowed.
function net:free()
  runner.net.free(self)
  self.file:close()
end

--- Opens an ONNX file and prepares it to run.
--- @param path string
--- @param options table? {device = 'cpu', dtype = 'f32' (of the floats inside: or 'f16', 'bf16'), threads = number of
---   CPU threads (cr.threads()), record = true: work on a card is recorded and replayed (cr.graph)}
--- @return cr.onnx.net
function onnx.open(path, options)
  options = options or {}
  local g, file = files.read(path)
  local self = runner.new(net, { path = path, file = file, opset = g.opset, producer = g.producer, operators = g.operators or {},
    missing = g.missing, count = g.count or 0, inputs = g.inputs_shown, outputs = g.outputs_shown,
    entries = g.inputs, results = g.results, nodes = g.nodes, take = g.constant, device = options.device, threads = options.threads,
    dtype = options.dtype ~= 'f32' and options.dtype or nil, record = options.record ~= false })
  return self
end

local maybe = arguments.maybe
arguments.guard('onnx.', onnx, {
  open = { arguments.string, maybe(arguments.options {
    device = maybe(arguments.string), dtype = maybe(arguments.choice('dtype', { 'f32', 'f16', 'bf16' })),
    threads = maybe(arguments.positive), record = maybe(arguments.boolean),
  }) },
})

return onnx
