--- Measures the peak of the sum of several sounds.

local audio = require 'cr.media.audio'
local tensor = require 'cr.tensor'

local M = {}

local PIECE = 2 ^ 16 -- samples of each channel

-- Opens sounds into `readers`, with the highest rate and the largest number of channels among them, as a writer does.
-- Returns the rate.
local function open_all(readers, paths)
  local rate, channels = 0, 0
  for _, path in ipairs(paths) do
    local own = audio.audio(path)
    rate, channels = math.max(rate, own.rate), math.max(channels, own.channels)
    own:close()
  end
  for i, path in ipairs(paths) do readers[i] = audio.audio(path, { rate = rate, channels = channels }) end
  return rate
end

-- Returns the sum of the next PIECE samples of all sounds, with silence after their ends, and whether any sound had
-- that many left.
local function next_sum(readers)
  local sum, more = tensor.zeros(PIECE, readers[1].channels), false
  for _, reader in ipairs(readers) do
    local piece = reader:read(PIECE)
    local n = piece:size(1)
    if n > 0 then
      local part = sum:narrow(1, 1, n)
      part:copy_(part + piece:view(n, reader.channels))
    end
    more = more or n == PIECE
  end
  return sum, more
end

--- Returns the peak, the largest absolute value, of the sum that a writer makes of these files. Full scale is 1.
--- @param paths string[]
--- @param options table? {start = 0, stop}: the range in seconds
--- @return number
function M.loudest(paths, options)
  local o, readers, most = options or {}, {}, 0
  local ok, reason = pcall(function()
    local rate, at, more = open_all(readers, paths), 0, true
    local first, last = math.floor((o.start or 0) * rate + 0.5), math.floor((o.stop or math.huge) * rate + 0.5)
    while more and at < last do
      more = tensor.scope(function()
        local sum, all = next_sum(readers)
        local low, high = math.max(first - at, 0), math.min(last - at, PIECE)
        if high > low then most = math.max(most, sum:narrow(1, low + 1, high - low):abs():max():item()) end
        return all
      end)
      at = at + PIECE
    end
  end)
  for _, reader in ipairs(readers) do reader:close() end
  if not ok then error(reason, 0) end
  return most
end

return M
