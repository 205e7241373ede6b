--- Rounds a matrix to integers with scales.
--
-- A scale belongs to a row, or to a group of neighbouring elements in it; the last group of a row may be shorter.
-- Each scale minimizes the squared error: large outliers are clipped if that improves the rest.

local arguments = require 'cr.arguments'
local cr = require 'cr'

local M = {}

--- The largest integer of each format.
M.most = { int8 = 127, int4 = 7 }

--- Number of neighbouring elements that share a scale of int4.
M.GROUP = 64

-- Candidate clipping ranges, as shares of the largest magnitude.
local SHARES = { 1, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7 }

-- The scales [R 1] for the rows of x [R n]; importance [1 n] or nil.
local function scales(x, most, importance)
  local largest = x:abs():max(2, true):maximum(1e-30)
  local least, scale
  for _, share in ipairs(SHARES) do
    -- In its own scope, because the temporaries are as large as the matrix.
    scale, least = cr.scope(function()
      local s = largest * (share / most)
      local off = (x - (x / s):round():clamp(-most, most) * s):square()
      if importance then off = off * importance end
      off = off:sum(2, true)
      if not least then return s, off end
      return cr.where(off:lt(least), s, scale), off:minimum(least)
    end)
  end
  return scale
end

--- Calls fn(number, first, length) for each group of a row.
--- @param K integer elements per row
--- @param group integer? elements per group (all)
--- @param fn fun(g: integer, first: integer, n: integer) first counts from 1
function M.each_group(K, group, fn)
  group = group or K
  for g = 1, math.ceil(K / group) do
    local first = (g - 1) * group + 1
    fn(g, first, math.min(group, K - first + 1))
  end
end

--- Rounds a matrix; returns the integers and their scales.
--- @param w Tensor f32 [N K]
--- @param most integer the largest integer, 127 or 7
--- @param options table? {group = elements of a row that share a scale (all of it), importance = Tensor f32 [K]: the weight of an
---   error in each column (the mean square of its inputs)}
--- @return Tensor codes f32 [N K], integers
--- @return Tensor scale f32 [N G], one scale per group
function M.nearest(w, most, options)
  local o = options or {}
  return cr.scope(function()
    local codes, list = {}, {}
    M.each_group(w:size(2), o.group, function(g, first, n)
      local x = w:narrow(2, first, n):contiguous()
      list[g] = scales(x, most, o.importance and o.importance:narrow(1, first, n))
      codes[g] = (x / list[g]):round():clamp(-most, most)
    end)
    return cr.cat(codes, 2), cr.cat(list, 2)
  end)
end

--- Multiplies integers by their scales.
--- @param codes Tensor [N K]
--- @param scale Tensor f32 [N G]
--- @param group integer? as given to `nearest`
--- @return Tensor f32 [N K]
function M.numbers(codes, scale, group)
  return cr.scope(function()
    local parts = {}
    M.each_group(codes:size(2), group, function(g, first, n)
      parts[g] = codes:narrow(2, first, n):to 'f32' * scale:narrow(2, g, 1)
    end)
    return cr.cat(parts, 2)
  end)
end

local matrix, maybe, count = cr.kinds.alive, arguments.maybe, arguments.positive
return arguments.guard('rounding.', M, {
  each_group = { count, maybe(count), arguments.callable }, numbers = { matrix, matrix, maybe(count) },
  nearest = { matrix, count, maybe(arguments.options { group = maybe(count), importance = maybe(matrix) }) },
})
