-- Writes a checkpoint folder of LatentSync's full-size networks with weights by the formula (untrained):
-- for measuring whole runs where the real weights are not at hand. Takes about 15 seconds.
--
--     build/crescent tests/bench/full_checkpoint.lua DIR [f16]      f16 (2.7 GB), f32 or bf16

local cr = require 'cr'
local lfs = require 'lfs'
local formula = require 'tests.support.formula'
local unet3d = require 'models.networks.unet3d'
local vae = require 'models.networks.vae'

local dir, dtype = arg[1] or error('the folder to write is missing', 0), arg[2] or 'f16'
for _, folder in ipairs { dir, dir .. '/vae' } do lfs.mkdir(folder) end

local function write(path, expected)
  cr.scope(function()
    local all = {}
    for _, e in ipairs(expected) do
      -- The position encoding is a table of sines that the network makes itself.
      if not e.name:find '%.pe$' then
        all[e.name] = cr.scope(function() return formula.tensor(e.name, e.shape, { kind = 'weight' }):to(dtype) end)
      end
    end
    cr.save(path, all)
  end)
end

write(dir .. '/vae/diffusion_pytorch_model.safetensors', vae.expected(vae.config()))
local config = assert(io.open(dir .. '/vae/config.json', 'w'))
config:write '{"_class_name": "AutoencoderKL", "scaling_factor": 0.18215}\n'
config:close()
write(dir .. '/latentsync_unet.safetensors', unet3d.expected(unet3d.config()))
