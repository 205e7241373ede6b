-- Guidance and step caches on the nano network, compared with their rules applied to the plain network.

local cr = require 'cr'
local t = require 'tests.support.tap'
local help = require 'tests.support.networks'
local unet3d = require 'models.networks.unet3d'
local schedulers = require 'cr.schedulers'
local guidance = require 'cr.guidance'
local cache = require 'cr.cache'

local F, SIDE = 2, 8

local config = unet3d.config(require 'tests.support.checkpoint'.unet_config(64))

local net = unet3d.new(help.tree(unet3d.expected(config)), config)

local function inputs()
  return help.input('x', { 1, 4, F, SIDE, SIDE }), help.input('cond', { 1, 9, F, SIDE, SIDE }),
    t.formula('input:audio', { F, 50, 64 })
end

-- The plain network on both halves, or on the conditional one alone.
local function plain(x, at, cond, audio, halves)
  local sample, tokens = cr.cat({ x, cond }, 5), audio:unsqueeze(1)
  if halves == 1 then return net:forward(sample, at, tokens) end
  return net:forward(cr.cat({ sample, sample }, 1), at, cr.cat({ cr.zeros(tokens.shape), tokens }, 1))
end

local function mixed(both, scale)
  return both:narrow(1, 1, 1) * (1 - scale) + both:narrow(1, 2, 1) * scale
end

-- Runs a denoiser through a scheduler.
local function sample(scheduler, start, unet)
  local x = scheduler:start(start)
  for i, at in ipairs(scheduler.timesteps) do
    x = cr.scope(function() return scheduler:step(unet:call(x, i), at, x) end)
  end
  return x
end

-- Calls fn with cr.cat replaced, so that `replace(nth layer, input)` can exchange inputs on the up path.
local function with_layers_of_the_way_up(replace, fn)
  local own, nth = cr.cat, 0
  function cr.cat(list, dim)
    if dim == 5 and list[1]:dim() == 5 and list[1]:size(5) > 13 then
      nth = nth + 1
      list = { replace(nth, list[1]) or list[1], list[2] }
    end
    return own(list, dim)
  end
  local ok, result = pcall(fn)
  cr.cat = own
  if not ok then error(result, 0) end
  return result, nth
end

t.test("DeepCache: the reference's rule, applied to complete runs of the plain network", function()
  local x, cond, audio = inputs()
  local total = net:branches()
  for _, case in ipairs { { 3, 0, 5 }, { 2, 1, 3 }, { 2, 7, 3 } } do
    local interval, branch, steps = unpack(case)
    local what = ('interval %d, branch %d, %d steps'):format(interval, branch, steps)
    local scheduler = schedulers.load('ddim', { steps = steps })
    -- The expected result of a skipped step: a complete run of the network, with the input of one layer replaced by
    -- its input in the last full step.
    local deep
    local want = sample(scheduler, x, { call = function(_, latents, i)
      return mixed((with_layers_of_the_way_up(function(nth, input)
        if nth ~= total - branch then return end
        if (i - 1) % interval ~= 0 then return deep end
        if deep then deep:free() end
        deep = cr.keep(input:clone())
      end, function() return plain(latents, scheduler.timesteps[i], cond, audio) end)), 1.5)
    end })
    deep:free()

    local counts = {}
    local d = cache.wrap(net:denoiser { cond = cond, audio = audio, guidance = 1.5, timesteps = scheduler.timesteps },
      cache.plan(('deepcache:%d:%d'):format(interval, branch)), counts)
    local unet = guidance.wrap(d, guidance.new { scale = 1.5 })
    local got = sample(scheduler, x, unet)
    unet:free()
    t.near(got, want, 2e-5, what)
    t.equal(counts.full, math.ceil(steps / interval), what .. ': whole steps')
    t.equal(counts.shallow, steps - counts.full, what .. ': skipped steps')

    -- The result differs from sampling without a cache.
    if branch == 0 then
      local whole = net:denoiser { cond = cond, audio = audio, guidance = 1.5, timesteps = scheduler.timesteps }
      t.ok(t.relative_error(got, sample(scheduler, x, whole)) > 1e-4, what .. ': no step was skipped')
      whole:free()
    end
  end
end)

