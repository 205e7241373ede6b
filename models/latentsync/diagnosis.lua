--- Finds the cause of non-finite values, once a window's latents or pixels are not finite.
--
-- As long as all values are finite, the cost per window is one reduction and the reading of one number. The diagnosis
-- is one sentence: the step and its scheduler, and the first tensor that is not finite.

local cr = require 'cr'
local finite = require 'models.networks.finite'
local trace = require 'cr.tools.trace'

local M = {}

--- The largest magnitude in a tensor; NaN propagates.
--- @param x Tensor floats
--- @return Tensor f32 scalar, on x's device
function M.largest(x) return cr.scope(function() return x:abs():max():to 'f32' end) end

--- Whether the result of `largest` is finite. Reads it from the device.
--- @param largest Tensor
function M.is_finite(largest)
  local value = largest:item()
  return value == value and value < math.huge
end

-- Runs fn and checks each operation's result; returns a description of the first one that is not finite.
local function bad_operation(fn)
  local found
  trace.watch(function(event, out)
    if found or not out or (out.dtype ~= 'f32' and out.dtype ~= 'f16' and out.dtype ~= 'bf16') or out:numel() == 0 then return end
    if not finite.is(out) then
      found = ('%s, %s %s%s'):format(event.name, event.dtype, event.shape, event.place and ' (' .. event.place .. ')' or '')
    end
  end, fn)
  return found
end

local function advice(model)
  return model.dtype == 'f16' and '; the largest f16 number is 65504: try --dtype bf16 or f32' or ''
end

-- A description of the first weight of a network that is not finite; nil if all are finite.
local function weight_of(name, network)
  local weight = finite.first(network.w or network)
  return weight and ('the weight %s of %s'):format(weight, name)
end

-- A description of the first weight, or else of the first intermediate result of fn, that is not finite.
local function first_bad(name, network, fn)
  local weight = weight_of(name, network)
  if weight then return weight end
  local operation = bad_operation(fn)
  return operation and ('the result of %s'):format(operation)
end

-- "WHAT: the first tensor that is not finite is TENSOR; advice".
local function sentence(model, what, tensor)
  return what .. (tensor and ': the first tensor that is not finite is ' .. tensor or '') .. advice(model)
end

--- Samples a window again, step by step, until a value is not finite.
--- @param sampler Sampler
--- @param model LatentSync
--- @param window table {cond, hear}
--- @param noise Tensor [1 F h w 4]
--- @return string one sentence
function M.of(sampler, model, window, noise)
  return cr.scope(function()
    if not finite.is(window.cond) then
      return sentence(model, 'the image conditioning is not finite', weight_of('the VAE', model.vae))
    elseif not finite.is(window.hear) then
      return sentence(model, 'the audio tokens are not finite', weight_of('Whisper', model.whisper))
    end
    local found
    local ok, result = pcall(sampler.run, sampler, model, window, noise, function(i, prediction, latents, predict)
      local at = ('step %d of %d of %s is not finite'):format(i, sampler:steps(), sampler.name)
      if not finite.is(prediction) then
        found = sentence(model, at, first_bad('the UNet', model.unet, predict) or "the UNet's prediction")
      elseif not finite.is(latents) then
        found = at .. ': its prediction is, but not what the scheduler makes of it; choose another scheduler, or more steps'
      end
      if found then error(found, 0) end
    end)
    if found then return found end
    if not ok then error(result, 0) end
    local latents = model.vae:unscale(result:view(result:size(2), result:size(3), result:size(4), result:size(5)))
    return sentence(model, ('the decoded faces of %s are not finite'):format(sampler.name),
      first_bad('the VAE', model.vae, function() model.vae:decode(latents) end))
  end)
end

return M
