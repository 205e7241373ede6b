-- Times the whole networks on a GPU and compares them with PyTorch in one run: a UNet step with guidance, and the
-- VAE's encoding and decoding of 16 frames, all in float16; peak memory; with --error, each side's float16 error
-- against the golden values, on the same formula weights.
--
--     build/crescent tests/bench/cuda_networks.lua [--ref REF] [--python PYTHON] [--size 256,512]
--         [--part unet,vae] [--mode eager,graph,compile] [--runs 10] [--error] [--checkpoint DIR]
--
-- REF is a folder with the reference's packages (see torch_networks_cuda.py); without it, only Crescent is timed.
-- torch.compile takes minutes, so omit its mode if you do not need it. Crescent's weights are those of DIR, with
-- --error formula weights, otherwise random.

local cr = require 'cr'
local golden = require 'tests.support.golden'
local help = require 'tests.support.networks'
local measure = require 'models.laboratory.measure'
local unet3d = require 'models.networks.unet3d'
local vae_model = require 'models.networks.vae'

local o = require 'tests.bench.options'.read('The networks on a GPU, compared with PyTorch.', {
  { '--ref', 'file', help = "folder of the reference's packages; without it only Crescent is timed" },
  { '--python', 'file', default = os.getenv 'PYTHON' or 'python3', help = 'a Python with PyTorch' },
  { '--size', default = '256,512', help = 'pixels' },
  { '--part', default = 'unet,vae', help = 'which networks' },
  { '--mode', default = 'eager,graph,compile', help = "PyTorch's" },
  { '--runs', 'int', default = 10, min = 1, help = 'number of runs; the median is printed' },
  { '--error', 'flag', help = "also print each side's error against the golden values" },
  { '--checkpoint', 'file', help = 'a checkpoint folder instead of random weights' },
})
require 'tests.bench.card' ()
local device, dtype = 'cuda', 'f16'

local parts = {}
for name in o.part:gmatch '[^,]+' do parts[name] = true end

-- ---- ours ----

local function load_model()
  if o.checkpoint then return require 'models.latentsync'.load(o.checkpoint, { device = device, dtype = dtype }) end
  local options = { device = device, dtype = dtype, unet = parts.unet == true, vae = parts.vae == true }
  if not o.error then return measure.random(options) end
  local model = {}
  local config = unet3d.config()
  if parts.unet then model.unet = unet3d.new(help.tree(unet3d.expected(config), options), config) end
  config = vae_model.config()
  options.made = vae_model.made
  if parts.vae then model.vae = vae_model.new(help.tree(vae_model.expected(config), options), config) end
  return model
end

local function our_errors(model)
  local gold = golden.open 'networks'
  local errors = {}
  local function check(name, x, key) errors[name] = gold:error(help.as_reference(x:to 'cpu':to 'f32'), key) end
  cr.scope(function()
    if model.unet and parts.unet then
      check('unet', model.unet:forward(help.input('sample', { 2, 13, 16, 32, 32 }):to(device), 481,
        require 'tests.support.formula'.tensor('input:audio', { 2, 16, 50, 384 }):to(device)), 'unet_full.out.r256.t481')
    end
    if model.vae and parts.vae then
      local mean, logvar = model.vae:encode(help.input('image', { 1, 3, 256, 256 }):clamp(-1, 1):to(device))
      check('vae mean', mean, 'vae_full.mean')
      check('vae logvar', logvar, 'vae_full.logvar')
      check('vae dec', model.vae:decode(help.input('latent', { 1, 4, 32, 32 }):to(device)), 'vae_full.dec')
    end
  end)
  gold:close()
  return errors
end

local rows, order = {}, {}
local function row(name)
  if not rows[name] then
    rows[name] = {}
    order[#order + 1] = name
  end
  return rows[name]
end

local info = cr.cuda.info()
print(('%s, crescent %s, CUDA %s, cuBLAS %s, cuDNN %s'):format(info.name, cr.version, info.runtime, info.cublas, info.cudnn))

local ours = {}
cr.scope(function()
  local model = load_model()
  if o.error then
    ours = our_errors(model)
    for name, e in pairs(ours) do print(('%-16s ours %.3g (error against float32)'):format(name, e)) end
  end
  for size in o.size:gmatch '%d+' do
    for case in measure.cases(model, tonumber(size), { parts = parts }) do
      cr.trim(device)
      cr.reset_peak(device)
      local done, ms = pcall(cr.cuda.time, case.run, o.runs)
      if done then
        local r = row(case.name)
        r.ms, r.work, r.gib = ms, case.work, cr.memory(device).peak / 2 ^ 30
        print(('%-16s ours %9.2f ms %7s %6.2f GiB'):format(case.name, ms,
          case.work and ('%.0f TFLOP/s'):format(case.work / ms * 1e3) or '', r.gib))
      else
        print(('%-16s Crescent failed: %s'):format(case.name, tostring(ms)))
      end
      case.free()
    end
  end
end)
collectgarbage()
collectgarbage()
cr.trim(device)

if not o.ref then os.exit(0, true) end

-- ---- PyTorch, then both side by side ----

local command = ("env -u LD_LIBRARY_PATH '%s' '%s/tests/bench/torch_networks_cuda.py' '%s' --size %s --part %s --mode '%s' --runs %s%s%s")
  :format(o.python, cr.root, o.ref, o.size, o.part, o.mode, o.runs, o.error and ' --error' or '',
    o.error and (" --golden '%snetworks.safetensors'"):format(golden.folder) or '')
local pipe = io.popen(command, 'r')
for line in pipe:lines() do
  local parsed, figure = pcall(require 'cjson'.decode, line)
  if not parsed or type(figure) ~= 'table' then
    print(line)
  elseif figure.text then
    print(figure.text)
  elseif figure.error then
    local mine = ours[figure.name]
    print(('%-20s PyTorch %.3g (error against float32)%s'):format(figure.name, figure.error,
      mine and (', ours %.3g, ratio %.2f'):format(mine, mine / figure.error) or ''))
  else
    local r = row(figure.name)
    r[figure.mode] = figure
    print(('%-16s %-8s %9.2f ms %21.2f GiB'):format(figure.name, figure.mode, figure.ms, figure.gib))
  end
end
pipe:close()

print(('\n%-16s %12s %12s %12s %12s   %s'):format('', 'ours', 'eager', 'graph', 'compile', "ours to PyTorch's best"))
local slower = false
for _, name in ipairs(order) do
  local r = rows[name]
  local best
  local line = ('%-16s %9s ms'):format(name, r.ms and ('%.2f'):format(r.ms) or '-')
  for _, mode in ipairs { 'eager', 'graph', 'compile' } do
    line = line .. (r[mode] and (' %9.2f ms'):format(r[mode].ms) or '            -')
    if r[mode] then best = math.min(best or math.huge, r[mode].ms) end
  end
  if best and r.ms then
    slower = slower or r.ms > best
    line = line .. ('   %.2f'):format(r.ms / best)
  end
  print(line)
end
os.exit(slower and 1 or 0, true)