t.test("a cached layer equals the plain network's, with and without optimizations", function()
  local x, cond, audio = inputs()
  for _, deaf in ipairs { true, false } do
    cr.scope(function()
      local d = net:denoiser { cond = cond, audio = audio, guidance = 1.5, timesteps = { 481 }, savings = { deaf = deaf } }
      local _, deep = d:predict(x, 1, { branch = 0 })
      local want
      with_layers_of_the_way_up(function(nth, input)
        if nth == net:branches() then want = cr.keep(input:clone()) end
      end, function() return plain(x, 481, cond, audio) end)
      t.near(deep, want, 1e-5)
      want:free()
      t.near(d:predict(x, 1, { branch = 0, deep = deep }), plain(x, 481, cond, audio), 1e-5, 'from its own cache')
      d:free()
    end)
  end
end)

t.test('guidance: always, in an interval, off at the end', function()
  local x, cond, audio = inputs()
  local scheduler = schedulers.load('ddim', { steps = 5 }) -- 801 601 401 201 1
  local wanted = { {}, {} } -- per half and step, from the plain network
  for halves = 1, 2 do
    for i, at in ipairs(scheduler.timesteps) do
      local y = plain(x, at, cond, audio, halves)
      wanted[halves][i] = halves == 2 and mixed(y, 2) or y
    end
  end
  local function both_ways(settings, guided_at)
    local unet = guidance.wrap(net:denoiser { cond = cond, audio = audio, guidance = 2, timesteps = scheduler.timesteps },
      guidance.new(settings))
    for i = 1, #scheduler.timesteps do
      t.near(unet:call(x, i), wanted[guided_at[i] and 2 or 1][i], 1e-5, ('step %d'):format(i))
    end
    unet:free()
  end
  both_ways({ scale = 2 }, { true, true, true, true, true })
  both_ways({ scale = 2, interval = { 201, 601 } }, { false, true, true, true, false })
  both_ways({ scale = 2, off_last = 2 }, { true, true, true, false, false })
  both_ways({ scale = 2, off_last = 2, interval = { 0, 601 } }, { false, true, true, false, false })
  both_ways({ scale = 1 }, {})
end)

t.test("skipping the unconditional half, with and without the optimization 'deaf'", function()
  local x, cond, audio = inputs()
  for _, keys in ipairs { true, false } do
    local d = net:denoiser { cond = cond, audio = audio, guidance = 2, timesteps = { 481 }, savings = { deaf = false, keys = keys } }
    t.near(d:predict(x, 1, { guided = false }), plain(x, 481, cond, audio, 1), 1e-5)
    t.near(d:predict(x, 1), plain(x, 481, cond, audio), 1e-5)
    d:free()
  end
end)

