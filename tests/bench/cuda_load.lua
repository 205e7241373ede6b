-- The time to load a full-size UNet's weights from a file in the page cache onto a GPU, and the memory that they use
-- there:
--
--     build/crescent tests/bench/cuda_load.lua [--folder DIR]      for a file of 5 GB

local clock = require 'cr.clock'
local cr = require 'cr'
local unet3d = require 'models.networks.unet3d'
local weights = require 'cr.weights'

local folder = require 'tests.bench.options'.read("Time of loading weights onto a GPU.", {
  { '--folder', 'file', default = os.getenv 'TMPDIR' or '/tmp', help = 'for a file of 5 GB' },
}).folder
require 'tests.bench.card' ()

local device = 'cuda'
local expected = unet3d.expected(unet3d.config())

local function write(path, dtype)
  local tensors = {}
  for _, e in ipairs(expected) do
    if not e.optional then tensors[e.name] = cr.full(e.shape, 0.01, { dtype = dtype }) end
  end
  cr.save(path, tensors)
  for _, x in pairs(tensors) do x:free() end
  cr.trim()
end

cr.empty(1, { device = device }):free() -- the card starts
for _, dtype in ipairs { 'f16', 'f32' } do
  local path = ('%s/crescent-load-%d.safetensors'):format(folder, os.time())
  cr.C.cr_cleanup_add(path)
  write(path, dtype)
  for run = 1, 3 do
    cr.reset_peak(device)
    local start = clock()
    local tree = weights.tree(path, { dtype = 'f16', device = device, tag = 'unet weights', adjacent = unet3d.adjacent })
    local queued = clock() - start
    cr.cuda.synchronize(device)
    local loaded = clock() - start
    local net = unet3d.new(tree) -- luacheck: ignore
    cr.cuda.synchronize(device)
    local m = cr.memory(device)
    print(('%s file, run %d: queued %.3f s, loaded %.3f s, network %.3f s; %.2f GiB live, %.2f reserved at most')
      :format(dtype, run, queued, loaded, clock() - start, m.live / 2 ^ 30, m.peak_reserved / 2 ^ 30))
    net, tree = nil, nil -- luacheck: ignore
    require 'jit'.flush()
    collectgarbage()
    collectgarbage()
    cr.trim(device)
  end
  os.remove(path)
  cr.C.cr_cleanup_remove(path)
end
