--- The library's refusals: wrong arguments, unknown options, surplus arguments. All public functions are tested, so
--- that a new one cannot be forgotten.

local arguments = require 'cr.arguments'
local cr = require 'cr'
local cuda = require 'cr.cuda'
local errors = require 'cr.errors'
local ffi = require 'ffi'
local help = require 'cr.tools.help'
local image = require 'cr.image'
local media = require 'cr.media'
local nn = require 'cr.nn'
local schedulers = require 'cr.schedulers'
local t = require 'tests.support.tap'
local weights = require 'cr.weights'

local methods = require 'cr.tensor'.methods
local rooms = { cr = cr, tensor = methods, nn = nn, image = image, cuda = cuda, media = media, weights = weights,
  quant = require 'cr.quant', graph = require 'cr.graph' }

-- Functions that block, or do much work, get no random arguments.
local waiting = { loop = require 'cr.loop', schedulers = schedulers, guidance = require 'cr.guidance',
  cache = require 'cr.cache', latentsync = require 'models.latentsync', job = require 'models.latentsync.job',
  windows = require 'models.latentsync.windows', session = require 'models.latentsync.session' }

-- These check their own arguments in a way that no row can express: sizes one by one, or types of another room.
local own = { 'cr.empty', 'cr.zeros', 'cr.ones', 'cr.randn', 'cr.rand', 'cr.scope', 'cr.keep',
  'tensor.view', 'tensor.reshape', 'tensor.permute', 'tensor.expand', 'tensor.tile', 'tensor.repeat_' }
for i, name in ipairs(own) do own[name] = i end
-- Exempt: tests for tensors, C results, an internal function.
local inner = { ['cr.is_tensor'] = true, ['cr.check'] = true, ['cuda.wants'] = true, ['weights.printable'] = true }

