--- Hooks: a function around each layer of the UNet, for caches and guidances that look inside a step.
---
---     local hook = { name = 'louder', layer = function(layer, x, compute, memory)
---       if layer.kind ~= 'motion' then return compute(x) end
---       return x + (compute(x) - x) * 1.2
---     end }
---     denoiser:predict(latents, i, { hook = hook })
--
-- A layer is {name, kind, widens}. Its name is that of its weights in the checkpoint, as
-- 'mid_block.attentions.0.transformer_blocks.0.attn1'; its kind is one of
--
--     attention         of a frame's places to one another (attn1)
--     cross_attention   to the voice (attn2)
--     feed_forward      in transformers and in motion modules
--     motion            attention of a place to itself in the other frames
--
-- compute(x) is the layer's work with its input added, as later layers take it: x + f(x), of x's shape
-- [rows T C]; where `widens` is true both halves of guidance part there, and it has twice x's rows.
-- compute(x, { identity = true }) is an attention whose map is the identity: each place sees itself alone.
--
-- memory:get(layer) is what memory:put(layer, tensor) kept in an earlier step of the window, or nil; it is kept
-- by the layer and the number of x's rows (with guidance there are two halves, or one). More than one tensor of a layer
-- have names: memory:put(layer, tensor, 'slope'), memory:get(layer, 'slope').
--
-- On a card a hook's steps are recorded as all others are, under its name, and the function is not called when
-- they are replayed: a hook's function must do the same whenever it is called. Another function of the same name is recorded
-- anew, so one that is made once is best. Two kinds of steps are two hooks
-- (lua/cr/cache/fora.lua).

local cr = require 'cr'

local M = {}

local Memory = {}
Memory.__index = Memory

local function key_of(layer, name)
  if type(layer) == 'table' and layer.key then return name and layer.key .. ' ' .. tostring(name) or layer.key end
  error("hook: memory:get(layer, name) and memory:put(layer, tensor, name) take the layer that the hook was given", 0)
end

function Memory:get(layer, name) return self.tensors[key_of(layer, name)] end

-- In the same place from window to window, where recorded steps find it.
function Memory:put(layer, t, name)
  local key = key_of(layer, name)
  local there = self.tensors[key]
  if there then
    there:copy_(t)
  else
    self.tensors[key] = cr.keep(cr.scope(function() return t:clone() end))
  end
end

--- What a denoiser's hooks keep.
--- @return table
function M.memory() return setmetatable({ tensors = {} }, Memory) end

--- Frees what was kept.
--- @param memory table
function M.free(memory)
  for key, t in pairs(memory.tensors) do
    t:free()
    memory.tensors[key] = nil
  end
end

-- Refuses what compute() has no option for.
local function checked(compute)
  return function(x, how)
    for key in pairs(how or {}) do
      if key ~= 'identity' then require 'cr.errors'.no_option('hook: compute', key, { 'identity' }) end
    end
    return compute(x, how)
  end
end

--- Refuses what is no hook.
--- @param hook any
function M.check(hook)
  if type(hook) == 'table' and type(hook.name) == 'string' and type(hook.layer) == 'function' then return end
  error('unet: a hook is { name = TEXT, layer = function(layer, x, compute, memory) }; models/networks/unet3d_hook.lua says more', 0)
end

--- A hook as the layers call it.
--- @param hook table
--- @param memory table
--- @param deaf integer? rows of x before the halves of guidance part; nil: they are apart, or there is one
--- @return fun(kind: string, w: table, x: Tensor, compute: function): Tensor
function M.new(hook, memory, deaf)
  return function(kind, w, x, compute)
    local name = (getmetatable(w) or {}).__path or kind
    local rows = x:size(1)
    local layer = { name = name, kind = kind, widens = kind == 'cross_attention' and rows == deaf, key = name .. ' ' .. rows }
    local y = cr.scope(hook.layer, layer, x, checked(compute), memory)
    local wanted = layer.widens and 2 * rows or rows
    if not cr.is_tensor(y) or y:numel() ~= x:numel() / rows * wanted or y:size(1) ~= wanted then
      error(('hook %s: it must return a tensor of [%d %d %d] at %s, not %s'):format(hook.name, wanted, x:size(2), x:size(-1), name,
        cr.is_tensor(y) and '[' .. table.concat(y.shape, ' ') .. ']' or type(y)), 0)
    end
    return y
  end
end

return M
