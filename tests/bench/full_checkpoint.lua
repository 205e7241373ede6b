-- Writes a checkpoint folder of LatentSync's full-size networks with formula weights (untrained), to measure whole
-- runs without the real weights. It takes about 15 seconds.
--
--     build/crescent tests/bench/full_checkpoint.lua DIR [--dtype f16]      f16 (2.7 GB), f32 or bf16
--
-- Tiny: OUT/full --part vae

local cr = require 'cr'
local lfs = require 'lfs'
local formula = require 'tests.support.formula'
local unet3d = require 'models.networks.unet3d'
local vae = require 'models.networks.vae'

local o = require 'cr.tools.cli'.parse(arg, {
  name = 'tests/bench/full_checkpoint.lua', summary = "LatentSync's full-size networks, untrained.", options = {
    { '--dtype', 'choice', default = 'f16', choices = { 'f16', 'f32', 'bf16' }, help = 'data type of the weights' },
    { '--part', 'choice', default = 'all', choices = { 'all', 'vae' }, help = 'only the autoencoder, or everything' },
  }, positional = { { 'dir', 'file', help = 'the folder to write' } },
})
local dir, dtype = o.dir, o.dtype
for _, folder in ipairs { dir, dir .. '/vae' } do lfs.mkdir(folder) end

local written = 0
local function write(path, expected)
  cr.scope(function()
    local all = {}
    for _, e in ipairs(expected) do
      -- The network computes the sinusoidal position encoding itself.
      if not e.name:find '%.pe$' then
        all[e.name] = cr.scope(function() return formula.tensor(e.name, e.shape, { kind = 'weight' }):to(dtype) end)
      end
    end
    cr.save(path, all)
    written = written + lfs.attributes(path, 'size')
  end)
end

write(dir .. '/vae/diffusion_pytorch_model.safetensors', vae.expected(vae.config()))
local config = assert(io.open(dir .. '/vae/config.json', 'w'))
config:write '{"_class_name": "AutoencoderKL", "scaling_factor": 0.18215}\n'
config:close()
if o.part == 'all' then write(dir .. '/latentsync_unet.safetensors', unet3d.expected(unet3d.config())) end
print(('%s holds %.0f MB'):format(dir, written / 1e6))
