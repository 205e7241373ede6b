--- Operations of diffusion models: timestep embeddings and samples of a posterior.

local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local C, new, filled, is_tensor = base.C, tensor.new, tensor.filled, tensor.is_tensor
local none = {}
--- @class cr.nn
local nn = {}

--- Sinusoidal embedding of timesteps, cosines first (diffusers' flip_sin_to_cos, shift 0); computed
--- in float64.
--- @param timesteps number[]|Tensor [T]
--- @param dim integer
--- @param options table? {dtype = 'f32', device = 'cpu' (for a list; a tensor stays on its device)}
--- @return Tensor [T dim]
function nn.timestep_embedding(timesteps, dim, options)
  options = options or none
  local code = tensor.dtype_code('timestep_embedding', options.dtype)
  return tensor.scope(function()
    local t = timesteps
    if not is_tensor(t) then t = tensor.tensor(t, { dtype = 'f64', device = options.device }) end
    local out = new()
    return filled(out, C.cr_timestep_embedding(out.c, t.c, dim, code))
  end)
end

--- Draws a sample of a normal posterior: (mean + exp(logvar / 2) * noise) * scale, with logvar clamped to -30 .. 20.
--- @param mean Tensor
--- @param logvar Tensor like mean
--- @param noise Tensor? standard normal samples like mean; nil returns the scaled mean
--- @param scale number? 1
--- @return Tensor
function nn.posterior_sample(mean, logvar, noise, scale)
  local out = new()
  return filled(out, C.cr_posterior_sample(out.c, mean.c, logvar.c,
    noise and noise.c, scale or 1))
end

local maybe, x = arguments.maybe, tensor.kinds.alive
local rows = {
  timestep_embedding = {
    arguments.either('a tensor or a list of numbers', x, arguments.list('', arguments.finite)), arguments.integer,
    maybe(arguments.options { dtype = maybe(arguments.string), device = maybe(arguments.string) }),
  },
  posterior_sample = { x, x, maybe(x), maybe(arguments.finite) },
}
return { functions = nn, rows = rows }
