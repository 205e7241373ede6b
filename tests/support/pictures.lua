--- Synthetic images, and the distance of a result from a formula.

local cr = require 'cr'
local t = require 'tests.support.tap'

local M = {}

--- Random u8 or f32 [h w c].
function M.picture(name, h, w, c, dtype)
  local x = t.formula('input:' .. name, { h, w, c }, { kind = 'raw' })
  if dtype ~= 'u8' then return x end
  return cr.scope(function() return (x * 128 + 128):to 'u8' end)
end

--- The value of an image at (y, x, c), all from 0.
function M.reader(x)
  local p, w, c = x:pointer(), x:size(2), x:size(3)
  return function(y, i, k) return p[(y * w + i) * c + k] end
end

--- Clamps a number.
function M.clamp(v, low, high) return math.max(low, math.min(high, v)) end

--- The largest difference of x [h w c] from fn(y, x, c).
function M.worst(x, fn)
  local at, most = M.reader(x), 0
  for y = 0, x:size(1) - 1 do
    for i = 0, x:size(2) - 1 do
      for c = 0, x:size(3) - 1 do
        local d = math.abs(at(y, i, c) - fn(y, i, c))
        if d > most or d ~= d then most = d end
      end
    end
  end
  return most
end

return M
