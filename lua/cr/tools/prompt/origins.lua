--- Which line made each tensor, for :mem. Kept only at the prompt: looking it up at every operation
--- takes a few microseconds.

local tensor = require 'cr.tensor'
local memory = require 'cr.tensor.memory'
local order = require 'cr.order'
local run = require 'cr.tools.prompt.run'

local M = {}

local origins = setmetatable({}, { __mode = 'k' }) -- tensor -> 'models/networks/vae.lua:120', ...
local tags = setmetatable({}, { __mode = 'k' })    -- tensor -> what it is for

--- Begins to note where tensors come from.
function M.start()
  tensor.on_new(function(t)
    origins[t] = run.places(2, 1)[1] or 'prompt' -- (a tail call leaves no line)
    local tag = memory.tag()
    if tag ~= '' then tags[t] = tag end
  end)
end

--- Tensors that are alive, one for each piece of memory, the largest first.
--- @return table[] {tensor, bytes, origin, tag}
function M.list()
  local by_storage, list = {}, {}
  for t, origin in pairs(origins) do
    if not t:is_freed() then
      local key, bytes = tensor.storage_of(t)
      local known = by_storage[key]
      if not known then
        known = { bytes = -1 }
        by_storage[key] = known
        list[#list + 1] = known
      end
      -- Views share their memory; the widest of them tells most.
      if bytes > known.bytes then
        known.tensor, known.bytes, known.origin, known.tag = t, bytes, origin, tags[t] or ''
      end
    end
  end
  table.sort(list, order.most_first('bytes', 'origin'))
  return list
end

return M
