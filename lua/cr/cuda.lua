--- Cards: what they are, their options, waiting for them, timing on them.
--
--     if cr.cuda.available() then
--       cr.cuda.device.tf32 = true          -- float32 products in TF32
--       print(cr.cuda.info().name, cr.cuda.time(function() return x:matmul(x) end) .. ' ms')
--     end

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local errors = require 'cr.errors'
local tensor = require 'cr.tensor'

local C = base.C

local M = {}

--- @return integer
local function code_of(name, device)
  local code = tensor.device_code(name, device or 'cuda') --[[@as integer]]
  if code == C.CR_CPU then base.fail(name .. ': a card is needed, not the CPU') end
  return code
end

--- Whether a card can be used; if not, why.
--- @return boolean
--- @return string? why
function M.available()
  local n = C.cr_device_count()
  if n > 0 then return true end
  return false, n == 0 and 'no NVIDIA card is in this machine' or
      (ffi.string(C.cr_last_error()):gsub('^device_count: ', ''))
end

--- Number of cards, 0 where none can be used.
function M.count() return math.max(0, C.cr_device_count()) end

--- What a device's name stands for; one sentence if it is no device, or one that cannot be used.
--- @param name string 'auto' (a card if there is one), 'cpu', 'cuda' or 'cuda:N'
--- @param where string? before the sentence: '--device'
--- @return string 'cpu', or the card
function M.choose(name, where)
  where = where or 'device'
  if name == 'cpu' then return 'cpu' end
  if name:find ',' or name == 'cuda:all' then
    errors.fail(('%s %s: one device is taken here; lipsync, upscale, compare and serve take several cards'):format(where, name))
  end
  if name ~= 'auto' and not name:find '^cuda:?%d*$' then
    errors.fail(("%s: '%s' is not auto, cpu, cuda or cuda:N"):format(where, name))
  end
  local available, why = M.available()
  if available then return name == 'auto' and 'cuda' or name end
  if name == 'auto' then return 'cpu' end
  errors.fail(('%s %s: %s'):format(where, name, why))
end

-- The number of a card by its name, from 0; nil: it is no card's.
local function number_of(name)
  local digits = name:match '^cuda:?(%d*)$'
  return digits and (tonumber(digits) or 0)
end

--- The devices that a name or a list of cards stands for; one sentence if it is none, or if one cannot be used.
--- @param text string as of `choose`; 'cuda:0,cuda:1' (any number, each once) or 'cuda:all'
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
    if word == 'cpu' then fail 'the CPU cannot work beside cards: name cards alone, or cpu alone' end
    if word == 'cuda:all' then fail 'cuda:all is every card: name it alone' end
    if not number then fail("'%s' is no card: a list is of cards, as in cuda:0,cuda:1", word) end
    if seen[number] then fail('cuda:%d stands there twice: name each card once', number) end
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

--- Whether a card can still be used after an error: it has not failed, and there is memory.
--- @param err any what was raised
--- @param device string 'cuda:0'
--- @return boolean
function M.survived(err, device)
  if type(err) == 'string' and err:find('out of memory', 1, true) then return false end
  return device == 'cpu' or (pcall(M.info, device))
end

