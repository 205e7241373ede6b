--- Checks that small networks return finite values. Comparisons with NaN are false and ReLU maps NaN to 0, so damaged
--- weights would otherwise yield "no face", "nobody speaks" or a plausible confidence.

local cr = require 'cr'

local M = {}

local ADVICE = 'its weights are damaged, or belong to another network'

local FEW = 2 ^ 20 -- values that this thread checks itself: waking up many threads takes longer

-- The product of a value that is not finite with 0 is not 0.
local function are_finite(p, n)
  local a, b, c, d = 0, 0, 0, 0
  for i = 0, n - 4, 4 do
    a, b, c, d = a + p[i] * 0, b + p[i + 1] * 0, c + p[i + 2] * 0, d + p[i + 3] * 0
  end
  for i = n - n % 4, n - 1 do a = a + p[i] * 0 end
  return a + b + c + d == 0
end

--- Whether all elements of a tensor are finite.
--- @param x Tensor floats, one or more
--- @return boolean
function M.is(x)
  local n = x:numel()
  if x.device == 'cpu' and x.dtype == 'f32' and n <= FEW and x:is_contiguous() then return are_finite(x:pointer(), n) end
  local largest = cr.scope(function() return x:abs():max():item() end)
  return largest == largest and largest < math.huge
end

--- Returns a network's result if it is finite, else raises an error.
--- @param x Tensor floats, on the CPU
--- @param name string path of its weights
--- @return Tensor x
function M.result(x, name)
  if x:numel() > 0 and not M.is(x) then error(('%s produces values that are not finite: %s'):format(name, ADVICE), 0) end
  return x
end

-- The name of the first weight that is not finite, in the order of names; nil if all are finite.
local function first(tree, path, seen)
  if seen[tree] then return nil end
  seen[tree] = true
  local names = {}
  for name in pairs(tree) do
    if type(name) == 'string' or type(name) == 'number' then names[#names + 1] = name end
  end
  table.sort(names, function(a, b) return tostring(a) < tostring(b) end)
  for _, name in ipairs(names) do
    local value, here = rawget(tree, name), path == '' and tostring(name) or path .. '.' .. tostring(name)
    if cr.is_tensor(value) then
      local is_float = value.dtype == 'f32' or value.dtype == 'f16' or value.dtype == 'bf16' or value.dtype == 'f64'
      if is_float and value:numel() > 0 and not M.is(value) then return here end
    elseif type(value) == 'table' then
      local found = first(value, here, seen)
      if found then return found end
    end
  end
end

--- The name of the first tensor of a tree that is not finite, in the order of names.
--- @param tree table
--- @return string?
function M.first(tree) return first(tree, '', {}) end

--- Returns a network's weights if they are finite, else raises an error.
--- @param tree table
--- @param path string their file
--- @return table tree
function M.weights(tree, path)
  local name = M.first(tree)
  if name then error(('%s: tensor %s is not finite: %s'):format(path, name, ADVICE), 0) end
  return tree
end

return M
