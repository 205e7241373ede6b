--- Records which line made each tensor, for :mem. This is done only at the prompt, because it takes a few
--- microseconds for each operation.

local tensor = require 'cr.tensor'
local memory = require 'cr.tensor.memory'
local order = require 'cr.order'
local run = require 'cr.tools.prompt.run'

local M = {}

local origins = setmetatable({}, { __mode = 'k' }) -- tensor -> 'models/networks/vae.lua:120', ...
local tags = setmetatable({}, { __mode = 'k' })    -- tensor -> tag of its memory

--- Starts to record where tensors are made.
function M.start()
  tensor.on_new(function(t)
    origins[t] = run.places(2, 1)[1] or 'prompt' -- a tail call leaves no line
    local tag = memory.tag()
    if tag ~= '' then tags[t] = tag end
  end)
end

--- Returns live tensors, one for each storage, the largest first.
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
      -- Views share a storage; the largest view represents it.
      if bytes > known.bytes then
        known.tensor, known.bytes, known.origin, known.tag = t, bytes, origin, tags[t] or ''
      end
    end
  end
  table.sort(list, order.most_first('bytes', 'origin'))
  return list
end

return M
