-- Times the networks and compares them with other programs on the same cores: with PyTorch a UNet nano step at 32x32
-- latents (16 frames, guidance), the full-size VAE's decoding of a 256 px frame, and Whisper tiny on 30 s; with ncnn
-- the upscaling networks, x4plus on 128x128 pixels and animevideov3 on 320x180. First, outputs with the same weights
-- must agree. Then both programs run alternately, so that other load affects both, and ratios are of consecutive
-- runs.
--
--     build/crescent tests/bench/networks.lua [--ref REF] [--ncnn FOLDER] [--python PYTHON] [--runs N]
--                                             [--only unet,vae,whisper,x4plus,animevideov3] [--ops]
--
-- REF is a folder with the reference's packages (see torch_networks.py), FOLDER one with ncnn's files
-- (ncnn_networks.py); without them, only Crescent is timed. --ops prints a profile of each network. On a shared
-- machine, CPU time is more meaningful than wall time: OMP_WAIT_POLICY=passive excludes waiting from it, on both
-- sides.
--
-- Tiny: --only unet,whisper,animevideov3 --runs 1

local cr = require 'cr'
local checkpoint = require 'tests.support.checkpoint'
local now = require 'cr.clock'
local help = require 'tests.support.networks'
local formula = require 'tests.support.formula'
local unet3d = require 'models.networks.unet3d'
local vae_model = require 'models.networks.vae'
local whisper_model = require 'models.networks.whisper'

local options = require 'tests.bench.options'.read('The networks on CPUs, compared with PyTorch and ncnn.', {
  { '--ref', 'file', help = "folder of the reference's packages; without it only Crescent is timed" },
  { '--ncnn', 'file', help = "folder of ncnn's files; without it only Crescent is timed" },
  { '--python', 'file', default = os.getenv 'PYTHON' or 'python3', help = 'a Python with PyTorch and ncnn' },
  { '--runs', 'int', default = 7, min = 1, help = 'number of runs; the median is printed' },
  { '--only', default = 'unet,vae,whisper,x4plus,animevideov3', help = 'which networks' },
  { '--ops', 'flag', help = "print a profile of each network" },
})


