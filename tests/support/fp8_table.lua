--- The definition of the format, independent of the code under test: the values of E4M3, and many numbers with the
--- codes to which they round (to nearest, ties to even).

local M = {}

--- The values of codes 0 to 127; 127 is NaN.
M.numbers = {}
for code = 0, 126 do
  local exponent, mantissa = math.floor(code / 8), code % 8
  M.numbers[code] = exponent == 0 and mantissa / 8 * 2 ^ -6 or (1 + mantissa / 8) * 2 ^ (exponent - 7)
end

-- The nearest code, found by exhaustive search.
local function nearest(x)
  local best, distance = 126, math.huge
  for code = 0, 126 do
    local d = math.abs(M.numbers[code] - x)
    if d < distance or (d == distance and code % 2 == 0) then best, distance = code, d end
  end
  return best
end

--- All finite f16 numbers, and for every pair of neighbouring codes the number halfway between them with its
--- neighbours in float32, each with both signs.
--- @return number[] values
--- @return integer[] codes
function M.cases()
  local values, codes = {}, {}
  local function add(x)
    local code = nearest(x)
    values[#values + 1], codes[#codes + 1] = x, code
    values[#values + 1], codes[#codes + 1] = -x, code + 128
  end
  for exponent = 0, 30 do
    for mantissa = 0, 1023 do
      add(exponent == 0 and mantissa * 2 ^ -24 or (1 + mantissa / 1024) * 2 ^ (exponent - 15))
    end
  end
  for code = 0, 125 do
    local middle = (M.numbers[code] + M.numbers[code + 1]) / 2
    local unit = 2 ^ (select(2, math.frexp(middle)) - 24)
    add(middle)
    add(middle + unit)
    add(middle - unit)
  end
  return values, codes
end

return M
