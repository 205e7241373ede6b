--- An example of a custom cache, to copy and change: the less a kind of attention changes, the longer its result is
--- reused, as in Pyramid Attention Broadcast (Zhao et al. 2024, arXiv 2408.12588).
---
---     build/crescent lipsync --cache scripts/examples/my_cache.lua:2:4:6 ...
--
-- The three numbers are the steps for which the results of spatial attention, temporal attention and cross-attention
-- to the audio are reused. The first and last steps are always computed completely. The cache is implemented by hooks
-- around layers (models/networks/unet3d_hook.lua).

local M = { help = 'reuse of attention by its kind (my_cache.lua:SPATIAL:FRAMES:VOICE): an example to copy' }

local KINDS = { 'attention', 'motion', 'cross_attention' }

-- A hook that reuses some kinds of layers, written as '101'. Equal hooks need equal names, because recorded steps are
-- found by name.
local hooks = {}
local function hook_of(reuses)
  hooks[reuses] = hooks[reuses] or { name = 'my_cache ' .. reuses, layer = function(layer, x, compute, memory)
    for k, kind in ipairs(KINDS) do
      if layer.kind == kind and not layer.widens then
        local share = reuses:sub(k, k) == '1' and memory:get(layer)
        if share then return x + share end
        local y = compute(x)
        memory:put(layer, y - x)
        return y
      end
    end
    return compute(x)
  end }
  return hooks[reuses]
end

--- Parses the options after the file's name.
function M.parse(...)
  local every = { 2, 4, 6 }
  for k, word in ipairs { ... } do every[k] = tonumber(word) end
  for k = 1, 3 do assert(every[k] and every[k] >= 1, 'my_cache: expected three numbers of steps, at least 1') end
  return every
end

--- Wraps a predictor. If it keeps tensors of its own, it also has a function free().
function M.new(inner, every, count)
  local cache = {}
  function cache:predict(x, i, how)
    local guided, words = not how or how.guided ~= false, {}
    local whole = i == 1 or i == #inner.timesteps or guided ~= self.guided
    for k = 1, 3 do words[k] = not whole and (i - 1) % every[k] ~= 0 and '1' or '0' end
    self.guided = guided
    count(table.concat(words) == '000' and 'full' or 'shallow')
    return inner:predict(x, i, { guided = guided, hook = hook_of(table.concat(words)) })
  end
  return cache
end

return M