local function median(list)
  table.sort(list)
  return list[math.floor((#list + 1) / 2)]
end

-- Wall and CPU seconds of one run.
local function once(fn)
  local start, own = now(), os.clock()
  cr.scope(fn)
  return now() - start, os.clock() - own
end

-- ---- the other programs ---------------------------------------------------------------------------

-- Starts the other program for one network, which it runs once for each line `go` (turns.py).
local function launch(script, folder, name, more)
  local fifo = os.tmpname()
  os.remove(fifo)
  os.execute(("mkfifo '%s'"):format(fifo))
  local other = {}
  other.input = io.popen(("OMP_NUM_THREADS=%d '%s' '%s/tests/bench/%s' '%s' --threads %d --only %s %s > '%s'")
    :format(cr.threads(), options.python, cr.root, script, folder, cr.threads(), name, more or '', fifo), 'w')
  other.output = io.open(fifo, 'r')
  os.remove(fifo)
  function other.read() return other.output:read '*l' or error(script .. ' ended early', 0) end
  function other.say(word)
    other.input:write(word, '\n')
    other.input:flush()
  end
  function other.once()
    other.say 'go'
    local wall, own = other.read():match '^(%S+) (%S+)$'
    return tonumber(wall), tonumber(own)
  end
  function other.stop()
    other.say 'next'
    other.output:close()
    other.input:close()
  end
  return other
end

local function pytorch(name)
  if not options.ref then return end
  local config
  if name == 'unet' then
    config = os.tmpname()
    require 'cr.files'.write(config, require 'cjson'.encode(checkpoint.unet_config(64)), 'networks.lua')
  end
  return launch('torch_networks.py', options.ref, name, config and ("--config '%s'"):format(config))
end

local function ncnn(name)
  return options.ncnn and launch('ncnn_networks.py', options.ncnn, name)
end

-- For each network: the other program, its name, the largest allowed ratio of times, and the largest allowed
-- difference of the results.
local others = {
  unet = { pytorch, 'PyTorch', 1.3, 1e-5 }, vae = { pytorch, 'PyTorch', 1, 1e-5 }, whisper = { pytorch, 'PyTorch', 1.3, 1e-5 },
  x4plus = { ncnn, 'ncnn', 1, 1e-5 }, animevideov3 = { ncnn, 'ncnn', 1 / 0.6, 1e-5 },
}

-- Profiles by operation: wraps the layers and tensor methods that the networks call.
local function count_operations(fn)
  local nn, tensor = require 'cr.nn', require 'cr.tensor'
  local spent, calls, undo = {}, {}, {}
  local depth = 0
  local function wrap(holder, name)
    local plain = holder[name]
    if type(plain) ~= 'function' then return end
    undo[#undo + 1] = function() holder[name] = plain end
    holder[name] = function(...)
      depth = depth + 1
      local start = now()
      local a, b = plain(...)
      depth = depth - 1
      if depth == 0 then
        local took = now() - start
        spent[name], calls[name] = (spent[name] or 0) + took, (calls[name] or 0) + 1
      end
      return a, b
    end
  end
  for _, name in ipairs { 'linear', 'conv2d', 'group_norm', 'layer_norm', 'attention', 'geglu', 'linear_geglu', 'resize',
    'silu' } do
    wrap(nn, name)
  end
  for _, name in ipairs { 'cat', 'lincomb' } do wrap(cr, name) end
  for _, name in ipairs { 'add', 'clone', 'to', 'contiguous' } do wrap(tensor.methods, name) end
  local start = now()
  cr.scope(fn)
  local all = now() - start
  for _, f in ipairs(undo) do f() end
  local names, sum = {}, 0
  for name, s in pairs(spent) do
    names[#names + 1] = name
    sum = sum + s
  end
  table.sort(names, function(a, b) return spent[a] > spent[b] end)
  for _, name in ipairs(names) do
    print(('    %-12s %5d calls %9.1f ms %5.1f %%'):format(name, calls[name], spent[name] * 1e3,
      100 * spent[name] / all))
  end
  print(('    %-12s %11s %9.1f ms'):format('the rest', '', (all - sum) * 1e3))
end

-- The input is noise: the time does not depend on the picture.
local function upscaling(name, height, width)
  return function()
    local net = require 'models.networks.upscaler'.load(('%s/models/fetched/upscale/%s.safetensors'):format(cr.root, name))
    local picture = formula.tensor('input:picture', { 1, 3, height, width }, { kind = 'raw' }) * 0.5 + 0.5
    local x = help.channels_last(picture)
    return function() return net:forward(x) end
  end
end

local function tree(expected, more) return help.tree(expected, more) end

local networks = {
  unet = function()
    local config = unet3d.config(checkpoint.unet_config(64))
    local net = unet3d.new(tree(unet3d.expected(config)), config)
    local sample = help.channels_last(formula.tensor('input:sample', { 2, config.in_channels, 16, 32, 32 })
      :narrow(1, 1, 1))
    local audio = formula.tensor('input:audio', { 2, 16, 50, config.cross_attention_dim }):select(1, 2)
    local x = sample:narrow(5, 1, 4):contiguous()
    local d = net:denoiser { cond = sample:narrow(5, 5, 9):contiguous(), audio = audio, guidance = 1.5,
      timesteps = { 981, 481, 1 } }
    local pair = cr.cat({ sample, sample }, 1)
    local tokens = cr.cat({ cr.zeros(1, 16, 50, config.cross_attention_dim), audio:unsqueeze(1) }, 1)
    return function() return d:call(x, 2) end, {
      { 'unet, plain forward', function() return net:forward(pair, 481, tokens) end },
    }
  end,
  vae = function()
    local config = vae_model.config()
    local net = vae_model.new(tree(vae_model.expected(config)), config)
    local latent = help.input('latent', { 1, 4, 32, 32 })
    return function() return net:decode(latent) end
  end,
  whisper = function()
    local dims = { n_mels = 80, n_audio_ctx = 1500, n_audio_state = 384, n_audio_head = 6, n_audio_layer = 4 }
    -- The positions are a table of sines; the formula does not apply to it.
    local positions = cr.empty(1500, 384)
    local p = positions:pointer()
    for row = 0, 1499 do
      for k = 0, 191 do
        local angle = row * math.exp(-math.log(10000) / 191 * k)
        p[row * 384 + k], p[row * 384 + 192 + k] = math.sin(angle), math.cos(angle)
      end
    end
    local net = whisper_model.new(tree(whisper_model.expected(dims), {
      prefix = 'encoder.', buffers = { ['encoder.positional_embedding'] = positions },
    }), dims)
    local mel = help.input('mel', { 1, 80, 3000 }):squeeze(1)
    return function() return net:encode(mel) end
  end,
  x4plus = upscaling('x4plus', 128, 128),
  animevideov3 = upscaling('animevideov3', 180, 320),
}

-- Converts the layout of the other programs' outputs.
local layouts = {
  unet = help.channels_last,
  vae = help.channels_last, x4plus = help.channels_last, animevideov3 = help.channels_last,
  whisper = function(x) return x:permute(2, 1, 3) end, -- [layers positions D]
}

local function relative_error(a, b)
  return cr.scope(function()
    local d = a:to 'f64' - b:to 'f64'
    return math.sqrt(d:square():sum():item() / b:to('f64'):square():sum():item())
  end)
end

print(('crescent %s, %d threads, median of %d'):format(cr.version, cr.threads(), options.runs))
local bad = false
for name in options.only:gmatch '[^,]+' do
  cr.scope(function()
    local run, more = (networks[name] or error('no network ' .. name, 0))()
    local begin, program, bar, most = unpack(others[name])
    local other, note = begin(name), ''
    if other then
      local path = other.read():match '^%S+ (.*)$'
      local file = require 'cr.weights'.open(path)
      local e = relative_error(run(), layouts[name](file:get(file.names[1])))
      file:close()
      os.remove(path)
      if e ~= e or e >= most then error(('%s: differs from %s by %.3g: not timed'):format(name, program, e), 0) end
      note = (', relative difference %.1e'):format(e)
    end
    cr.scope(run) -- a warm-up run
    local ours, theirs, ratios, own_ratios = {}, {}, {}, {}
    for k = 1, options.runs do
      local wall, own = once(run)
      ours[k] = wall
      if other then
        local its_wall, its_own = other.once()
        theirs[k], ratios[k], own_ratios[k] = its_wall, wall / its_wall, own / its_own
      end
    end
    if other then
      other.stop()
      local ratio = median(ratios)
      bad = bad or ratio > bar
      note = (' %s %8.1f ms (best %.1f), ratio %.2f (bar %.2f), of processor time %.2f'):format(program,
        median(theirs) * 1e3, theirs[1] * 1e3, ratio, bar, median(own_ratios)) .. note
    end
    print(('%-20s %8.1f ms (best %.1f)%s'):format(name, median(ours) * 1e3, ours[1] * 1e3, note))
    for _, entry in ipairs(more or {}) do
      local times = {}
      for k = 0, options.runs do times[math.max(k, 1)] = once(entry[2]) end
      print(('%-20s %8.1f ms (best %.1f)'):format(entry[1], median(times) * 1e3, times[1] * 1e3))
    end
    if options.ops then count_operations(run) end
  end)
end
os.exit(bad and 1 or 0, true)
