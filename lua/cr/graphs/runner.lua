--- Runs graphs from TFLite and ONNX files by cr's operations; the readers of both formats share it.
--
-- A reader supplies values and nodes in topological order. Each node has a row, which says how its operator is computed:
--
--     row = { make = function(n) ... return run end, kind = 'conv' | 'affine' | 'add' | nil, act = function(node) ... end }
--
-- `make` sees the shapes and constants of the inputs (cr.graphs.node), declares which inputs `run` takes in which
-- layout, and returns `run`, which maps tensors to tensors. A plan is made once for each set of input sizes by
-- running the graph: shapes are taken from the results, and what depends only on constants and shapes is computed
-- then and never again. Running a plan executes its list of steps; on a card it is recorded (cr.graph). Values are
-- freed after their last use.
--
-- Normalization by constants, activations and a sum that follow a convolution are fused into it. Pictures are
-- channels-last internally, whatever the file's layout. A value is converted once if a step needs the other layout.

local base = require 'cr.ffi'
local node_context = require 'cr.graphs.node'
local tensor = require 'cr.tensor'

local C = base.C

local runner = {}

local MAX_PLANS = 8 -- plans kept, one for each set of input sizes
local MOST, MOST_TIMES = 2 ^ 27, 4096 -- a result has at most so many elements, and so many times those of the inputs
local MAX_FIXED = 4096 -- elements of an input whose values may determine shapes

--- @class cr.graphs.value
--- @field name string
--- @field load (fun(): Tensor)? loads the value if it is a constant
--- @field constant Tensor? the constant, once it was loaded

--- @class cr.graphs.net
--- @field path string
--- @field threads integer? how many threads run it
--- @field moved table<Tensor, Tensor> constants on the device, by those on the CPU
--- @field dtype string? of the floats inside
--- @field device string
local net = {}
net.__index = net
runner.net = net

local function count(t) return tonumber(C.cr_numel(t.c)) end

-- Returns a second tensor object that shares the storage, so that a step's result can be freed on its own.
local function share(t)
  local out = tensor.new()
  return tensor.filled(out, C.cr_share(out.c, t.c))
end

-- ---- making a plan ----------------------------------------------------------------------------

-- The state of a value while a plan is made: {shape, dtype, constant = Tensor on the CPU, pure = whether it does not
-- depend on the inputs' sizes} or {shape, dtype, slot =, tensor =, last = whether it is channels-last, from = set of
-- inputs that it depends on}.
local plan_meta = {}
plan_meta.__index = plan_meta

function plan_meta:slot()
  self.slots = self.slots + 1
  return self.slots
end

--- Returns the tensor of a state for a step that runs on the device.
function plan_meta:given(state)
  if state.tensor then return state.slot, state.tensor end
  if not state.slot then
    state.slot = self:slot()
    self.ready[state.slot] = self.net:on_device(state.constant, not state.pure and self.owned)
  end
  return state.slot, self.ready[state.slot]
end

-- Runs fn on tensors in its own scope and returns its results as separate objects, and whether there is a single
-- result that fn made.
local function call(fn, given, n)
  local alone = true
  local results = tensor.scope(function()
    local results = { fn(unpack(given, 1, n)) }
    for i, r in pairs(results) do
      alone = alone and i == 1
      for k = 1, n do
        if rawequal(given[k], r) then
          results[i] = share(r)
          alone = false
        end
      end
    end
    return results
  end)
  return results, alone
end

-- The same for a step with a single new result, by the number of inputs. Runs consist of these, so they use no tables.
local call_alone = {
  [0] = function(fn) return tensor.scope(fn) end,
  function(fn, ins, slots) return tensor.scope(fn, slots[ins[1]]) end,
  function(fn, ins, slots) return tensor.scope(fn, slots[ins[1]], slots[ins[2]]) end,
  function(fn, ins, slots) return tensor.scope(fn, slots[ins[1]], slots[ins[2]], slots[ins[3]]) end,
}

-- The same for a step that makes no other tensor and so needs no scope.
local function call_bare(fn, ins, slots) return (fn(slots[ins[1]], slots[ins[2]], slots[ins[3]], slots[ins[4]], slots[ins[5]])) end

