--- Hooks: a function that wraps each layer of the UNet, for caches and guidance methods that work inside of a step.
---
---     local hook = { name = 'louder', layer = function(layer, x, compute, memory)
---       if layer.kind ~= 'motion' then return compute(x) end
---       return x + (compute(x) - x) * 1.2
---     end }
---     denoiser:predict(latents, i, { hook = hook })
--
-- A layer is {name, kind, widens}. Its name is that of its weights in the checkpoint, such as
-- 'mid_block.attentions.0.transformer_blocks.0.attn1'; its kind is one of
--
--     attention         self-attention between the positions of a frame (attn1)
--     cross_attention   cross-attention to the audio tokens (attn2)
--     feed_forward      in transformers and in motion modules
--     motion            temporal self-attention of a position over the frames
--
-- compute(x) runs the layer with its residual connection: x + f(x), with x's shape [rows T C]. If `widens` is true,
-- the two halves of guidance diverge in this layer, and the result has twice x's rows. compute(x, { identity = true
-- }) replaces the attention map by the identity, so that each position sees only itself. compute(x, { attend =
-- function(q, k, v, heads) ... end }) replaces the whole attention: q, k, v are [... T heads*d] (perhaps views with gaps),
-- and the function returns what nn.attention(q, k, v, { heads = heads }) would, of q's shape.
--
-- memory:get(layer) returns what memory:put(layer, tensor) stored in an earlier step of the window, or nil. Values
-- are stored by layer and number of rows (guidance runs one half or two). Several tensors per layer need names:
-- memory:put(layer, tensor, 'slope'), memory:get(layer, 'slope').
--
-- On a GPU, a hook's steps are recorded as CUDA graphs under its name, and its function is not called when they are
-- replayed. So the function must do the same at every call. Another function with the same name causes a new
-- recording, so create the function only once. Use two hooks for two kinds of steps (lua/cr/cache/fora.lua).

local cr = require 'cr'

local M = {}

local Memory = {}
Memory.__index = Memory

local function key_of(layer, name)
  if type(layer) == 'table' and layer.key then return name and layer.key .. ' ' .. tostring(name) or layer.key end
  error("hook: memory:get(layer, name) and memory:put(layer, tensor, name) take the layer that the hook was given", 0)
end

function Memory:get(layer, name) return self.tensors[key_of(layer, name)] end

-- Keeps its address from window to window, where recorded steps read it.
function Memory:put(layer, t, name)
  local key = key_of(layer, name)
  local there = self.tensors[key]
  if there then
    there:copy_(t)
  else
    self.tensors[key] = cr.keep(cr.scope(function() return t:clone() end))
  end
end

--- Creates the memory of a denoiser's hooks.
--- @return table
function M.memory() return setmetatable({ tensors = {} }, Memory) end

--- Frees the memory.
--- @param memory table
function M.free(memory)
  for key, t in pairs(memory.tensors) do
    t:free()
    memory.tensors[key] = nil
  end
end

-- The hook's attention, with its result checked.
local function checked_attention(name, attend)
  return function(q, k, v, heads)
    local y = attend(q, k, v, heads)
    local shape = table.concat(q.shape, ' ')
    if not cr.is_tensor(y) or table.concat(y.shape, ' ') ~= shape then
      error(('hook %s: attend must return a tensor of [%s], not %s'):format(name, shape,
        cr.is_tensor(y) and '[' .. table.concat(y.shape, ' ') .. ']' or type(y)), 0)
    end
    return y:contiguous()
  end
end

-- Refuses unknown options of compute().
local function checked(name, compute)
  return function(x, how)
    for key in pairs(how or {}) do
      if key ~= 'identity' and key ~= 'attend' then require 'cr.errors'.no_option('hook: compute', key, { 'attend', 'identity' }) end
    end
    if how and how.attend ~= nil then
      if type(how.attend) ~= 'function' then
        error(('hook %s: attend is a function(q, k, v, heads), not a %s'):format(name, type(how.attend)), 0)
      end
      how = { identity = how.identity, attend = checked_attention(name, how.attend) }
    end
    return compute(x, how)
  end
end

--- Refuses a value that is not a hook.
--- @param hook any
function M.check(hook)
  if type(hook) == 'table' and type(hook.name) == 'string' and type(hook.layer) == 'function' then return end
  error('unet: a hook is { name = TEXT, layer = function(layer, x, compute, memory) }; see models/networks/unet3d_hook.lua', 0)
end

--- Adapts a hook to the interface that the layers call.
--- @param hook table
--- @param memory table
--- @param deaf integer? number of rows of x before the halves of guidance diverge; nil after that, or with one half
--- @return fun(kind: string, w: table, x: Tensor, compute: function): Tensor
function M.new(hook, memory, deaf)
  return function(kind, w, x, compute)
    local name = (getmetatable(w) or {}).__path or kind
    local rows = x:size(1)
    local layer = { name = name, kind = kind, widens = kind == 'cross_attention' and rows == deaf, key = name .. ' ' .. rows }
    local y = cr.scope(hook.layer, layer, x, checked(hook.name, compute), memory)
    local wanted = layer.widens and 2 * rows or rows
    if not cr.is_tensor(y) or y:numel() ~= x:numel() / rows * wanted or y:size(1) ~= wanted then
      error(('hook %s: it must return a tensor of [%d %d %d] at %s, not %s'):format(hook.name, wanted, x:size(2), x:size(-1), name,
        cr.is_tensor(y) and '[' .. table.concat(y.shape, ' ') .. ']' or type(y)), 0)
    end
    return y
  end
end

return M