--- What a card is: {name, capability = '9.0', multiprocessors, memory_total, memory_free (bytes),
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

-- Options of operations that Lua makes of others: what is off, by card.
local switched_off = { conv_upsample = {} }

--- Whether such an option is on; on the CPU it always is.
--- @param name string
--- @param code integer the device's
--- @return boolean
function M.wants(name, code) return not switched_off[name][code] end

--- A card's options, read and set like fields:
--- tf32 (false): float32 products and convolutions in TF32, faster and less exact;
--- search (true): algorithms are timed once per shape and remembered on disk;
--- blocking (false, or CR_CUDA_BLOCKING=1): waits after every operation, so that a fault names its own;
--- fp8_fast (false): products of 8-bit floats (cr.quant) sum with fewer bits, faster.
---
--- What operations take along instead of doing it in a pass of its own, each true:
--- linear_bias, linear_activation (ReLU; others are passes of their own), linear_residual,
--- linear_geglu (on Hopper);
--- conv_bias, conv_activation, conv_residual;
--- conv_upsample (a picture's doubling, where the weights are prepared for it);
--- norm_bias (group norm's bias_before), norm_silu, norm_after (layer norm's `after`);
--- fusion: whether all of these are on; sets all of them.
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

--- Waits until everything queued on a card is done. In a task, others run meanwhile.
--- @param device string? 'cuda'; a CPU never has to be waited for
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

--- Marks what this task's stream has been given so far: cr.await(cr.cuda.mark()) waits until that is done, and not
--- for what is given later, and gives the microseconds of cr.clock, modulo 2^31, at which it was done. Await each
--- mark once.
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

--- Chooses the stream of this task (of the main program outside of one): 0 for networks, 1 for short
--- work beside them, which the card serves first. Other tasks keep theirs.
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

--- From now on this task lets others run while it waits for a card whose numbers it reads (to, copy_, item, tolist); else a
--- read keeps the thread. What it reads must be of its own stream.
function M.be_patient()
  local task = require 'cr.loop'.current()
  if not task then base.fail 'cuda.be_patient: outside of a task nobody else could run' end
  patient[task] = true
  tensor.on_read(wait_for)
end

--- Gives a tensor that this task's stream works on to another one, which will wait for what this stream has been
--- given so far. Else it waits, when it first uses the tensor, for all that is given until then. A tensor on the
--- CPU belongs to no stream.
--- @param t Tensor not empty
--- @param stream integer 0 or 1
function M.hand_over(t, stream)
  if t.device == 'cpu' then return end
  local own = in_use
  switch(stream)
  -- The first use is what hands a tensor over: of one number.
  local ok, err = pcall(tensor.scope, function()
    local one = t
    for dim = 1, t:dim() do one = one:narrow(dim, 1, 1) end
    one:clone()
  end)
  switch(own)
  if not ok then error(err, 0) end
end

--- Starts a card anew after a fault. All that it held is lost: tensors on it say so when used.
--- @param device string? 'cuda'
function M.reset(device) base.check(C.cr_device_reset(code_of('cuda.reset', device))) end

--- Lets tensors on a card hold at most `bytes` (0: all there is), as a smaller card would.
--- @param bytes integer
--- @param device string? 'cuda'
function M.limit(bytes, device) base.check(C.cr_memory_limit(code_of('cuda.limit', device), bytes)) end

local preparing = {} -- device -> a guard that waits for it when the program ends

--- Begins to make CUDA's libraries ready for a card on a thread of its own, while the caller does what needs none of
--- them, such as loading weights; their first use waits for it.
--- @param device string? 'cuda'
function M.prepare(device)
  local code = code_of('cuda.prepare', device)
  if preparing[code] then return end
  preparing[code] = ffi.gc(ffi.new('int64_t[1]', 0), function(off) C.cr_device_option(code, 'prepare', off, 1) end)
  base.check(C.cr_device_option(code, 'prepare', ffi.new('int64_t[1]', 1), 1))
end

local clock = require 'cr.clock'

--- Median time of fn on a card. What it returns is freed.
--- @param fn function
--- @param runs integer? 10 measurements, each of as many calls as take about 5 ms
--- @param device string? 'cuda'
--- @return number milliseconds of one call
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

--- The __global__ functions of CUDA source, compiled when first called: each takes how it is launched, then what its
--- parameters say, tensors for pointers.
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

--- The options of the first card; the card is asked only when one is read or set.
M.device = M.options()

return setmetatable(M, { __index = function(_, name)
  local absent, known = require 'cr.tensor.absent', {}
  for other in pairs(M) do known[#known + 1] = other end
  absent.refuse('cr.cuda', name, absent.cards[name], known)
end })
