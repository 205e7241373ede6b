--- NVIDIA cards (GPUs): their properties and options, synchronization, streams, timing.
--
--     if cr.cuda.available() then
--       cr.cuda.device.tf32 = true          -- float32 GEMMs in TF32
--       print(cr.cuda.info().name, cr.cuda.time(function() return x:matmul(x) end) .. ' ms')
--     end

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local errors = require 'cr.errors'
local tensor = require 'cr.tensor'

local C = base.C

local M = {
  BESIDE = 1, -- the stream for short work beside the networks, which run on stream 0
}

--- @return integer
local function code_of(name, device)
  local code = tensor.device_code(name, device or 'cuda') --[[@as integer]]
  if code == C.CR_CPU then base.fail(name .. ': a card is needed, not the CPU') end
  return code
end

--- Returns whether a card can be used and, if not, why.
--- @return boolean
--- @return string? why
function M.available()
  local n = C.cr_device_count()
  if n > 0 then return true end
  return false, n == 0 and 'no NVIDIA card is in this machine' or
      (ffi.string(C.cr_last_error()):gsub('^device_count: ', ''))
end

--- Returns the number of cards, 0 if none can be used.
function M.count() return math.max(0, C.cr_device_count()) end

--- Resolves the name of a device. An unknown device, or one that cannot be used, raises one sentence.
--- @param name string 'auto' (a card if there is one), 'cpu', 'cuda' or 'cuda:N'
--- @param where string? before the sentence: '--device'
--- @return string 'cpu', or the card
function M.choose(name, where)
  where = where or 'device'
  if name == 'cpu' then return 'cpu' end
  if name:find ',' or name == 'cuda:all' then
    errors.fail(('%s %s: only one device is possible here; lipsync, upscale, compare and serve take several cards'):format(where, name))
  end
  if name ~= 'auto' and not name:find '^cuda:?%d*$' then
    errors.fail(("%s: '%s' is not auto, cpu, cuda or cuda:N"):format(where, name))
  end
  local available, why = M.available()
  if available then return name == 'auto' and 'cuda' or name end
  if name == 'auto' then return 'cpu' end
  errors.fail(('%s %s: %s'):format(where, name, why))
end

-- Returns the number of a card from its name, counted from 0, or nil if the name is no card's.
local function number_of(name)
  local digits = name:match '^cuda:?(%d*)$'
  return digits and (tonumber(digits) or 0)
end

