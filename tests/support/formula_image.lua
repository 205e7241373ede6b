--- The image of the golden values by formula (smooth waves with a little noise), and comparison of u8 images.

local cr = require 'cr'
local formula = require 'tests.support.formula'

local M = {}

--- @param name string
--- @param h integer
--- @param w integer
--- @return Tensor u8 [h w 3]
function M.image(name, h, w)
  local out = cr.empty(h, w, 3, { dtype = 'u8' })
  cr.scope(function()
    local a = formula.tensor('input:' .. name .. '.waves', { 36 }, { kind = 'raw' }):pointer()
    local noise = formula.tensor('input:' .. name .. '.noise', { h * w * 3 }, { kind = 'raw' })
    local n, p = noise:pointer(), out:pointer()
    local pi = math.pi
    for c = 0, 2 do
      for i = 0, h - 1 do
        for j = 0, w - 1 do
          local sum = 0
          for k = 0, 2 do
            local o = (c * 3 + k) * 4
            sum = sum + (0.6 + 0.4 * a[o + 3]) *
              math.sin(2 * pi * (4 * a[o] * (j / w) + 4 * a[o + 1] * (i / h)) + pi * a[o + 2])
          end
          local at = (i * w + j) * 3 + c
          local v = math.floor(127.5 + 38 * sum + 6 * n[at] + 0.5)
          p[at] = math.max(0, math.min(255, v))
        end
      end
    end
  end)
  return out
end

--- The share of values that differ by more than `tolerance`, and the largest difference.
--- @param a Tensor u8
--- @param b Tensor u8 of the same shape
--- @param tolerance integer? 0
function M.compare(a, b, tolerance)
  tolerance = tolerance or 0
  return cr.scope(function()
    a, b = a:contiguous(), b:contiguous()
    local n, p, q = a:numel(), a:pointer(), b:pointer()
    local unequal, most = 0, 0
    for i = 0, n - 1 do
      local d = math.abs(p[i] - q[i])
      if d > tolerance then unequal = unequal + 1 end
      if d > most then most = d end
    end
    return unequal / n, most
  end)
end

return M