t.test('rescaled guidance has the standard deviation of the conditional half', function()
  local a, b = t.formula('input:a', { 1, 2, 3, 3, 4 }), t.formula('input:b', { 1, 2, 3, 3, 4 })
  local function deviation(v)
    local list, sum, square = v:view(v:numel()):tolist(), 0, 0
    for _, n in ipairs(list) do sum = sum + n end
    for _, n in ipairs(list) do square = square + (n - sum / #list) ^ 2 end
    return math.sqrt(square / (#list - 1))
  end
  local y = a * (1 - 7) + b * 7
  for _, share in ipairs { 0, 0.7, 1 } do
    local got = guidance.new { scale = 7, rescale = share }:combine(a, b, {})
    t.near(got, y * (share * deviation(b) / deviation(y) + 1 - share), 1e-5, 'share ' .. share)
  end
  t.near(deviation(guidance.new { scale = 7, rescale = 1 }:combine(a, b, {})), deviation(b), 1e-5)
end)

t.test('TeaCache: the accumulated distance triggers a full step', function()
  local asked = {}
  local function denoiser()
    return { timesteps = { 9, 8, 7, 6, 5 }, predict = function(_, x, i)
      asked[#asked + 1] = i
      return x * i
    end, free = function() end }
  end
  -- Each step's latents differ from the previous ones by a tenth.
  local function answers(threshold)
    asked = {}
    local counts, out = {}, {}
    local d = cache.wrap(denoiser(), cache.plan('tea:' .. threshold), counts)
    for i = 1, 5 do
      cr.scope(function()
        out[i] = d:predict(cr.full({ 1, 4 }, 1.1 ^ i), i):tolist()[1][1]
      end)
    end
    d:free()
    return out, counts
  end
  local out, counts = answers(0.25)
  t.equal(table.concat(asked, ' '), '1 4 5', 'asked at a sum of 0.3, and at the last step')
  t.equal(counts.reused, 2)
  t.near(out[2], 1.1, 1e-6, 'the first answer again')
  t.near(out[4], 4 * 1.1 ^ 4, 1e-5)
  answers(0)
  t.equal(table.concat(asked, ' '), '1 2 3 4 5', 'a threshold of 0 changes nothing')
end)

t.test("FORA: layers' contributions of the last full step, implemented with hooks", function()
  local x, cond, audio = inputs()
  local scheduler = schedulers.load('ddim', { steps = 5 })
  for _, scale in ipairs { 1.5, 1 } do
    local function denoiser() return net:denoiser { cond = cond, audio = audio, guidance = scale, timesteps = scheduler.timesteps } end
    local shares = {}
    local d = denoiser()
    local want = sample(scheduler, x, { call = function(_, latents, i)
      local both = d:predict(latents, i, { hook = { name = 'step ' .. i, layer = function(layer, h, compute)
        local key = layer.name
        if layer.widens then return compute(h) end
        if i % 2 == 0 then return h + shares[key] end
        local y = compute(h)
        if shares[key] then shares[key]:free() end
        shares[key] = cr.keep((y - h):clone())
        return y
      end } })
      return both:size(1) == 2 and mixed(both, scale) or both
    end })
    d:free()
    for _, share in pairs(shares) do share:free() end
    local counts = {}
    local function by(text)
      local unet = guidance.wrap(cache.wrap(denoiser(), cache.plan(text), counts), guidance.new { scale = scale })
      local y = sample(scheduler, x, unet)
      unet:free()
      return y
    end
    local got = by 'fora:2'
    t.near(got, want, 2e-5, 'weight ' .. scale)
    t.equal(counts.full .. ' ' .. counts.shallow, '3 2')
    local bare = denoiser()
    local whole = sample(scheduler, x, bare)
    bare:free()
    t.near(by 'fora:1', whole, 1e-6, 'each step whole')
    t.ok(t.relative_error(got, whole) > 1e-5, 'no layer served again')
    -- Combined with others, in either order.
    for _, text in ipairs { 'deepcache:2,fora:2', 'fora:2,deepcache:2', 'fora:2,tea:0.01' } do
      t.ok(t.relative_error(by(text), whole) < 0.5, text)
    end
  end
  local unet = cache.wrap(net:denoiser { cond = cond, audio = audio, timesteps = { 481 } }, cache.plan 'fora:2')
  t.raises(function() unet:predict(x, 1, { hook = { name = 'own', layer = function(_, h, compute) return compute(h) end } }) end,
    'fora cannot be combined with another hook around the network')
  unet:free()
end)

t.test('everything combined, and two windows in sequence', function()
  local x, cond, audio = inputs()
  local scheduler = schedulers.load('dpmpp_3m', { steps = 6 })
  local plan, counts = cache.plan 'deepcache:2:0,tea:0.5', {}
  local g = guidance.new { scale = 1.5, interval = { 300, 1000 }, rescale = 0.5 }
  local function window(c)
    local unet = guidance.wrap(cache.wrap(net:denoiser { cond = c, audio = audio, guidance = 1.5,
      timesteps = scheduler.timesteps }, plan, counts), g)
    local y = sample(scheduler, x, unet)
    unet:free()
    return y
  end
  local first, other, again = window(cond), window(cond * 0.5), window(cond)
  t.near(again, first, 0, 'nothing of the window between is left')
  t.ok(t.relative_error(other, first) > 1e-3, 'the windows differ')
  t.ok((counts.reused or 0) > 0 and counts.shallow > 0 and counts.full > 0, 'all kinds of steps')
  t.equal((counts.reused or 0) + counts.shallow + counts.full, 18)
end)

t.test('wrong settings get one sentence', function()
  t.ok(cache.help():find 'deepcache: ' and cache.help():find '\ntea: ' and not cache.help 'tea':find 'deepcache', 'help')
  t.raises(function() cache.help 'depcache' end, "there is no cache 'depcache': did you mean deepcache%?")
  t.raises(function() cache.plan 'depcache:3' end, "there is no cache 'depcache': did you mean deepcache%?")
  t.raises(function() cache.plan 'deepcache:0' end, 'deepcache: 0 is not INTERVAL')
  t.raises(function() cache.plan 'deepcache:3:-1' end, 'is not INTERVAL')
  t.raises(function() cache.plan 'tea:x' end, 'tea: x is no threshold')
  t.raises(function() cache.plan 'tea' end, 'tea: nothing is no threshold')
  local x, cond, audio = inputs()
  local d = net:denoiser { cond = cond, audio = audio, timesteps = { 481 } }
  t.raises(function() d:predict(x, 1, { branch = 8 }) end, 'no branch 8 to cache: this network has 0 to 7')
  local nested = cache.wrap(d, cache.plan 'tea:0.1,deepcache:3')
  t.raises(function() nested:predict(x, 1) end, 'tea must wrap deepcache')
  nested = cache.wrap(d, cache.plan 'deepcache:3,deepcache:2')
  t.raises(function() nested:predict(x, 1) end, 'deepcache cannot wrap another deepcache')
  d:free()
end)

-- Each refusal is one whole sentence.
local function refused(what, fn, ...)
  local ok, message = pcall(fn, ...)
  t.equal(ok or message, what)
end

t.test('refusals of guidance name the setting and the value', function()
  refused('guidance: settings must be a table such as { scale = 1.5 }, not nil', guidance.new)
  refused('guidance: settings must be a table such as { scale = 1.5 }, not a number', guidance.new, 1.5)
  refused(
    'guidance: no setting "wescale": scale, interval, rescale, off_last, method: did you mean "rescale"?', guidance.new, { wescale = 2 })
  local no_weight = 'guidance scale: %s is not a weight: it is a number from 0 on, and 1 means no guidance'
  for shown, value in pairs { ['-1'] = -1, ['"2"'] = '2', ['inf'] = math.huge, ['nan'] = 0 / 0, ['false'] = false } do
    refused(no_weight:format(shown), guidance.new, { scale = value })
  end
  local no_interval = 'guidance interval: from %s is no interval of timesteps: two numbers from 0 on, the lower one first'
  for shown, pair in pairs { ['800 to 100'] = { 800, 100 }, ['-1 to 5'] = { -1, 5 }, ['"0" to 5'] = { '0', 5 },
    ['nan to nan'] = { 0 / 0, 0 / 0 } } do
    refused(no_interval:format(shown), guidance.new, { interval = pair })
  end
  refused('guidance interval: a table of 1 is not { lowest, highest } timestep', guidance.new, { interval = { 5 } })
  refused('guidance interval: a table of 3 is not { lowest, highest } timestep', guidance.new, { interval = { 1, 2, 3 } })
  refused('guidance interval: 5 is not { lowest, highest } timestep', guidance.new, { interval = 5 })
  refused('guidance interval: false is not { lowest, highest } timestep', guidance.new, { interval = false })
  for shown, value in pairs { ['2'] = 2, ['-0.1'] = -0.1, ['"1"'] = '1', ['nan'] = 0 / 0 } do
    refused(('guidance rescale: %s is not from 0 to 1'):format(shown), guidance.new, { rescale = value })
  end
  for shown, value in pairs { ['-1'] = -1, ['1.5'] = 1.5, ['"1"'] = '1', ['inf'] = math.huge } do
    refused(('guidance off_last: %s is no number of steps'):format(shown), guidance.new, { off_last = value })
  end
end)

t.test("a cache of one's own is a function, its table or a file: what it lacks is the network's, what it gives is checked", function()
  local x, freed, told = cr.zeros(1, 2, 4, 4, 4), 0, nil
  local inner = { timesteps = { 999, 1 } }
  function inner:predict(latents, i) return latents + i + self.timesteps[i] end
  function inner.free() freed = freed + 1 end
  local function by(plan) return cache.wrap(inner, cache.plan(plan)) end
  local function twice(predictor, options)
    told = options
    return { predict = function(_, latents, i, how) return predictor:predict(latents, i, how) * 2 end }
  end
  local file = require 'tests.support.scratch'.write('own.lua', [[return function(predictor, options)
    return setmetatable({ predict = function(_, x, i) return predictor:predict(x, i) * options[1] end }, { __index = predictor })
  end]])
  for _, plan in ipairs { twice, { new = twice }, file .. ':2:abc' } do
    local predictor = by(plan)
    t.near(predictor:predict(x, 2), x + 6, 0)
    t.equal(predictor.timesteps[2], 1)
    predictor:free()
  end
  t.equal(freed, 3, "the network's free, once each")
  t.equal(#told, 0)
  t.equal(cache.plan(file .. ':2:abc')[1].options[1], 2, 'words that are numbers')
  t.equal(cache.plan(file .. ':2:abc')[1].options[2], 'abc')
  t.equal(by(cache.plan(twice)):predict(x, 2):numel(), x:numel(), 'a plan is a plan')
  t.raises(function() by(function() end) end, '^cache: new%(%) returned nothing; it must return a table with a function predict')
  t.raises(function() by(function() return {} end) end, '^cache: new%(%) returned a table without it')
  for what, wrong in pairs { ['a number'] = 1, ['%[2%]'] = cr.zeros(2) } do
    local predictor = by(function() return { predict = function() return wrong end } end)
    t.raises(function() predictor:predict(x, 1) end,
      '^cache: predict returned ' .. what .. '; it must return the prediction, f32 on cpu %[1 2 4 4 4%]')
  end
end)

t.test('what a cache refuses', function()
  refused("cache: a plan is a string such as 'deepcache:3,tea:0.2', not nil", cache.plan)
  refused("a cache is a string such as 'deepcache:3,tea:0.2', a plan, or a table with a function new(predictor, options, count), and "
    .. 'parse(...) to check options, not a table without it', cache.plan, {})
  refused("cache.wrap needs a plan as from cache.plan 'deepcache:3', not a string", cache.wrap, {}, 'tea:0.2')
  refused('cache.help needs a name as text, not a number', cache.help, 5)
  for _, text in ipairs { '', 'tea:0.2,', ',tea:0.2', ' , ' } do
    refused('the name of a cache is missing: write deepcache:3, tea:0.2, or both with a comma', cache.plan, text)
  end
  refused("there is no cache 'te': did you mean tea? (deepcache, fora, tea)", cache.plan, 'te:0.2')
  for _, values in ipairs { '0', '1.5', 'x', '2:1' } do
    refused(('fora: %s is not INTERVAL, a whole number from 1'):format(values), cache.plan, 'fora:' .. values)
  end
  for _, values in ipairs { '0', '1.5', 'x', '3:-1', '3:0:1', '1e99', 'nan', '3:' } do
    refused(('deepcache: %s is not INTERVAL[:BRANCH], whole numbers from 1 and from 0'):format(values), cache.plan, 'deepcache:' .. values)
  end
  for _, values in ipairs { 'x', '-0.1', 'inf', 'nan', '0.2:1' } do
    refused(('tea: %s is no threshold: a number from 0 on, as in tea:0.2'):format(values), cache.plan, 'tea:' .. values)
  end
  refused('tea: nothing is no threshold: a number from 0 on, as in tea:0.2', cache.plan, 'tea')
  for text, what in pairs {
    ['return 5'] = 'cache file %s must return a table with a function new(predictor, options, count), and parse(...) to check '
      .. 'options, not number',
    ['return { help = "" }'] = 'cache file %s must return a table with a function new(predictor, options, count), and parse(...) '
      .. 'to check options, not a table without it',
    ['return {'] = "cache file %s:1: unexpected symbol near '<eof>'",
    ["error 'no'"] = 'cache file %s:1: no',
  } do
    local path = require 'tests.support.scratch'.write('own.lua', text)
    refused(what:format(path), cache.plan, path .. ':3')
  end
  refused('there is no cache file /nowhere/own.lua', cache.plan, '/nowhere/own.lua')
end)

t.done()
