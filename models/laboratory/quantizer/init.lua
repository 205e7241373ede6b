--- Quantizes a checkpoint: observes its networks on some windows of video and sound at every step of the sampler,
--- fits each layer's parameters to its inputs, exempts layers with large errors, and writes the folder.

local cr = require 'cr'
local checkpoint = require 'models.latentsync.checkpoint'
local encode = require 'models.quantize.encode'
local errors = require 'models.laboratory.quantizer.errors'
local fitting = require 'models.laboratory.quantizer.fitting'
local folder = require 'models.laboratory.quantizer.folder'
local latentsync = require 'models.latentsync'
local layers = require 'models.quantize.layers'
local recipes = require 'models.quantize.recipe'
local statistics = require 'models.laboratory.quantizer.statistics'
local unet3d = require 'models.networks.unet3d'
local vae_model = require 'models.networks.vae'
local weights = require 'cr.weights'
local whisper_model = require 'models.networks.whisper'

local M = {}

-- Frames and steps for measuring errors: few, because every layer is measured alone.
local FRAMES, PROBED = 4, { 0.15, 0.6 }

--- Default bounds of a network's output error, by recipe.
M.BOUNDS = { int4 = 0.1 }
M.BOUND = 0.03

-- Messages about exempted layers.
local KEPT = { ['weight-only'] = '  weight-only in 8 bits', exact = '  stays in 16 bits' }

-- Runs fn without CUDA graphs, so that the observer sees every call.
local function unrecorded(model, fn)
  local vae, graphs = model.vae, {}
  for _, name in ipairs { 'encoder', 'deep_encoder', 'deep_decoder', 'decoder' } do
    graphs[name] = vae[name]
    if model.device ~= 'cpu' then vae[name] = vae[name].fn end
  end
  model.unet.trace, model.unet.idle = function() end, {}
  local ok, problem = pcall(fn)
  for name, graph in pairs(graphs) do vae[name] = graph end
  model.unet.trace = nil
  if not ok then error(problem, 0) end
end

-- ---- probes: outputs to compare --------------------------------------------------------