-- Calls fn(name, function) for every public function of the rooms, in a fixed order.
local function each_function(fn, ...)
  local names, functions = {}, {}
  for _, group in ipairs { rooms, ... } do
    for room, module in pairs(group) do
      for name, value in pairs(module) do
        local full = room .. '.' .. name
        if type(value) == 'function' and not inner[full] then
          names[#names + 1], functions[full] = full, value
        end
      end
    end
  end
  table.sort(names)
  for _, name in ipairs(names) do fn(name, functions[name]) end
end

-- Values of which at least one is valid for each kind of argument.
local function values()
  local x = cr.ones(2, 2)
  return {
    x, 1, 'cpu', 'philox', 'none', 'int8', 'nearest', { 1, 0, 0, 0, 1, 0 }, { 1 }, { x }, true, function() end,
    { kernel = 1 }, { size = { 1 } },
    { width = 1, height = 1 }, { x = 1, y = 1, side = 1 }, { codes = x, scale = x }, { weight = x, scale = x },
    { weight = x }, { names = {} }, { {} }, ffi.new 'float[4]', 0, { { 1, 1 } }, { timesteps = {} }, { cond = x, timesteps = {} },
    { latents = {} }, { 'a.wav' }, cr.generator(1), { rate = 8000 },
  }
end

-- A valid value for a kind, perhaps nil; and whether there is one.
local function value_for(kind, pool)
  if kind.test(nil) then return nil, true end
  for _, v in ipairs(pool) do
    if kind.test(v) then return v, true end
  end
end

local HERE = '^tests/refusals_test.lua:%d+: '
local INSIDES = { 'attempt to', 'bad argument', 'lua/cr/', 'cannot convert', 'upvalue', 'stack traceback', 'NYI', 'cr_%w+_' }

-- A sentence if an error's text is wrong, otherwise nil.
local function fault_of(message)
  if errors.is_failure(message) then return nil end -- failures of the command line have no position on purpose
  if type(message) ~= 'string' then message = tostring(message) end
  if not message:find(HERE) then return 'not at the caller: ' .. message end
  for _, inside in ipairs(INSIDES) do
    if message:find(inside) then return 'says "' .. inside .. '": ' .. message end
  end
  if message:find '\n' then return 'more than a line: ' .. message end
end

t.test('every public function declares its arguments', function()
  local seen = 0
  each_function(function(name, fn)
    seen = seen + 1
    t.ok((arguments.row(fn) == nil) == (own[name] ~= nil), name .. ' has no row of arguments')
  end, waiting)
  t.ok(seen > 150, seen .. ' functions')
end)

-- Calls a function with valid arguments and one more, and with unknown options; `first`: the object of a method.
local function refuses(name, fn, row, pool, first, on_options)
  local given = {}
  for i, kind in ipairs(row) do
    local found
    given[i], found = value_for(kind, pool)
    if i == 1 and first then given[i], found = first, true end
    t.ok(found, name .. ': a value for argument ' .. i)
  end
  given[#row + 1] = 'surplus'
  local ok, message = pcall(function() fn(unpack(given, 1, #row + 1)) end)
  t.ok(not ok and message:find "'surplus' is an argument too many" and not fault_of(message), name .. ': ' .. tostring(message))
  for i, kind in ipairs(row) do
    if kind.options then
      on_options(kind.options)
      local before = given[i]
      given[i] = { unknowable = 1 }
      ok, message = pcall(function() fn(unpack(given, 1, #row)) end)
      t.ok(not ok and message:find "there is no option 'unknowable': did you mean" and not fault_of(message),
        name .. ': ' .. tostring(message))
      given[i] = before
    end
  end
end

t.test('surplus arguments and unknown options are refused everywhere', function()
  cr.scope(function()
    local pool, tables = values(), 0
    each_function(function(name, fn)
      local row = arguments.row(fn)
      if not row or row.vararg then return end
      refuses(name, fn, row, pool, nil, function(options)
        tables = tables + 1
        local told = help.options(name:match '[%w_]+$')
        for _, option in ipairs(options) do t.ok(told[option], name .. ': its comment has no option ' .. option) end
      end)
    end, waiting)
    t.ok(tables >= 15, tables .. ' tables of options')
  end)
end)

-- Methods of which schedulers' own files are made.
local function is_inner(entry) return entry.of == 'scheduler' and entry.meta == 'any' end

t.test("every object's methods declare their arguments, and refuse like functions", function()
  require 'cr.schedulers'.load 'ddim'
  require 'cr.cache'.plan 'deepcache:3,tea:0.2'
  for _, name in ipairs { 'interval', 'off_last', 'rescaled' } do require('cr.guidance.around.' .. name) end
  require 'cr.guidance'.new {}
  require 'cr.weights.shards'
  require 'models.networks.unet3d'
  cr.scope(function()
    local pool, seen = values(), {}
    for _, entry in ipairs(arguments.classes) do
      for name, fn in pairs(entry.class) do
        local row = arguments.row(fn)
        local full = entry.of .. ':' .. name
        if type(fn) == 'function' and not name:find '^__' and not is_inner(entry) then
          t.ok(row, full .. ' has no row of arguments')
        end
        if row and row[1] and row[1].what == 'a ' .. entry.of and not row.vararg then
          seen[full] = true
          refuses(full, fn, row, pool, entry.meta == 'any' and {} or setmetatable({}, entry.meta), function() end)
          t.raises(function() fn(5) end, HERE .. full .. ': call it as ' .. full .. '%(...%): a ' .. entry.of .. ' is needed, not 5')
        end
      end
    end
    for _, full in ipairs { 'task:cancel', 'channel:put', 'reader:read', 'frame:rgb', 'writer:write', 'file:get', 'graph:why',
      'scheduler:step', 'predictor:call', 'predictor:predict', 'guidance:combine', 'denoiser:call', 'model:denoise', 'run:sample',
      'sample:save', 'windows:next', 'job:run', 'sampler:run' } do t.ok(seen[full], full .. ' was not gone over') end
  end)
end)

t.test('every class of lua/cr declares its arguments', function()
  -- Classes without methods for scripts: failures and problems are values, a form is part of a step, a kernel is
  -- called, and what a recorded function gets only supports elementwise operations. Scripts get no access to the
  -- parts of the server and the worker.
  local without = { Problem = true, Connection = true, Parts = true, Database = true, Child = true, Stream = true, Bell = true,
    Listener = true, Router = true, NewFile = true, Metrics = true, Metric = true, Redis = true, Queue = true, Sqs = true,
    Client = true, Chain = true, Store = true,
    Failure = true, Schema = true, Form = true, class = true, Kernel = true, Traced = true }
  local lfs, seen = require 'lfs', 0
  local function visit(folder)
    for entry in lfs.dir(folder) do
      local path = folder .. '/' .. entry
      local is_folder = lfs.attributes(path, 'mode') == 'directory'
      if is_folder and not entry:find '^%.' and entry ~= 'tools' and entry ~= 'graphs' then
        visit(path)
      elseif entry:find '%.lua$' then
        local file = io.open(path, 'rb')
        local text = file:read '*a'
        file:close()
        local function check(class)
          seen = seen + 1
          local has = text:find('methods%(' .. class .. '[,)]') or text:find('guard%(M, ' .. class .. '%)')
            or path:find 'loop/tasks' and class == 'Task'
          t.ok(has or without[class], path .. ': ' .. class .. ' has no rows')
        end
        for class in text:gmatch '\n%s*([%a_]+)%.__index = ' do check(class) end
        for class in text:gmatch 'local ([%a_]+) = wrapper%.class' do check(class) end
      end
    end
  end
  visit(cr.root .. '/lua/cr')
  t.ok(seen > 15, seen .. ' classes')
end)

t.test("wrong arguments of every kind give one sentence with the caller's position", function()
  math.randomseed(tonumber(os.getenv 'CR_SEED') or 17)
  local threads = cr.threads()
  cr.scope(function()
    local freed, gone = cr.ones(2), nil
    freed:free()
    cr.scope(function() gone = cr.ones(2) end)
    local x = cr.ones(2, 3)
    local wrong = {
      '', '/dev/null/a', {}, -- no file can be created there
       { 1, 2 }, { x }, { 'a' }, { heads = 2 }, { padding = -1 }, { kernel = 0 }, { weight = x },
      { weight = freed }, { weight = 5, bias = 'a' }, { weight = x, bias = {} }, { weight = x, scale = 3 },
      -1, 0, 1, 2, 3, 1e18, -1e18, 0 / 0, math.huge, 1.5, true, false, function(...) return ... end,
      function() return x end, 5LL, ffi.new 'int[2]', freed,
      gone, x, cr.ones(2, 3):to 'i64', cr.zeros(2):to 'bool', cr.full({}, 1), cr.ones(1, 4, 4, 2), cr.ones(4, 4, 2):to 'u8',
      cr.ones(0, 3), coroutine.create(function() end), { width = 2, height = 1e18 }, { 1, 0, 0, 0, 1, 0 / 0 }, { codes = x, scale = x },
      { weight = x, scale = x },
    }
    local rounds = tonumber(os.getenv 'CR_FUZZ') or 150
    each_function(function(name, fn)
      for _ = 1, rounds do
        local n = math.random(0, 5)
        local given = {}
        for i = 1, n do given[i] = wrong[math.random(0, #wrong)] end -- index 0 is nil
        if math.random() < 0.6 then given[1] = wrong[math.random(#wrong - 10, #wrong)] end
        local ok, message = pcall(function() cr.scope(function() fn(unpack(given, 1, n)) end) end)
        if not ok then
          local fault = fault_of(message)
          if fault then
            local shown = {}
            for i = 1, n do shown[i] = arguments.shown(given[i]) end
            t.ok(false, ('%s(%s): %s'):format(name, table.concat(shown, ', '), fault))
            return
          end
        end
      end
      t.ok(true, name)
    end)
  end)
  cr.threads(threads)
end)

t.test('names from other libraries work, or are refused with advice', function()
  cr.scope(function()
    local x, w = cr.ones(2, 3), { weight = cr.ones(4, 3) }
    local picture, conv = cr.ones(1, 4, 4, 3), { weight = cr.ones(2, 1, 1, 3) }
    for _, case in ipairs {
      { function() nn.conv2d(conv, picture, { pad = 1 }) end, "conv2d: options: there is no option 'pad': did you mean 'padding'?" },
      { function() nn.linear(w, x, { activation = 'gelu' }) end, "there is no option 'activation': did you mean 'act'?" },
      { function() nn.linear(w, x, { act = 'gleu' }) end, "options: act: there is no activation 'gleu': did you mean 'gelu'?" },
      { function() nn.attention(x, x, x, { head = 2 }) end, "there is no option 'head': did you mean 'heads'?" },
      { function() cr.zeros(2, { dytpe = 'f16' }) end, "zeros: there is no option 'dytpe': did you mean 'dtype'?" },
      { function() cr.zeros({ 2, dtype = 'f16' }) end, 'zeros: a list of sizes has no dtype' },
      { function() cr.rand(2, { seed = 3 }) end, "rand: there is no option 'seed': did you mean .* %(device, dtype, generator%)" },
      { function() x:view(3, 2, { dtype = 'f16' }) end, "view: there are no options, and 'dtype' is none" },
      { function() cr.zeros({ 2 }, { dtype = 'f16' }, 3) end, 'zeros: 3 is an argument too many' },
      { function() return x[3] end, 'select: [^\n]*3' },
      { function() return x[{ 1, 2, 3 }] end, 'a tensor %[2 3%] has no element of 3 indices' },
      { function() return x[true] end, 'a tensor has no element %[true%]: a number, {first, last, step}' },
      { function() x[1] = 'a' end, "x%[...%] = y: y is a number or a tensor, not 'a'" },
      { function() x.y = 2 end, "the field 'y' of a tensor cannot be set" },
      { function() return x:svd() end, 'a tensor has no svd: decompositions are not supported' },
      { function() return cr.inverse(x) end, 'cr has no inverse: decompositions are not supported' },
      { function() return nn.dropout(x) end, 'nn has no dropout: there is no training here' },
      { function() return x < x end, 'tensors cannot be ordered: .*a:lt%(b%)' },
      { function() return x .. '' end, 'a tensor is not a string' },
      { function() return x() end, 'a tensor is not a function' },
      { function() nn.pad(x, { 1, 1 }, { 1, 1 }, 'mirror') end, "pad: value: there is no mode of padding 'mirror'" },
      { function() nn.pad(x, { 2, 0 }, { 0, 0 }, 'reflect') end, "pad: dimension 1 of %[2 3%] cannot grow by 2 and 0 with 'reflect'" },
      { function() nn.pad(x, { 1, 1, 1 }, { 1 }) end, 'pad: %[2 3%] has only 2 dimensions, but more are padded' },
      { function() nn.layer_norm(w, x, 'a') end, "layer_norm: eps: a finite number is needed, not 'a'" },
      { function() x:fill_() end, 'fill_: value: a number is needed, not nil' },
      { function() nn.max_pool2d(picture) end, 'max_pool2d: options: a table such as {kernel = ...} is needed, not nil' },
      { function() nn.upsample_nearest(x) end, 'upsample_nearest: a picture .* is needed, not %[2 3%]' },
      { function() x:to 'float32' end, "to: there is no dtype or device 'float32': did you mean 'f32'?" },
      { function() x:to 'torch.bfloat16' end, "did you mean 'bf16'?" },
      { function() x:to(nil) end, 'to: what: a dtype or a device' },
      { function() cr.zeros(nil) end, 'zeros: size 1 is nil, not a whole number' },
      { function() cr.zeros(1e18) end, 'zeros: size 1 is 1e%+18, not a whole number below 2%^31' },
      { function() cr.manual_seed 'a' end, "manual_seed: seed: a whole number is needed, not 'a'" },
      { function() x.sum(nil) end, 'sum: call it as x:sum%(...%): a tensor is needed, not nil' },
      { function() x:sum { dim = 1 } end, 'sum: dims: a dimension or a list of them is needed, not a table' },
      { function() cr.arange(1, 2, 0) end, 'arange: step: steps of 0 never reach the end' },
      { function() x:narrow(1, 1, 1e18) end, 'narrow: length: 1e%+18 is too large: whole numbers go to 2%^31 %- 1' },
      { function() return x.wdith end, 'no field or method wdith' },
      { function() cr.from_pointer('memory', { 1 }, 'u8') end, 'from_pointer: pointer: an address is needed' },
      { function() cr.await(3) end, 'await: there is no job 3: await takes a task' },
      { function() cr.await() end, 'await: what: a task, as from cr.go, or a job is needed, not nil' },
      { function() cr.await(2.5) end, 'await: what: a task, .* is needed, not 2.5' },
      { function() cr.sleep '1' end, "sleep: seconds: a number of seconds is needed, not '1'" },
      { function() cr.sleep(0, 1) end, 'sleep: 1 is an argument too many: it takes seconds' },
      { function() cr.channel(-1) end, 'channel: n: a whole number from 0 is needed, not %-1' },
      { function() cr.channel(1):put(nil) end, 'channel:put: value: a value other than nil is needed' },
      { function() cr.all(cr.go(function() end)) end, 'all: tasks: a list of tasks, functions and jobs is needed' },
      { function() schedulers.load('ddim', {}, 3) end, 'schedulers.load: 3 is an argument too many: it takes spec, options' },
      { function() schedulers.load('ddim'):start { 1 } end, 'scheduler:start: noise: a tensor is needed, not a table' },
      { function() schedulers.load('ddim').reset(nil) end, 'scheduler:reset: call it as scheduler:reset' },
      { function() x.view(nil, 2) end, 'view: call it as x:view%(...%): a tensor is needed, not nil' },
      { function() x:view { 3, 2, dtype = 'f16' } end, 'view: a list of sizes has no dtype' },
      { function() cr.scope(nil) end, 'scope: a function is needed, not nil' },
      { function() nn.resize(picture, 2, 2, 'cubic') end, "resize: method: there is no method 'cubic': did you mean" },
    } do
      local ok, message = pcall(case[1])
      t.ok(not ok and message:find(HERE .. '.*' .. case[2]) ~= nil and not fault_of(message),
        tostring(message) .. ' for ' .. case[2])
    end
    local cyclic = {}
    cyclic[1] = cyclic
    t.raises(function() cr.tensor(cyclic) end, 'tensor: a tensor has at most 8 dimensions')
    local prefixed = setmetatable({ weight = cr.ones(4, 3) }, { __path = 'unet.proj' })
    t.raises(function() nn.linear(prefixed, nil) end, 'unet.proj: linear: x: a tensor is needed, not nil')

    local scores = cr.tensor { { 0, 1 }, { math.log(3), 1 } }
    t.near(scores:softmax(1), { { 0.25, 0.5 }, { 0.75, 0.5 } }, 1e-6)
    t.near(nn.softmax(scores, -2), { { 0.25, 0.5 }, { 0.75, 0.5 } }, 1e-6)
    t.near(scores:softmax(2), scores:softmax(), 0)
    t.ok(scores:softmax(1):is_contiguous(), 'a result without gaps')
    t.near(cr.where(cr.tensor({ 1, 0 }, { dtype = 'bool' }), 1, 0.5), { 1, 0.5 }, 0)
    t.equal(select('#', schedulers.help()), 1)
    t.equal(select('#', schedulers.help 'ddim'), 1)
    t.equal(table.concat(cr.ones(3):t().shape, ' '), '3')
    t.equal(table.concat(cr.tensor(cr.ones(4), { shape = { 2, 2 }, dtype = 'f16' }).shape, ' '), '2 2')
    t.near(nn.attention(x, x, x), { { 1, 1, 1 }, { 1, 1, 1 } }, 1e-6, 'one head')
  end)
end)

t.test('a tensor that a scope has freed names the scope', function()
  cr.scope(function()
    local gone
    cr.scope(function()
      gone = cr.ones(2) end)
    local _, message = pcall(function() return gone + 1 end)
    local line = debug.getinfo(1, 'l').currentline - 2
    t.ok(message:find(HERE .. 'add: the tensor has been freed, since the scope that ends at [%w_/.]*refusals_test.lua:' .. line
      .. ' did not return it'), message)
    t.raises(function() return cr.cat { gone } end, 'cat: the tensor has been freed, since the scope')
    t.raises(function() return gone.shape end, 'shape: the tensor has been freed, since the scope')
    local freed = cr.ones(2)
    freed:free()
    t.raises(function() return freed:sum() end, 'sum: the tensor has been freed$')
    t.raises(function() return freed:numel() end, 'numel: the tensor has been freed$')
    cr.ones(2):add(1, gone)
    t.near(gone, { 2, 2 }, 0, 'written to anew, it is a tensor again')
    t.near(gone + 1, { 3, 3 }, 0)
    gone:free()
  end)
end)

t.test('a scope keeps what it returns, at any depth', function()
  cr.scope(function()
    local made
    local _, result = cr.scope(function()
      local deep = { list = { { x = cr.full({ 2 }, 4) } } }
      deep.list[2] = deep
      local chain = deep.list[1]
      for _ = 1, 100000 do
        chain.next = {}
        chain = chain.next
      end
      chain.x = cr.full({}, 6)
      deep[cr.full({}, 7)] = true
      made = cr.ones(3)
      return 1, deep
    end)
    t.near(result.list[1].x, { 4, 4 }, 0)
    local last = result.list[1]
    while last.next do last = last.next end
    t.equal(last.x:item(), 6)
    t.ok(made:is_freed(), 'what is not returned is freed')
    for key in pairs(result) do
      if cr.is_tensor(key) then t.equal(key:item(), 7) end
    end
  end)
end)

t.done()
