--- A matrix as whole numbers and scales, rounded to the nearest.
--
-- A scale belongs to a row, or to a group of neighbours in it; the last group of a row may be shorter. It reaches as far
-- as loses least in squares: what few numbers lie beyond it are cut off, where that serves all others.

local arguments = require 'cr.arguments'
local cr = require 'cr'

local M = {}

--- The greatest whole number of each format.
M.most = { int8 = 127, int4 = 7 }

--- Neighbours that share a scale of int4.
M.GROUP = 64

-- Shares of the largest magnitude that a scale may reach to.
local SHARES = { 1, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7 }

-- Scales [R 1] of the rows of x [R n]; importance [1 n] or nil.
local function scales(x, most, importance)
  local largest = x:abs():max(2, true):maximum(1e-30)
  local least, scale
  for _, share in ipairs(SHARES) do
    -- In a scope of its own: the temporaries are as large as the matrix.
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

--- The groups of a row: calls fn(number, first, length) for each.
--- @param K integer numbers of a row
--- @param group integer? in a group; all
--- @param fn fun(g: integer, first: integer, n: integer) first counts from 1
function M.each_group(K, group, fn)
  group = group or K
  for g = 1, math.ceil(K / group) do
    local first = (g - 1) * group + 1
    fn(g, first, math.min(group, K - first + 1))
  end
end

--- Codes of a matrix, and their scales.
--- @param w Tensor f32 [N K]
--- @param most integer the greatest code, 127 or 7
--- @param options table? {group = numbers of a row that share a scale (all of it), importance = Tensor f32 [K]: how much
---   an error counts there (the mean square of what is multiplied with it)}
--- @return Tensor codes f32 [N K], whole numbers
--- @return Tensor scale f32 [N G], a scale for each group
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

--- The numbers that codes and scales stand for.
--- @param codes Tensor [N K]
--- @param scale Tensor f32 [N G]
--- @param group integer? as `nearest` was given it
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