-- The predicted noise of a few frames, at an early and a late step.
local function unet_probes(model, windows, steps)
  local list = {}
  local generator = cr.generator(1247, 'philox')
  for _, share in ipairs(PROBED) do
    local window = windows[math.ceil(share * #windows)]
    local n = math.min(FRAMES, window.cond:size(2))
    local step = math.max(1, math.ceil(share * #steps))
    local x, cond, hear = cr.scope(function()
      local shape = window.cond.shape
      local x = cr.randn({ 1, 1, shape[3], shape[4], model.channels }, { generator = generator, device = model.device })
      -- The input has about the noise level of that step, and shows the images of the conditioning.
      local clean = window.cond:narrow(2, 1, n):narrow(5, shape[5] - model.channels + 1, model.channels):to 'f32'
      local t = steps[step] / 1000
      x = clean * math.sqrt(1 - t) + x * math.sqrt(t)
      return x:to(model.dtype):clone(), window.cond:narrow(2, 1, n):clone(), window.hear:narrow(1, 1, n):clone()
    end)
    cr.keep(x, cond, hear)
    -- Every call must run the whole network, so nothing may be computed once in advance.
    local d = model:denoiser(cond, hear, { guidance = 1.5, timesteps = { steps[step] }, savings = { time = false, keys = false } })
    list[#list + 1] = {
      run = function() return d:call(x, 1) end,
      free = function()
        d:free()
        for _, t in ipairs { x, cond, hear } do t:free() end
      end,
    }
  end
  return list
end

local function vae_probes(model, latents)
  return { { run = function() return model.vae:decode(latents) end } }
end

local function whisper_probes(model, mels)
  local list = {}
  for i, mel in ipairs(mels) do list[i] = { run = function() return model.whisper:encode(mel) end } end
  return list
end

-- ---- observing inputs -----------------------------------------------------------------

-- A window of random values, for a run without calibration clips.
local function drawn_window(model)
  local generator = cr.generator(3, 'philox')
  local side = model.latent
  local function randn(...) return cr.randn({ ... }, { generator = generator, device = model.device, dtype = model.dtype }) end
  return {
    cond = cr.keep(cr.scope(function()
      return cr.cat({ cr.ones({ 1, FRAMES, side, side, 1 }, { device = model.device, dtype = model.dtype }),
        randn(1, FRAMES, side, side, 2 * model.channels) }, 5)
    end)),
    hear = cr.keep(randn(FRAMES, 50, model.unet.config.cross_attention_dim)),
  }
end

-- Generates some windows of each clip while the layers are observed. Returns statistics, windows, latents and mels.
local function calibrate(model, list, o, progress)
  local kept = { windows = {}, mels = {}, steps = nil, latents = nil, count = 0 }
  local encode_mel = model.whisper.encode
  function model.whisper.encode(self, mel)
    if #kept.mels == 0 then kept.mels[1] = cr.keep(mel:clone()) end
    return encode_mel(self, mel)
  end
  local each = math.max(1, math.ceil(o.windows / #o.clips))
  local ok, found = pcall(statistics.watch, list, function()
    unrecorded(model, function()
      for i, clip in ipairs(o.clips) do
        progress(('%s, %s'):format(clip.video:match '[^/]*$', clip.audio:match '[^/]*$'))
        -- Only as long as the windows need, not the whole clip.
        local run = latentsync.session { video = clip.video, audio = clip.audio, checkpoint = model, device = model.device, quiet = true,
          duration = each * 16 / 25, seed = 1246 + i }
        local sample = run:sample { windows = each, quiet = true }
        kept.count = kept.count + #sample.latents
        for w, latents in ipairs(sample.latents) do
          if latents then
            local window = run.windows[w]
            cr.scope(function() model.vae:decode(model.vae:unscale(latents:select(1, 1))) end)
            if #kept.windows < 4 then
              kept.windows[#kept.windows + 1] = { cond = cr.keep(window.cond:clone()), hear = cr.keep(window.hear:clone()) }
            end
            if not kept.latents then
              kept.latents = cr.keep(cr.scope(function() return model.vae:unscale(latents:select(1, 1):narrow(1, 1, 1)):clone() end))
            end
            latents:free()
          end
        end
        kept.steps = kept.steps or require 'models.latentsync.sampler'.new(run.settings).scheduler.timesteps
        run:free()
      end
    end)
  end)
  model.whisper.encode = nil
  if not ok then error(found, 0) end
  return found, kept
end

local function draw(model)
  local generator = cr.generator(4, 'philox')
  local d = model.whisper.dims
  return {}, {
    windows = { drawn_window(model) }, steps = { 981, 801, 601, 401, 201, 1 }, count = 0,
    latents = cr.keep(cr.randn({ 1, model.latent, model.latent, model.channels },
      { generator = generator, device = model.device, dtype = model.dtype })),
    mels = { cr.keep(cr.randn({ model.whisper:segment_frames(), d.n_mels }, { generator = generator })) },
  }
end

-- ---- writing the folder ----------------------------------------------------------------------------------

local function base_of(path) return path:match '[^/]*$' end

-- A network's tensors under the checkpoint's names.
local function source_of(path, expected, prefix_of)
  local file = weights.open(path)
  local prefix = prefix_of(file)
  local names = {}
  for _, e in ipairs(expected(file)) do
    if file:has(prefix .. e.name) then names[#names + 1] = e.name end
  end
  return { names = names, get = function(name) return file:get(prefix .. name) end, close = function() file:close() end }
end

local function no_prefix() return '' end

local function write_whisper(model, o, list, about)
  local path = model.files.whisper
  local own = path:sub(1, #o.checkpoint + 1) == o.checkpoint .. '/'
  if not about and not own then return end -- the fetched one works with this folder too
  local file = weights.open(path)
  local dims, tensors = model.whisper.dims, nil
  if file.format == 'ctranslate2' then tensors = whisper_model.from_ctranslate2(file) end
  local prefix = ''
  for _, p in ipairs { 'model_state_dict.', 'model.' } do
    if file:has(p .. 'encoder.conv1.weight') then prefix = p end
  end
  local names = {}
  for _, e in ipairs(whisper_model.expected(dims)) do names[#names + 1] = e.name end
  folder.write(o.out .. '/whisper/' .. base_of(path):gsub('%.[^.]*$', '') .. '.safetensors', 'whisper', {
    names = names, get = function(name) return tensors and tensors[name] or file:get(prefix .. name) end,
  }, list, about, { dims = require 'cr.json'.encode(dims) })
  file:close()
end

local function write(model, o, by_network, about)
  write_whisper(model, o, by_network.whisper or {}, by_network.whisper and about.whisper)
  local path, _, config_path = checkpoint.vae(o.checkpoint, o.vae)
  local source = source_of(path, function(file) return vae_model.expected(model.vae.config, vae_model.has_old_names(file)) end, no_prefix)
  if config_path then folder.copy(config_path, o.out .. '/vae/config.json') end
  folder.write(o.out .. '/vae/diffusion_pytorch_model.safetensors', 'vae', source, by_network.vae or {}, by_network.vae and about.vae)
  source.close()
  local scheduler = checkpoint.scheduler(o.checkpoint)
  if scheduler then folder.copy(scheduler, o.out .. '/scheduler_config.json') end
  local unet_config
  path, _, _, unet_config = checkpoint.unet(o.checkpoint)
  if unet_config then folder.copy(unet_config, o.out .. '/' .. base_of(unet_config)) end
  local prefix_of = require 'models.latentsync.loading'.prefix
  source = source_of(path, function() return unet3d.expected(model.unet.config) end,
    function(file) return prefix_of(file, 'conv_in.weight') end)
  folder.write(o.out .. '/latentsync_unet.safetensors', 'unet', source, by_network.unet or {}, by_network.unet and about.unet)
  source.close()
end

-- ---- the whole run -----------------------------------------------------------------------------------

-- The layers that a recipe selects, with their formats.
local function chosen(model, recipe, calibrated, tell)
  local by_network, all, lacking = {}, {}, nil
  for _, network in ipairs(recipes.NETWORKS) do
    local rows, list = recipe[network], {}
    local every = rows and layers.of(model[network].w) or {}
    local unmatched = rows and recipes.unmatched(rows, every)
    if unmatched then tell(unmatched) end
    for _, layer in ipairs(every) do
      local format, why = recipes.choose(rows, layer, model.device, calibrated)
      lacking = lacking or why
      if format ~= 'none' and (calibrated or format ~= 'int8' or layer.kind == 'product' or layer.norm) then
        layer.format, layer.wants_gram = format, format == 'int4'
        list[#list + 1], all[#all + 1] = layer, layer
      end
    end
    if #list > 0 then by_network[network] = list end
  end
  return by_network, all, lacking
end

--- Quantizes a checkpoint's folder into another folder.
--- @param o table {checkpoint, out, recipe = text, clips = { {video, audio}, ... } (if empty, ranges come from the norms), windows =
---   32 in total, bound = maximum relative error of a network's output (default: by recipe), vae, device, dtype,
---   tell = fun(line), progress = fun(text)}
--- @return table by network {layers, kept = number, error = relative error of the output, formats}
function M.run(o)
  local recipe = recipes.named(o.recipe)
  if not recipe then error(('%s: this recipe quantizes nothing'):format(o.recipe), 0) end
  o.progress 'loading'
  local model = latentsync.load(o.checkpoint, { device = o.device, dtype = o.dtype, vae = o.vae })
  local calibrated = #o.clips > 0
  local by_network, all, lacking = chosen(model, recipe, calibrated, o.tell)
  if #all == 0 then error(('%s: the recipe matches no layer that can be quantized'):format(o.recipe), 0) end
  if lacking then o.tell(('%s: int8 is used instead'):format(lacking)) end
  local found, kept
  if calibrated then found, kept = calibrate(model, all, o, o.progress) else found, kept = draw(model) end
  if #kept.windows == 0 then error('no window with a speaking face was found for the calibration', 0) end
  local make = {
    unet = function() return unet_probes(model, kept.windows, kept.steps) end, vae = function() return vae_probes(model, kept.latents) end,
    whisper = function() return whisper_probes(model, kept.mels) end,
  }
  local about, result = {}, {}
  for _, network in ipairs(recipes.NETWORKS) do
    local list = by_network[network]
    if list then
      local done, fitted = 0, {}
      for _, layer in ipairs(list) do
        done = done + 1
        o.progress(('%s: fitting %d of %d layers'):format(network, done, #list))
        layer.codes = cr.scope(function()
          local how = fitting.how(layer, layer.format, found[layer])
          return how and encode.encoded(layer, layer.format, how)
        end)
        if layer.codes then fitted[#fitted + 1] = layer end
        for _, t in pairs(layer.codes or {}) do cr.keep(t) end
      end
      list, by_network[network] = fitted, fitted
      local probes, together
      done = 0
      unrecorded(model, function()
        probes = make[network]()
        together = errors.choose(list, probes, o.bound or M.BOUNDS[o.recipe] or M.BOUND, function()
          done = done + 1
          o.progress(('%s: measuring %d of %d layers'):format(network, done, #list))
        end)
      end)
      errors.free(probes)
      local r = { layers = #list, kept = 0, error = together, formats = {} }
      local names = {}
      for _, layer in ipairs(list) do
        o.tell(('%-96s %-5s alone %.4f%s'):format(network .. '.' .. layer.name, layer.format, layer.alone,
          layer.kept and KEPT[layer.kept] or ''))
        if layer.kept then
          r.kept, names[#names + 1] = r.kept + 1, layer.name
        else
          r.formats[layer.format] = (r.formats[layer.format] or 0) + 1
        end
      end
      o.tell(('%s: %d layers, %d compute in 16 bits; the output has a relative error of %.4f'):format(network, #list, r.kept, together))
      result[network] = r
      about[network] = { version = 1, recipe = o.recipe, calibrated_windows = kept.count, kept = names,
        error = tonumber(('%.4g'):format(together)), formats = r.formats }
    end
  end
  statistics.free(found)
  o.progress 'writing'
  write(model, o, by_network, about)
  return result
end

return M
