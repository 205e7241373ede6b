--- Numbers of small networks that are no numbers. A comparison with a nan is false and rectifiers make zeros of it, so
--- that damaged weights would give "no face", "nobody speaks" or a confidence like any other.

local cr = require 'cr'

local M = {}

local ADVICE = 'its weights are damaged, or not those of such a network'

--- Whether all of a tensor's numbers are finite.
--- @param x Tensor floats, one or more
--- @return boolean
function M.is(x)
  local largest = cr.scope(function() return x:abs():max():item() end)
  return largest == largest and largest < math.huge
end

--- What a network says, if it is numbers.
--- @param x Tensor floats, on the CPU
--- @param name string the file of its weights
--- @return Tensor x
function M.result(x, name)
  if x:numel() > 0 and not M.is(x) then error(('%s gives numbers that are not finite: %s'):format(name, ADVICE), 0) end
  return x
end

-- The name of the first weight that is not finite, in the order of names; nil: all are.
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

--- A network's weights, if they are numbers.
--- @param tree table
--- @param path string their file
--- @return table tree
function M.weights(tree, path)
  local name = M.first(tree)
  if name then error(('%s: tensor %s is not finite: %s'):format(path, name, ADVICE), 0) end
  return tree
end

return M