--- Adds a step, runs it, and returns the states of its results.
--- @param fn function
--- @param inputs table states, false for an absent input
--- @param last boolean whether the results are channels-last
--- @param bare boolean? whether fn takes at most five inputs and makes no tensor but its one result
function plan_meta:step(fn, inputs, last, bare)
  local ins, given, from, folded = {}, {}, {}, true
  for i, s in ipairs(inputs) do
    ins[i] = false
    folded = folded and (not s or s.constant ~= nil)
    for k in pairs(s and s.from or {}) do from[k] = true end
  end
  for i, s in ipairs(inputs) do
    if s and folded then given[i] = s.constant elseif s then ins[i], given[i] = self:given(s) end
  end
  local results, alone = call(fn, given, #inputs)
  local states, outs = {}, {}
  for i, t in pairs(results) do
    if count(t) > self.most then error('its result is too large for these inputs', 0) end
    states[i] = { shape = node_context.logical(t.shape, last), dtype = t.dtype, last = last }
    if folded then
      states[i].constant = t
      self.owned[#self.owned + 1] = t
    else
      states[i].tensor, states[i].slot, states[i].from = t, self:slot(), from
      outs[i] = states[i].slot
    end
  end
  if not folded then
    self.steps[#self.steps + 1] = { fn = fn, ins = ins, outs = outs, n = #ins, out = outs[1],
      alone = alone and (bare and call_bare or call_alone[#ins]) }
  end
  return states
end

--- Returns the state in the other layout.
function plan_meta:converted(state, last)
  if (state.last or false) == last or #state.shape < 3 then return state end
  if state.other then return state.other end
  local order = node_context.order(#state.shape, last)
  local made = self:step(function(x) return last and x:permute(order, nil):contiguous() or x:permute(order, nil) end,
    { state }, last)[1]
  state.other = made
  made.other = state
  return made
end

--- Releases the tensor of a value, and adds the release to the plan after the current step.
function plan_meta:release(state)
  local step = self.steps[#self.steps]
  for _, s in ipairs { state, state.other } do
    if s.tensor then
      s.tensor:free()
      step.frees = step.frees or {}
      table.insert(step.frees, s.slot)
    end
  end
end

local function fail_in(self, node, err)
  if type(err) == 'table' then error(err, 0) end
  local text = tostring(err):gsub('^[^\n]-%.lua:%d+: ', '')
  if text:sub(1, #self.path + 1) == self.path .. ':' or C.cr_interrupted() ~= 0 then error(text, 0) end
  error(('%s: %s: %s'):format(self.path, node.what, text), 0)
end

-- Activations that are computed in place on a result with no other user.
local IN_PLACE = { relu = C.CR_RELU, sigmoid = C.CR_SIGMOID }

-- Runs a node and returns the states of its results.
local function run_node(plan, states, node)
  local self = plan.net
  if node.folded then
    local results = {}
    for i, s in pairs(node.folded) do results[i] = { shape = s.shape, dtype = s.dtype, constant = s.constant, pure = true } end
    return results
  end
  local n = node_context.new(plan, node, states)
  local ok, results = pcall(function()
    local run, late = node.row.make(n), n.fused.late
    local in_place = late and #n.afters == 0 and IN_PLACE[late.act]
    if in_place then
      local first = run
      run = function(...)
        local y = first(...)
        base.check(C.cr_unary(y.c, in_place, y.c))
        return y
      end
    elseif late then
      n:after(late.node)
    end
    local made = plan:step(run, n.feeds, n.lasts, n.bare)
    for _, s in ipairs(n.temporary) do
      if s.tensor then plan:release(s) end
    end
    for _, after in ipairs(n.afters) do made = after(made) end
    return made
  end)
  if not ok then fail_in(self, node, results) end
  for i, v in ipairs(node.outputs) do
    if v and not results[i] then fail_in(self, node, ('its output %d is not handled'):format(i)) end
  end
  -- A result that depends neither on inputs nor on sizes is computed once for all plans.
  local pure = true
  for _, v in ipairs(node.inputs) do pure = pure and (not v or states[v].pure or false) end
  if pure then
    for _, s in pairs(results) do
      if s.constant then
        s.pure = true
        self:own(s.constant)
      end
    end
    node.folded = results
  end
  return results
end

local function build(self, given, fixed)
  local plan = setmetatable({ net = self, steps = {}, slots = #given, inputs = #given, ready = {}, owned = {}, outputs = {},
    most = MOST }, plan_meta)
  for _, t in ipairs(given) do plan.most = plan.most + MOST_TIMES * count(t) end
  local states = setmetatable({}, { __index = function(states, v)
    local t = self:constant(v)
    if not t then return nil end
    local s = { shape = t.shape, dtype = t.dtype, constant = t, pure = true }
    rawset(states, v, s)
    return s
  end })
  for i, v in ipairs(self.entries) do
    local t = given[i]
    if fixed[i] then
      local held = t:to('cpu'):clone()
      plan.owned[#plan.owned + 1] = held
      states[v] = { shape = t.shape, dtype = t.dtype, constant = held }
    else
      states[v] = { shape = t.shape, dtype = t.dtype, slot = i, tensor = share(t), from = { [i] = true } }
    end
  end
  local left = {}
  for v, n in pairs(self.uses) do left[v] = n end
  for _, node in ipairs(self.nodes) do
    local results = run_node(plan, states, node)
    for i, v in ipairs(node.outputs) do
      if v then states[v] = results[i] end
    end
    -- Values without further users are released, unused results included.
    for _, list in ipairs { node.inputs, node.outputs } do
      for _, v in ipairs(list) do
        local s = v and rawget(states, v)
        if s and list == node.inputs then left[v] = left[v] - 1 end
        if s and s.tensor and (left[v] or 0) == 0 and #plan.steps > 0 then
          plan:release(s)
          states[v] = nil
        end
      end
    end
  end
  for i, v in ipairs(self.results) do
    local s = states[v]
    if s.constant then
      plan:given(s)
    else
      s = plan:converted(s, false)
    end
    plan.outputs[i] = s.slot
  end
  return plan
end

-- ---- running it -------------------------------------------------------------------------------

local function compute(plan, ...)
  local slots = setmetatable({ ... }, plan.constants)
  for _, step in ipairs(plan.steps) do
    if step.alone then
      slots[step.out] = step.alone(step.fn, step.ins, slots)
    else
      local given, ins = {}, step.ins
      for i = 1, step.n do given[i] = slots[ins[i]] end
      local results = call(step.fn, given, step.n)
      for i, slot in pairs(step.outs) do slots[slot] = results[i] end
    end
    local frees = step.frees
    if frees then
      for i = 1, #frees do
        local slot = frees[i]
        if slot > plan.inputs then C.cr_free(slots[slot].c) end
        slots[slot] = nil
      end
    end
  end
  local out = {}
  for i, slot in ipairs(plan.outputs) do
    out[i] = slots[slot]:is_contiguous() and not plan.ready[slot] and slots[slot] or slots[slot]:clone()
    for k = 1, i - 1 do
      if rawequal(out[k], out[i]) then out[i] = out[i]:clone() end
    end
    for k = 1, plan.inputs do
      if rawequal((select(k, ...)), out[i]) then out[i] = out[i]:clone() end
    end
  end
  return unpack(out)
end

-- Returns the key of a plan: the sizes of the inputs, and the values of those inputs that determine shapes.
local function key_of(self, given)
  local parts = {}
  for i, t in ipairs(given) do
    parts[i] = t.dtype .. table.concat(t.shape, ' ')
    if self.fixed[i] then
      parts[i] = parts[i] .. '=' .. tensor.scope(function()
        local x = t:to('cpu'):contiguous()
        return require 'ffi'.string(C.cr_data(x.c), count(x) * C.cr_dtype_size(x.c.dtype))
      end)
    end
  end
  return table.concat(parts, ';')
end

local function free_plan(plan)
  if plan.graph then plan.graph:free() end
  for _, t in ipairs(plan.owned) do t:free() end
end

local function forget_oldest(self)
  if #self.order <= MAX_PLANS then return end
  local key = table.remove(self.order, 1)
  free_plan(self.plans[key])
  self.plans[key] = nil
end

-- Makes a plan. If a node asks for the values of an input, that input becomes part of the key, and the plan is made again.
local function planned(self, given)
  for _ = 0, #self.entries do
    local key = key_of(self, given)
    if self.plans[key] then return self.plans[key] end
    local plan
    local ok, err = pcall(tensor.scope, function()
      plan = build(self, given, self.fixed)
      tensor.keep(unpack(plan.owned))
    end)
    if ok then
      plan.constants = { __index = plan.ready }
      self.plans[key] = plan
      table.insert(self.order, key)
      forget_oldest(self)
      local function run(...) return compute(plan, ...) end
      plan.run = run
      if self.record then
        plan.graph = require 'cr.graph'.new(run, { limit = 2 }) -- one recording for each of two streams
        plan.run = plan.graph
      end
      return plan
    end
    if type(err) ~= 'table' then error(err, 0) end
    for i in pairs(err.need) do
      if self.fixed[i] or count(given[i]) > MAX_FIXED then
        error(('%s: %s: %s'):format(self.path, err.what, err.text), 0)
      end
      self.fixed[i] = true
    end
  end
end

--- Runs the graph on tensors, one for each input, on the net's device.
--- @param given Tensor[]
--- @return Tensor ... the outputs in the file's order
function net:compute(given)
  if not self.plans then error(self.path .. ': this network was freed', 0) end
  local before = C.cr_threads()
  if self.threads then C.cr_set_threads(self.threads) end
  --- @type any[]
  local results = { pcall(tensor.scope, function()
    return planned(self, given).run(unpack(given))
  end) }
  if self.threads then C.cr_set_threads(before) end
  if not results[1] then error(results[2], 0) end
  return unpack(results, 2)
end

--- Returns the constant that a value is, on the CPU, or nil.
function net:constant(v)
  if not v.constant and v.load then v.constant = self:own(v.load()) end
  return v.constant
end

--- Keeps a tensor as long as the network.
function net:own(t)
  tensor.keep(t)
  self.owned[#self.owned + 1] = t
  return t
end

--- Returns a constant on the device, with floats in the network's dtype.
--- @param t Tensor
--- @param owned table? the list that owns it, for a constant of one plan, which is not cached
function net:on_device(t, owned)
  local there = not owned and self.moved[t]
  if there then return there end
  there = tensor.scope(function()
    local x = self.dtype and t.dtype == 'f32' and t:to(self.dtype) or t
    x = x:to(self.device):contiguous()
    return rawequal(x, t) and share(t) or x
  end)
  if not owned then
    self.moved[t] = self:own(there)
  else
    table.insert(owned, there)
  end
  return there
end

--- Frees the weights and plans. The network cannot run afterwards. Calling it twice is allowed.
function net:free()
  for _, plan in pairs(self.plans or {}) do free_plan(plan) end
  for _, t in ipairs(self.owned) do t:free() end
  self.plans, self.owned = nil, {}
end

--- Makes a network of values and nodes. Each node is {op, what = its name in messages, row, inputs = (value or
--- false)[], outputs}.
--- @generic T
--- @param class T the metatable of the network, which inherits from `net`
--- @param self table {path, entries = input values, results = output values, nodes, device = 'cpu', dtype = nil
---   (replaces f32), threads = nil, record = whether work on a card is recorded}, and further fields of the class;
---   becomes the network
--- @return T
function runner.new(class, self)
  self.device = self.device or 'cpu'
  self.record = self.record and self.device ~= 'cpu'
  self.nodes = require 'cr.graphs.fuse'(self.nodes, self.results)
  self.plans, self.order, self.fixed, self.owned = {}, {}, {}, {}
  self.moved = setmetatable({}, { __mode = 'k' })
  self.uses = {}
  local function use(v) self.uses[v] = (self.uses[v] or 0) + 1 end
  for _, node in ipairs(self.nodes) do
    for _, v in ipairs(node.inputs) do
      if v then use(v) end
    end
  end
  for _, v in ipairs(self.results) do use(v) end
  return setmetatable(self, class)
end

return runner
