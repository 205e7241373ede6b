--- The reference programs' values in tests/golden, and comparison with them.
--
-- Large tensors are thinned out: every STEP-th number in row-major order is stored, under the key `KEY@STEP:AxBxC`,
-- which includes the shape. STEP is prime, so that every channel, row and column is represented. tests/golden/cut.lua
-- creates the files.

local cr = require 'cr'
local t = require 'tests.support.tap'

local M = { folder = cr.root .. '/tests/golden/' }

local golden = {}
golden.__index = golden

--- Opens a file of tests/golden; the caller closes it.
--- @param name string 'networks', 'image', 'pipeline', 'mediapipe'
--- @param folder string? another folder, with the full outputs
function M.open(name, folder)
  local self = setmetatable({ file = cr.weights.open((folder or M.folder) .. name .. '.safetensors'), thinned = {} }, golden)
  for _, stored in ipairs(self.file.names) do
    local key, step, shape = stored:match '^(.*)@(%d+):(.*)$'
    if key then self.thinned[key] = { stored = stored, step = tonumber(step), shape = shape } end
  end
  return self
end

--- The key of a thinned tensor, for cut.lua.
function M.key(key, step, shape) return ('%s@%d:%s'):format(key, step, table.concat(shape, 'x')) end

--- Every step-th number of a tensor in row-major order, [n].
function M.thin(x, step)
  local n = x:numel()
  return x:contiguous():view(n):slice(1, 1, n, step)
end

function golden:has(key) return self.thinned[key] ~= nil or self.file:has(key) end

--- The numbers under a key: the whole tensor, or [n] if it is thinned.
function golden:get(key)
  local thin = self.thinned[key]
  return self.file:get(thin and thin.stored or key)
end

--- A result in the form of get(key): whole, or thinned. It is an error if its shape differs.
--- @param x Tensor whole, in the reference's order of dimensions
function golden:cut(x, key)
  local thin = self.thinned[key]
  if not thin then return x end
  local shape = table.concat(x.shape, 'x')
  if shape ~= thin.shape then error(('%s: the result is %s, the reference\'s %s'):format(key, shape, thin.shape), 2) end
  return M.thin(x, thin.step)
end

--- Relative L2 error of a result against the numbers under a key.
--- @param x Tensor whole, in the reference's order of dimensions
function golden:error(x, key) return t.relative_error(self:cut(x, key), self:get(key)) end

--- Checks that a result has the reference's shape and is within `tolerance` of it (relative L2).
function golden:near(x, key, tolerance) return t.near(self:cut(x, key), self:get(key), tolerance, key) end

function golden:close() self.file:close() end

return M
