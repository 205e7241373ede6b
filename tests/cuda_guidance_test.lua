-- Guidance, caches and schedulers on a GPU: whole windows of recorded steps compared with the CPU.

local cr = require 'cr'
local t = require 'tests.support.tap'
local cuda = require 'tests.support.cuda'
local help = require 'tests.support.networks'
local unet3d = require 'models.networks.unet3d'
local schedulers = require 'cr.schedulers'
local guidance = require 'cr.guidance'
local cache = require 'cr.cache'

local F, SIDE = 3, 8
local config = unet3d.config(require 'tests.support.checkpoint'.unet_config(64))

-- Latents of two windows after all steps.
local function windows(device, name, steps, settings, spec)
  return cr.scope(function()
    local net = unet3d.new(help.tree(unet3d.expected(config), { device = device }), config)
    local s = schedulers.load(name, { steps = steps })
    local out, counts = {}, {}
    for k = 1, 2 do
      local x = s:start(help.input('x', { 1, 4, F, SIDE, SIDE }):to(device))
      local unet = guidance.wrap(cache.wrap(net:denoiser {
        cond = help.input('cond' .. k, { 1, 9, F, SIDE, SIDE }):to(device),
        audio = t.formula('input:audio' .. k, { F, 50, 64 }):to(device),
        guidance = 1.5, timesteps = s.timesteps,
      }, spec and cache.plan(spec), counts), guidance.new(settings), s)
      for i, at in ipairs(s.timesteps) do
        local y, from = unet:call(x, i)
        x = s:step(y, at, from or x)
      end
      unet:free()
      out[k] = x:to 'cpu'
    end
    return out, counts
  end)
end

local function compare(what, ...)
  t.keeps_storages() -- recordings stay with the network until it is garbage-collected
  local got, counts = windows(cuda.device, ...)
  local want, wanted = windows('cpu', ...)
  for k = 1, 2 do t.near(got[k], want[k], 2e-3, ('%s, window %d'):format(what, k)) end
  for kind, n in pairs(wanted) do t.equal(counts[kind], n, kind) end
end

cuda.test('DeepCache: recorded whole and shallow steps', function()
  compare('branch 0', 'ddim', 10, { scale = 1.5 }, 'deepcache:3')
  compare('branch 2', 'dpmpp_2m', 9, { scale = 1.5 }, 'deepcache:3:2')
end)

cuda.test('guidance between two times and rescaled, with and without DeepCache', function()
  compare('interval', 'ddim', 9, { scale = 1.5, interval = { 200, 700 } })
  compare('rescaled', 'unipc', 6, { scale = 3, rescale = 0.7, off_last = 2 })
  compare('both', 'ddim', 12, { scale = 1.5, interval = { 300, 1000 } }, 'deepcache:2')
end)

cuda.test('methods of guidance, and hooks in recorded steps', function()
  for _, method in ipairs { 'apg:norm=0.5', 'cfgpp', 'zero_star', 'pag:layers=down_blocks.0' } do
    compare(method, 'ddim', 6, { scale = 1.5, method = method })
  end
  compare('fora', 'dpmpp_2m', 9, { scale = 1.5 }, 'fora:2')
  compare('fora with steps that are not guided', 'ddim', 9, { scale = 1.5, interval = { 300, 800 } }, 'fora:3')
end)

cuda.test('a step of every scheduler in f16', function()
  local x, m = cuda.randn({ 1, 2, 4, 4, 4 }, 'f16'), cuda.randn({ 1, 2, 4, 4, 4 }, 'f16')
  for _, name in ipairs(schedulers.names()) do
    local function step(device, dtype)
      local s = schedulers.load(name, { steps = 4 })
      local a = x:to(device):to(dtype)
      for i = 1, 2 do
        local at = s.timesteps[i]
        a = s:step(m:to(device):to(dtype), at, a, m:to(device):to(dtype))
      end
      s:reset()
      return a
    end
    local got = step(cuda.device, 'f16')
    t.equal(got.dtype .. ' ' .. got.device, 'f16 ' .. cuda.device, name)
    t.near(got:to 'cpu', step('cpu', 'f32'), 5e-3, name)
  end
end)

t.done()