--- Resolves a name or a list of cards to devices. An unknown device, or one that cannot be used, raises one sentence.
--- @param text string a name that `choose` takes, 'cuda:0,cuda:1' (any number of cards, each once) or 'cuda:all'
--- @param where string? before the sentence: '--device'
--- @return string[] one device or several cards
function M.choose_all(text, where)
  where = where or 'device'
  local function fail(...) errors.fail(('%s %s: '):format(where, text) .. (...):format(select(2, ...))) end
  if text ~= 'cuda:all' and not text:find ',' then
    local name = M.choose(text, where)
    local number = number_of(name)
    if number and number >= M.count() then fail('there is no card cuda:%d; this machine has %d', number, M.count()) end
    return { name }
  end
  local list, seen = {}, {}
  for word in (text == 'cuda:all' and '' or text .. ','):gmatch '([^,]*),' do
    local number = number_of(word)
    if word == 'cpu' then fail 'the CPU cannot be combined with cards: list only cards, or only cpu' end
    if word == 'cuda:all' then fail 'cuda:all already means every card: write it alone' end
    if not number then fail("'%s' is not a card: a list contains cards only, as in cuda:0,cuda:1", word) end
    if seen[number] then fail('cuda:%d is listed twice: list each card once', number) end
    seen[number] = true
    list[#list + 1] = 'cuda:' .. number
  end
  local available, why = M.available()
  if not available then fail('%s', why) end
  local count = M.count()
  for number in pairs(seen) do
    if number >= count then fail('there is no card cuda:%d; this machine has %d', number, count) end
  end
  for number = 0, text == 'cuda:all' and count - 1 or -1 do list[#list + 1] = 'cuda:' .. number end
  return list
end

--- Returns whether a card can still be used after an error: it has no sticky fault, and the error was not "out of memory".
--- @param err any what was raised
--- @param device string 'cuda:0'
--- @return boolean
function M.survived(err, device)
  if type(err) == 'string' and err:find('out of memory', 1, true) then return false end
  return device == 'cpu' or (pcall(M.info, device))
end

--- Returns the properties of a card: {name, capability = '9.0', multiprocessors, memory_total, memory_free (bytes),
--- driver, runtime = '13.0', cublas, cudnn = '9.14.0'}.
--- @param device string? 'cuda'
function M.info(device)
  local i = ffi.new 'cr_device_info'
  base.check(C.cr_device_info_get(code_of('cuda.info', device), i))
  local function cuda(v) return ('%d.%d'):format(v / 1000, v % 1000 / 10) end
  local function library(v, unit) -- 130100 is 13.1.0, cuDNN's 91400 is 9.14.0
    v = tonumber(v)
    return ('%d.%d.%d'):format(v / unit, v % unit / 100, v % 100)
  end
  return {
    name = ffi.string(i.name), capability = ('%d.%d'):format(i.major, i.minor),
    multiprocessors = i.multiprocessors, memory_total = tonumber(i.memory_total),
    memory_free = tonumber(i.memory_free), driver = cuda(i.driver), runtime = cuda(i.runtime),
    cublas = library(i.cublas, 10000), cudnn = library(i.cudnn, 10000),
  }
end

-- The options of operations that Lua composes of others: the cards on which each is off.
local switched_off = { conv_upsample = {} }

--- Returns whether such an option is on. On the CPU it always is.
--- @param name string
--- @param code integer the device's
--- @return boolean
function M.wants(name, code) return not switched_off[name][code] end

--- The options of a card, read and set like fields (in brackets the default):
--- tf32 (false): float32 GEMMs and convolutions use TF32, faster and less exact;
--- search (true): algorithms are timed once per shape and cached on disk;
--- blocking (false, or CR_CUDA_BLOCKING=1): synchronizes after every operation, so that an error names the operation at fault;
--- fp8_fast (false): 8-bit float GEMMs (cr.quant) accumulate with fewer bits, faster.
---
--- Fusions, each true by default; false runs the part as a separate kernel:
--- linear_bias, linear_activation (ReLU only; other activations are never fused), linear_residual, linear_geglu (on Hopper);
--- conv_bias, conv_activation, conv_residual;
--- conv_upsample (the doubling of a picture, where the weights are prepared for it);
--- norm_bias (group norm's bias_before), norm_silu, norm_after (layer norm's `after`);
--- fusion: true if all of these are on; setting it sets all of them.
--- @param device string? 'cuda'
function M.options(device)
  local code = code_of('cuda.options', device)
  local value = ffi.new 'int64_t[1]'
  return setmetatable({}, {
    __index = function(_, name)
      if switched_off[name] then return M.wants(name, code) end
      base.check(C.cr_device_option(code, name, value, 0))
      local on = value[0] ~= 0
      if name == 'fusion' then
        for key in pairs(switched_off) do on = on and M.wants(key, code) end
      end
      return on
    end,
    __newindex = function(_, name, v)
      if type(v) ~= 'boolean' then base.fail(('cuda: option %s is true or false, not %s'):format(name, tostring(v))) end
      if switched_off[name] then
        switched_off[name][code] = not v
        return
      end
      value[0] = v and 1 or 0
      base.check(C.cr_device_option(code, name, value, 1))
      if name == 'fusion' then
        for _, cards in pairs(switched_off) do cards[code] = not v end
      end
    end,
  })
end

--- Waits until a card has finished everything queued on it. Inside a task, other tasks run meanwhile.
--- @param device string? 'cuda'
function M.synchronize(device)
  if device == 'cpu' then return end
  local code = code_of('cuda.synchronize', device)
  local loop = package.loaded['cr.loop']
  if loop and loop.current() then
    loop.await(M.mark(device))
    return
  end
  base.check(C.cr_device_synchronize(code))
end

--- Records an event on this task's stream: cr.await(cr.cuda.mark()) waits until the work queued so far is done, but
--- not for work queued later. It returns the time at which that work was done, in microseconds of cr.clock modulo
--- 2^31. Await each mark exactly once.
--- @param device string? 'cuda'
--- @return integer job
function M.mark(device)
  local job = tonumber(C.cr_device_record(code_of('cuda.mark', device)))
  if job < 0 then base.raise() end
  return job
end

local chosen = setmetatable({}, { __mode = 'k' }) -- task -> stream
local in_use = 0

local function switch(stream)
  if stream == in_use then return end
  base.check(C.cr_device_stream(stream))
  in_use = stream
end

--- Chooses the stream of this task, or of the main program outside a task. Stream 0 is for networks; stream 1 has a
--- higher priority and is for short work beside them. Other tasks keep their streams.
--- @param stream integer 0 or 1
function M.stream(stream)
  local loop = require 'cr.loop'
  local task = loop.current()
  switch(stream)
  chosen[task or M] = stream
  loop.on_switch = function(next_task) switch(chosen[next_task or M] or 0) end
end

local patient = setmetatable({}, { __mode = 'k' }) -- tasks

local function wait_for(t)
  local loop = require 'cr.loop'
  if base.recording or not patient[loop.current() or M] then return end
  loop.await(M.mark(t.device))
end

--- Makes this task, from now on, let other tasks run while it waits for a card whose numbers it reads (to, copy_, item,
--- tolist); otherwise a read blocks the thread. What it reads must belong to its own stream.
function M.be_patient()
  local task = require 'cr.loop'.current()
  if not task then base.fail 'cuda.be_patient: outside a task there are no other tasks to run: call it in a task' end
  patient[task] = true
  tensor.on_read(wait_for)
end

--- Hands a tensor from this task's stream over to another stream, which then waits only for the work queued so far.
--- Without a hand-over, the other stream waits at its first use of the tensor for all work queued until then. Tensors
--- on the CPU belong to no stream.
--- @param t Tensor not empty
--- @param stream integer 0 or 1
function M.hand_over(t, stream)
  if t.device == 'cpu' then return end
  local own = in_use
  switch(stream)
  -- The first use of a tensor on a stream hands it over, so one element of it is used here.
  local ok, err = pcall(tensor.scope, function()
    local one = t
    for dim = 1, t:dim() do one = one:narrow(dim, 1, 1) end
    one:clone()
  end)
  switch(own)
  if not ok then error(err, 0) end
end

--- Resets a card after a fault. All its contents are lost, and using a tensor on it raises an error that says so.
--- @param device string? 'cuda'
function M.reset(device) base.check(C.cr_device_reset(code_of('cuda.reset', device))) end

--- Limits the memory of tensors on a card to `bytes` (0: no limit), to try what a smaller card can do.
--- @param bytes integer
--- @param device string? 'cuda'
function M.limit(bytes, device) base.check(C.cr_memory_limit(code_of('cuda.limit', device), bytes)) end

local preparing = {} -- device -> a guard that waits for it when the program ends

--- Starts to initialize a card and CUDA's libraries for it on another thread, while the caller does work that does not
--- need them, such as reading files. Their first use waits for it.
--- @param device string? 'cuda'
function M.prepare(device)
  local code = code_of('cuda.prepare', device)
  if preparing[code] then return end
  preparing[code] = ffi.gc(ffi.new('int64_t[1]', 0), function(off) C.cr_device_option(code, 'prepare', off, 1) end)
  base.check(C.cr_device_option(code, 'prepare', ffi.new('int64_t[1]', 1), 1))
end

local clock = require 'cr.clock'

--- Measures the median time of fn on a card. Tensors that fn returns are freed.
--- @param fn function
--- @param runs integer? number of measurements (10); each makes as many calls as take about 5 ms
--- @param device string? 'cuda'
--- @return number milliseconds per call
function M.time(fn, runs, device)
  local code = code_of('cuda.time', device)
  local function round(n)
    base.check(C.cr_device_synchronize(code))
    local start = clock()
    for _ = 1, n do tensor.scope(function() fn() end) end
    base.check(C.cr_device_synchronize(code))
    return (clock() - start) * 1e3 / n
  end
  round(2)
  local n = math.max(1, math.min(1000, math.floor(5 / round(3))))
  local times = {}
  for i = 1, runs or 10 do times[i] = round(n) end
  table.sort(times)
  return times[math.floor((#times + 1) / 2)]
end

--- Compiles CUDA source and returns its __global__ functions. Each is compiled at its first call, and takes its
--- launch configuration, then its parameters, with tensors for pointers.
---
---     local code = cr.cuda.source [[
---       __global__ void scale(float *y, const float *x, float s, int n) {
---         int i = blockIdx.x * blockDim.x + threadIdx.x;
---         if (i < n) y[i] = x[i] * s;
---       }
---     ]]
---     code.scale({ grid = math.ceil(x:numel() / 256), block = 256 }, y, x, 2, x:numel())
--- @param text string
--- @return table<string, function> fn({grid = n or {x, y, z}, block = n or {x, y, z}, shared = bytes}, ...)
function M.source(text) return require 'cr.kernel.cuda_source'.new(text) end

local device = arguments.maybe(arguments.string)
local streams = arguments.kind('0 or 1', function(v) return v == 0 or v == 1 end)
arguments.guard('cuda.', M, {
  available = {}, count = {}, source = { arguments.string }, choose = { arguments.string, arguments.maybe(arguments.string) },
  choose_all = { arguments.string, arguments.maybe(arguments.string) }, survived = { arguments.any, arguments.string },
  info = { device }, options = { device }, synchronize = { device }, mark = { device }, reset = { device },
  prepare = { device }, stream = { streams }, be_patient = {}, hand_over = { tensor.kinds.alive, streams },
  limit = { arguments.kind('a number of bytes', function(v)
    return type(v) == 'number' and v % 1 == 0 and v >= 0 and v < 2 ^ 63
  end), device },
  time = { arguments.callable, arguments.maybe(arguments.positive), device },
})

--- The options of the first card. The card is accessed only when an option is read or set.
M.device = M.options()

return setmetatable(M, { __index = function(_, name)
  local absent, known = require 'cr.tensor.absent', {}
  for other in pairs(M) do known[#known + 1] = other end
  absent.refuse('cr.cuda', name, absent.cards[name], known)
end })
