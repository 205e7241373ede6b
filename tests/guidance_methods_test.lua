--- Guidance methods by name and by file: each compared with diffusers or a formula, in all commands, with the
--- information that it receives, and the network's hooks.

local cr = require 'cr'
local t = require 'tests.support.tap'
local guidance = require 'cr.guidance'
local help = require 'tests.support.networks'
local schedulers = require 'cr.schedulers'
local scratch = require 'tests.support.scratch'
local unet3d = require 'models.networks.unet3d'

local SHAPE = { 1, 2, 3, 3, 4 }
local LEVELS = { 0.05, 0.6, 0.97 } -- as in tests/golden/guidance.py

local function input(name, i) return t.formula(('input:%s.%d'):format(name, i), SHAPE):to 'f64' end

-- A network that returns the fixture's halves, and another prediction with `perturbed`.
local function fixture(counts)
  return { timesteps = { 900, 500, 100 }, free = function() end, predict = function(_, _, i, how)
    if how.hook then
      counts.hook = how.hook
      return input('perturbed', i)
    end
    counts[#counts + 1] = how.guided
    return how.guided and cr.cat({ input('uncond', i), input('cond', i) }, 1) or input('cond', i)
  end }
end

local function spec_of(case)
  local words = {}
  for _, key in ipairs { 'eta', 'norm', 'momentum', 'zero_steps', 'pag' } do
    if case[key] then words[#words + 1] = ('%s=%.17g'):format(key, case[key]) end
  end
  return case.method .. (#words > 0 and ':' .. table.concat(words, ',') or '')
end

t.test('APG, CFG-Zero* and perturbed attention agree with diffusers', function()
  local seen = 0
  for _, case in ipairs(require 'cjson'.decode(scratch.read(require 'tests.support.golden'.folder .. 'guidance.json'))) do
    if case.method ~= 'cfgpp' then
      local spec, counts = spec_of(case), {}
      local scheduler = { options = { prediction = case.prediction or 'epsilon' }, begins_at = function(_, i)
        return math.sqrt(LEVELS[i]), math.sqrt(1 - LEVELS[i])
      end }
      local unet = guidance.wrap(fixture(counts), guidance.new { method = spec, scale = case.scale }, scheduler)
      for i = 1, 3 do
        local y = cr.scope(function() return unet:call(input('x', i), i) end)
        t.near(y:reshape(72), cr.tensor(case.out[i], { dtype = 'f64' }), 1e-6, ('%s, weight %g, step %d'):format(spec, case.scale, i))
      end
      t.equal(counts[1], case.scale > 1, 'the unconditional half is asked for where it counts')
      t.equal(counts.hook ~= nil, case.method == 'pag', 'and the network once more for perturbed attention')
      unet:free()
      seen = seen + 1
    end
  end
  t.equal(seen, 7)
end)

t.test("CFG++: the paper's sampler, from every equivalent of DDIM, and for every prediction type", function()
  local function at(scheduler, x, i)
    local ts = scheduler.timesteps[i]
    return (x * 1.7 + ts / 250):sin() * 0.8, (x * 1.1 - ts / 400):cos() * 0.6
  end
  for _, case in ipairs(require 'cjson'.decode(scratch.read(require 'tests.support.golden'.folder .. 'guidance.json'))) do
    if case.method == 'cfgpp' then
      -- DDIM, and Euler's method with its steps.
      local as_ddim = ':spacing=leading,steps_offset=1,final_sigma=sigma_min'
      for _, spec in ipairs { 'ddim', 'ddim_v', 'ddim:prediction=sample', 'euler' .. as_ddim, 'euler_v' .. as_ddim } do
        local s = schedulers.load(spec, { steps = 5 })
        local kind = s.options.prediction
        local unet = guidance.wrap({ timesteps = s.timesteps, free = function() end, predict = function(_, x, i)
          local uncond, cond = at(s, x, i)
          local alpha, sigma = s:begins_at(i)
          local function told(eps)
            if kind == 'epsilon' then return eps end
            local data = (x - eps * sigma) / alpha
            return kind == 'sample' and data or eps * alpha - data * sigma
          end
          return cr.cat({ told(uncond), told(cond) }, 1)
        end }, guidance.new { method = 'cfgpp', scale = case.scale }, s)
        local x = input('x', 1)
        for i, ts in ipairs(s.timesteps) do
          x = cr.scope(function()
            local y, from = unet:call(x, i)
            return s:step(y, ts, from)
          end)
        end
        unet:free()
        t.near(x:reshape(72), cr.tensor(case.out[1], { dtype = 'f64' }), 1e-9, ('%s, weight %g'):format(spec, case.scale))
      end
    end
  end
end)

t.test('a scale of 1, steps without guidance, and wrappers of a method', function()
  for _, case in ipairs {
    { { method = 'apg', scale = 1 }, 'nnn' }, { { method = 'cfgpp', scale = 1 }, 'yyy' }, { { method = 'pag', scale = 1 }, 'nnn' },
    { { method = 'apg', scale = 2, interval = { 400, 600 } }, 'nyn' }, { { method = 'cfgpp', off_last = 1 }, 'yyn' },
    { { method = 'zero_star', scale = 2, rescale = 0.7 }, 'yyy' },
  } do
    local settings, wanted = unpack(case)
    local counts = {}
    local unet = guidance.wrap(fixture(counts), guidance.new(settings))
    for i = 1, 3 do cr.scope(function() unet:call(input('x', i), i) end) end
    unet:free()
    local asked = {}
    for i, both in ipairs(counts) do asked[i] = both and 'y' or 'n' end
    t.equal(table.concat(asked), wanted, settings.method .. ': steps with both halves')
  end
end)

t.test("a method from a file: options, per-window state, a function instead of a file", function()
  local path = scratch.write('mine.lua', [[
    return {
      help = 'more of it each time',
      options = { { 'more', 0.5, 'by how much', min = 0, max = 2 } },
      combine = function(self, uncond, cond, step)
        local before = step.held.seen
        local y = cond + (cond - uncond) * (before and self.options.more or 0)
        step:keep('seen', cond)
        return y
      end,
    }]])
  local counts = {}
  local function calls(method)
    local unet = guidance.wrap(fixture(counts), guidance.new { method = method, scale = 2 })
    local out = {}
    for i = 1, 2 do out[i] = cr.scope(function() return unet:call(input('x', i), i) end) end
    unet:free()
    return out
  end
  for _ = 1, 2 do
    local out = calls(path .. ':more=1.5')
    t.near(out[1], input('cond', 1), 1e-12, 'nothing is left of the window before')
    t.near(out[2], input('cond', 2) * 2.5 - input('uncond', 2) * 1.5, 1e-12)
  end
  t.near(calls(function(_, _, cond, step) return cond * step.sigma + step.x * step.alpha end)[1],
    input('cond', 1) * math.sqrt(1 - schedulers.load 'ddim'.alphas[900]) + input('x', 1) * math.sqrt(schedulers.load 'ddim'.alphas[900]),
    1e-12, 'a function, told of levels')
  t.ok(guidance.help(path):find 'more of it each time' and guidance.help(path):find 'by how much', guidance.help(path))
  t.ok(guidance.help():find 'apg: ' and guidance.help():find '\ncfgpp: ' and guidance.help 'apg':find 'momentum')
end)

t.test('refusals', function()
  local function refused(what, settings)
    local ok, message = pcall(guidance.new, settings)
    t.equal(ok or message, what)
  end
  refused("there is no guidance method 'agp': did you mean apg? (apg, cfg, cfgpp, pag, zero_star)", { method = 'agp' })
  refused('guidance apg: no option "ita": did you mean "eta"?', { method = 'apg:ita=1' })
  refused('guidance apg: eta must be from 0 to 1, not 2', { method = 'apg:eta=2' })
  refused("guidance 'apg:eta': 'eta' is not of the form option=value", { method = 'apg:eta' })
  refused('there is no guidance file ./none.lua', { method = './none.lua' })
  refused("guidance method: 5 is not one: it is a name such as 'apg', a .lua file, or a function combine(self, uncond, cond, step)",
    { method = 5 })
  refused('guidance method must return a table with a function combine(self, uncond, cond, step), not a table without it', { method = {} })
  refused('guidance cfgpp: it also moves the sample, which rescale cannot handle: leave rescale out',
    { method = 'cfgpp', rescale = 0.5 })
  local function file(text, what)
    local path = scratch.write('mine.lua', text)
    local ok, message = pcall(function()
      local unet = guidance.wrap(fixture {}, guidance.new { method = path, scale = 2 })
      cr.scope(function() unet:call(input('x', 1), 1) end)
    end)
    t.ok(not ok and tostring(message):find(what, 1, true) and not tostring(message):find '\n', tostring(message))
  end
  file('return 5', 'mine.lua must return a table with a function combine(self, uncond, cond, step), not number')
  file('return { combine = print, help = 5 }', 'mine.lua: help must be a string, not a number')
  file("return { combine = print, options = { 5 } }", 'option 1 must be { name, default, help }, not a number')
  file('return { combine = function() end }', 'combine returned nothing; it must return the prediction, f64 on cpu [1 2 3 3 4]')
  file('return { combine = function(_, _, c) return c:reshape(72) end }', 'combine returned [72]; it must return the prediction')
  file('return { combine = function(_, _, _, step) return step:predict { hok = {} } end }', "there is no option 'hok': did you mean 'hook'")
  file('return { combine = function(_, _, c) return c, 5 end }', 'combine returned a number; it must return a sample')
end)

-- ---- hooks -----------------------------------------------------------------------------------

local config = unet3d.config(require 'tests.support.checkpoint'.unet_config(64))
local net = unet3d.new(help.tree(unet3d.expected(config)), config)

local function denoiser(scale)
  return net:denoiser { cond = help.input('cond', { 1, 9, 2, 8, 8 }), audio = t.formula('input:audio', { 2, 50, 64 }), guidance = scale,
    timesteps = { 801, 401 } }
end

t.test('a hook wraps every layer, gets its name and kind, and can change it', function()
  local x = help.input('x', { 1, 4, 2, 8, 8 })
  for _, guided in ipairs { true, false } do
    cr.scope(function()
      local d = denoiser(2)
      local kinds, names, widened = {}, {}, 0
      local how = { guided = guided, hook = { name = 'look', layer = function(layer, h, compute)
        kinds[layer.kind] = (kinds[layer.kind] or 0) + 1
        t.ok(not names[layer.name], layer.name .. ' is one layer')
        names[layer.name] = true
        widened = widened + (layer.widens and 1 or 0)
        return compute(h)
      end } }
      t.near(d:predict(x, 1, how), d:predict(x, 1, { guided = guided }), 0, 'which changes nothing')
      t.ok(names['mid_block.attentions.0.transformer_blocks.0.attn1'], 'names are those of the weights')
      t.ok(kinds.attention > 0 and kinds.attention == kinds.cross_attention and kinds.motion > 0 and kinds.feed_forward > kinds.attention)
      t.equal(widened, guided and 1 or 0, 'the halves part once')
      t.ok(t.relative_error(d:predict(x, 1, { guided = guided, hook = { name = 'double', layer = function(layer, h, compute)
        local y = compute(h)
        return layer.kind == 'motion' and y + (y - h) or y
      end } }), d:predict(x, 1, { guided = guided })) > 1e-4, 'which changes the result')
      t.raises(function() d:predict(x, 1, { hook = { name = 'wrong', layer = function(_, h, compute)
        return compute(h, { identty = true })
      end } }) end, "hook: compute: there is no option 'identty': did you mean 'identity'")
      t.raises(function() d:predict(x, 1, { hook = 5 }) end, 'unet: a hook is { name = TEXT, layer = function')
      t.raises(function() d:predict(x, 1, { hook = { name = 'bad', layer = function() end } }) end,
        'hook bad: it must return a tensor of %[2 64 %d+%] at [%w_.]+, not nil')
      d:free()
    end)
  end
end)

t.test('identity attention: each position sees only itself', function()
  -- softmax(q k) is the identity if there is only one position: an image with one pixel at the deepest block.
  local x = help.input('x', { 1, 4, 2, 8, 8 })
  cr.scope(function()
    local d, nn = denoiser(1), require 'cr.nn'
    local own, replaced = nn.attention, 0
    -- The same by hand: attention of one head over one position at a time.
    function nn.attention(q, k, v, o)
      if q:dim() == 3 and q:size(2) == k:size(2) then
        replaced = replaced + 1
        local B, T, C = q:size(1), q:size(2), q:size(3)
        local function alone(a) return a:contiguous():view(B * T, 1, C) end
        return own(alone(q), alone(k), alone(v), o):view(B, T, C)
      end
      return own(q, k, v, o)
    end
    local ok, want = pcall(d.predict, d, x, 1)
    nn.attention = own
    t.ok(ok and replaced > 0, tostring(want))
    local got = d:predict(x, 1, { hook = { name = 'identity', layer = function(layer, h, compute)
      return compute(h, { identity = layer.kind == 'attention' })
    end } })
    t.near(got, want, 1e-5)
    t.ok(t.relative_error(got, d:predict(x, 1)) > 1e-4, 'which is not the plain prediction')
    d:free()
  end)
end)

t.test("an attention of one's own: the plain one changes nothing, the values alone are the identity", function()
  local x, nn = help.input('x', { 1, 4, 2, 8, 8 }), require 'cr.nn'
  for scale, guided in pairs { [1] = false, [2] = true } do
    cr.scope(function()
      local d = denoiser(scale)
      local kinds = {}
      local function by(name, of, attend)
        return d:predict(x, 1, { guided = guided, hook = { name = name, layer = function(layer, h, compute)
          if not of[layer.kind] then return compute(h) end
          kinds[layer.kind] = true
          return compute(h, { attend = attend })
        end } })
      end
      local plain = d:predict(x, 1, { guided = guided })
      t.near(by('same', { attention = true, cross_attention = true, motion = true, feed_forward = true }, function(q, k, v, heads)
        return nn.attention(q, k, v, { heads = heads })
      end), plain, 1e-5)
      t.ok(kinds.attention and kinds.cross_attention and kinds.motion)
      local identity = d:predict(x, 1, { guided = guided, hook = { name = 'identity', layer = function(layer, h, compute)
        return compute(h, { identity = layer.kind == 'attention' or layer.kind == 'motion' })
      end } })
      t.near(by('values', { attention = true, motion = true }, function(_, _, v) return v end), identity, 1e-6)
      local deaf = by('deaf', { cross_attention = true }, function(q) return q * 0 end)
      t.ok(t.relative_error(deaf, plain) > 1e-6, 'the voice is not heard')
      t.raises(function() by('few', { attention = true }, function(q) return q:narrow(1, 1, 1) end) end,
        'hook few: attend must return a tensor of %[%d+ %d+ %d+%], not %[1 %d+ %d+%]')
      t.raises(function() by('none', { attention = true }, function() end) end, 'hook none: attend must return .*, not nil')
      t.raises(function() by('text', { attention = true }, 'softmax') end, 'hook text: attend is a function.*, not a string')
      d:free()
    end)
  end
end)

t.test('another function with the same name is another hook', function()
  local x = help.input('x', { 1, 4, 2, 8, 8 })
  cr.scope(function()
    local d = denoiser(1)
    local function by(gain)
      return d:predict(x, 1, { hook = { name = 'gain', layer = function(_, h, compute) return h + (compute(h) - h) * gain end } })
    end
    local one, other = by(1), by(1.5)
    t.near(one, d:predict(x, 1), 1e-5)
    t.ok(t.relative_error(other, one) > 1e-4)
    d:free()
  end)
end)

t.test("a hook's memory lives from step to step, and ends with the window", function()
  local x = help.input('x', { 1, 4, 2, 8, 8 })
  cr.scope(function()
    local d, found = denoiser(1), 0
    local keep = { name = 'keep', layer = function(layer, h, compute, memory)
      local y = compute(h)
      t.equal(memory:get(layer), nil)
      memory:put(layer, y)
      memory:put(layer, y * 2, 'twice')
      return y
    end }
    local take = { name = 'take', layer = function(layer, h, compute, memory)
      found = found + (memory:get(layer) and 1 or 0)
      t.near(memory:get(layer, 'twice'), memory:get(layer) * 2, 0)
      t.equal(memory:get(layer, 'thrice'), nil)
      return layer.kind == 'motion' and memory:get(layer) or compute(h)
    end }
    d:predict(x, 1, { hook = keep })
    local y = d:predict(x * 1.1, 2, { hook = take })
    t.ok(found > 5 and t.relative_error(y, d:predict(x * 1.1, 2)) > 1e-5, 'layers of the step before')
    local wrong = { name = 'wrong', layer = function(layer, _, _, memory) return memory:get(layer.name) end }
    t.raises(function() d:predict(x, 1, { hook = wrong }) end, 'memory:get%(layer, name%) .* take the layer that the hook was given')
    d:free()
  end)
end)

t.done()
