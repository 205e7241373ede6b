--- The inverse of the regularized incomplete beta function, for beta-spread noise levels.

local ffi = require 'ffi'

ffi.cdef 'double lgamma(double);'

local M = {}

-- Evaluates its continued fraction (NIST's handbook, 8.17.22) by Lentz's method, which converges fast for x < (a + 1)
-- / (a + b + 2).
local function fraction(x, a, b)
  local tiny = 1e-300
  local c, d = 1, 1 - (a + b) * x / (a + 1)
  if math.abs(d) < tiny then d = tiny end
  d = 1 / d
  local value = d
  for m = 1, 500 do
    local even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
    local odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
    local change
    for _, k in ipairs { even, odd } do
      d = 1 + k * d
      if math.abs(d) < tiny then d = tiny end
      d = 1 / d
      c = 1 + k / c
      if math.abs(c) < tiny then c = tiny end
      change = c * d
      value = value * change
    end
    if math.abs(change - 1) < 1e-16 then break end
  end
  return value
end

--- I_x(a, b): the probability that a beta-distributed number is below x.
function M.value(x, a, b)
  if x <= 0 then return 0 elseif x >= 1 then return 1 end
  local C = ffi.C
  local front = math.exp(C.lgamma(a + b) - C.lgamma(a) - C.lgamma(b) + a * math.log(x) + b * math.log(1 - x))
  if x < (a + 1) / (a + b + 2) then return front * fraction(x, a, b) / a end
  return 1 - front * fraction(1 - x, b, a) / b
end

--- The x with I_x(a, b) = p.
function M.inverse(p, a, b)
  if p <= 0 then return 0 elseif p >= 1 then return 1 end
  if p > 0.5 then return 1 - M.inverse(1 - p, b, a) end -- the smaller tail keeps its precision
  local low, high = 0, 1
  for _ = 1, 1100 do -- enough halvings to reach the smallest positive number
    local middle = (low + high) / 2
    if middle <= low or middle >= high then break end
    if M.value(middle, a, b) < p then low = middle else high = middle end
  end
  return (low + high) / 2
end

return M
