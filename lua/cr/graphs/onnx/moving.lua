--- ONNX's operators that move elements.

local nn = require 'cr.nn'
local node = require 'cr.graphs.node'
local tensor = require 'cr.tensor'

local rows = {}

local C = require 'cr.ffi'.C

--- Returns the elements of dimension `dim` with the indices `index` (i64 [T], from 1, or negative from the end).
local function take(x, dim, index)
  local out = tensor.new()
  return tensor.filled(out, C.cr_gather(out.c, x.c, dim - 1, index.c))
end

--- Converts ONNX's indices, which count from 0 or are negative, to those of `take`.
local function places_of(list)
  local places = {}
  for i, k in ipairs(list) do places[i] = k < 0 and k or k + 1 end
  return tensor.tensor(places, { dtype = 'i64', shape = { #places } })
end

rows.Transpose = { make = function(n)
  local rank = n:rank(1)
  local perm = n:list 'perm'
  if not perm then
    perm = {}
    for k = 1, rank do perm[k] = rank - k end
  end
  if #perm ~= rank then n:fail('perm has %d numbers for %d dimensions', #perm, rank) end
  local last = n:any(1)
  local order = {}
  for k, a in ipairs(perm) do order[k] = node.dim(n:axis(a, rank), rank, last) end
  n.lasts = false
  if rank < 2 then return function(x) return x end end
  return function(x) return x:permute(order, nil) end
end }

rows.Concat = { make = function(n)
  local rank, last, list = n:rank(1), false, {}
  local axis = n:axis(n:attribute('axis', 1), rank)
  for i = 1, #n.inputs do
    list[i] = i
    if n:rank(i) ~= rank then n:fail('input %d has %d dimensions, and the first has %d', i, n:rank(i), rank) end
    last = last or n:is_last(i)
  end
  for i = 1, #list do n:aligned(i, rank, last) end
  n.lasts = last
  local dim = node.dim(axis, rank, last)
  return function(...)
    local parts = { ... }
    if #parts == 1 then return parts[1] end
    return tensor.cat(parts, dim)
  end
end }

rows.Split = { make = function(n)
  local rank, shape, count = n:rank(1), n:shape(1), #n.node.outputs
  local axis = n:axis(n:attribute('axis', 0), rank)
  local size = shape[axis + 1]
  local sizes = n:list_or('split', 2)
  if not sizes then
    local wanted = n:attribute('num_outputs', count)
    local part = math.ceil(size / wanted)
    sizes = {}
    for i = 1, wanted do sizes[i] = math.max(math.min(part, size - (i - 1) * part), 0) end
  end
  local total = 0
  for _, part in ipairs(sizes) do total = total + part end
  if total ~= size or #sizes ~= count then n:fail('[%s] cannot be split into [%s]', table.concat(shape, ' '), table.concat(sizes, ' ')) end
  local dim = node.dim(axis, rank, n:any(1))
  return function(x)
    local parts, first = {}, 1
    for i, part in ipairs(sizes) do
      parts[i] = x:narrow(dim, first, part)
      first = first + part
    end
    return unpack(parts)
  end
end }

rows.Slice = { make = function(n)
  local rank, shape = n:rank(1), n:shape(1)
  local starts, ends = n:list_or('starts', 2), n:list_or('ends', 3)
  local axes, steps = n:list_or('axes', 4), n:numbers(5)
  if not starts or not ends or #starts ~= #ends then n:fail 'starts and ends are missing or differ in length' end
  local last = n:any(1)
  local cuts = {}
  for i, first in ipairs(starts) do
    local axis = n:axis(axes and axes[i] or i - 1, rank)
    local size, step, limit = shape[axis + 1], steps and steps[i] or 1, ends[i]
    if step == 0 then n:fail 'a step is 0' end
    if first < 0 then first = first + size end
    if limit < 0 then limit = limit + size end
    local cut = { dim = node.dim(axis, rank, last), step = step }
    if step > 0 then
      cut.first, cut.last = math.min(math.max(first, 0), size), math.min(math.max(limit, 0), size)
      cut.last = math.max(cut.last, cut.first)
    else
      local places = {}
      for k = math.min(math.max(first, -1), size - 1), math.min(math.max(limit, -1), size - 1) + 1, step do places[#places + 1] = k end
      n:sized('places', function() return places_of(places) end)
      cut.turned = true
    end
    cuts[i] = cut
  end
  return function(x, ...)
    local k = 0
    for _, cut in ipairs(cuts) do
      if cut.turned then
        k = k + 1
        x = take(x, cut.dim, (select(k, ...)))
      else
        x = x:slice(cut.dim, cut.first + 1, cut.last, cut.step)
      end
    end
    return x
  end
end }

rows.Gather = { make = function(n)
  local rank, shape, places = n:rank(1), n:shape(1), n:shape(2)
  local axis = n:axis(n:attribute('axis', 0), rank)
  local size, result = shape[axis + 1], {}
  for k = 1, axis do result[#result + 1] = shape[k] end
  for _, count in ipairs(places) do result[#result + 1] = count end
  for k = axis + 2, rank do result[#result + 1] = shape[k] end
  n:room(result)
  n:plain(1)
  if n:is_constant(2) then
    local list = n:numbers(2)
    for _, k in ipairs(list) do
      if k < -size or k >= size then n:fail('there is no element %d of %d', k, size) end
    end
    if #list == 1 then
      local place = list[1] % size + 1
      return function(x) return x:narrow(axis + 1, place, 1):reshape(result, nil) end
    end
    n:sized('places', function() return places_of(list) end)
  else
    n:plain(2)
  end
  local computed = not n:is_constant(2)
  return function(x, index)
    index = index:reshape(-1)
    if computed then index = tensor.where(index:lt(0), index, index + 1) end
    return take(x, axis + 1, index):reshape(result, nil)
  end
end }

rows.Tile = { make = function(n)
  local repeats, shape = n:numbers(2), n:shape(1)
  if #repeats ~= #shape then n:fail('%d repeats for %d dimensions', #repeats, #shape) end
  for k, count in ipairs(repeats) do shape[k] = shape[k] * count end
  n:room(shape)
  n:plain(1)
  return function(x)
    for dim, count in ipairs(repeats) do
      local parts = {}
      for i = 1, count do parts[i] = x end
      if count == 0 then x = x:narrow(dim, 1, 0) elseif count > 1 then x = tensor.cat(parts, dim) end
    end
    return x
  end
end }

-- The index from which an element beyond the border is taken, by mode.
local BEYOND = {
  edge = function(k, size) return math.min(math.max(k, 0), size - 1) end,
  wrap = function(k, size) return k % size end,
  reflect = function(k, size)
    if size == 1 then return 0 end
    k = k % (2 * (size - 1))
    return k < size and k or 2 * (size - 1) - k
  end,
}

rows.Pad = { make = function(n)
  local rank, shape = n:rank(1), n:shape(1)
  local pads, axes = n:list_or('pads', 2), n:numbers(4)
  local mode, value = n:text('mode', 'constant'), n:attribute('value', 0)
  if n:has(3) then value = n:number(3) end
  if mode ~= 'constant' and not BEYOND[mode] then n:fail('mode %s is not handled', mode) end
  if not axes then
    axes = {}
    for k = 1, rank do axes[k] = k - 1 end
  end
  if not pads or #pads ~= 2 * #axes then n:fail('pads has %d numbers for %d axes', pads and #pads or 0, #axes) end
  local last = n:any(1)
  local before, after, cuts, fetched = {}, {}, {}, {}
  for k = 1, rank do before[k], after[k] = 0, 0 end
  local result = { unpack(shape) }
  for i, a in ipairs(axes) do
    local axis = n:axis(a, rank)
    local dim, size, low, high = node.dim(axis, rank, last), shape[axis + 1], pads[i], pads[i + #axes]
    if size + low + high < 0 then n:fail('pads of %d and %d leave nothing of %d', low, high, size) end
    result[axis + 1] = size + math.max(low, 0) + math.max(high, 0)
    n:room(result)
    if mode == 'constant' then
      before[dim], after[dim] = math.max(low, 0), math.max(high, 0)
      if low < 0 or high < 0 then cuts[#cuts + 1] = { dim, 1 - math.min(low, 0), size + math.min(high, 0) } end
    elseif low ~= 0 or high ~= 0 then
      local places = {}
      for k = -low, size + high - 1 do places[#places + 1] = BEYOND[mode](k, size) end
      n:sized('places', function() return places_of(places) end)
      fetched[#fetched + 1] = dim
    end
  end
  return function(x, ...)
    if mode ~= 'constant' then
      for k, dim in ipairs(fetched) do x = take(x, dim, (select(k, ...))) end
      return x
    end
    for _, cut in ipairs(cuts) do x = x:slice(cut[1], cut[2], cut[3]) end
    return nn.pad(x, before, after, value)
  end
end }

rows.DepthToSpace = { make = function(n)
  local b, crd = n:attribute 'blocksize', n:text('mode', 'DCR') == 'CRD'
  local shape = n:shape(1)
  if not b or #shape ~= 4 or shape[2] % (b * b) ~= 0 then n:fail('[%s] has no channels for such blocks', table.concat(shape, ' ')) end
  local channels = shape[2] / (b * b)
  n:last(1)
  return function(x)
    local s = x.shape
    local y = crd and x:reshape(s[1], s[2], s[3], channels, b, b):permute(1, 2, 5, 3, 6, 4) or
      x:reshape(s[1], s[2], s[3], b, b, channels):permute(1, 2, 4, 3, 5, 6)
    return y:contiguous():view(s[1], s[2] * b, s[3] * b, channels)
  end
end }

rows.SpaceToDepth = { make = function(n)
  local b, shape = n:attribute 'blocksize', n:shape(1)
  if not b or #shape ~= 4 or shape[3] % b ~= 0 or shape[4] % b ~= 0 then
    n:fail('[%s] cannot be gathered in blocks', table.concat(shape, ' '))
  end
  n:last(1)
  return function(x)
    local s = x.shape
    local h, w = s[2] / b, s[3] / b
    return x:reshape(s[1], h, b, w, b, s[4]):permute(1, 2, 4, 3, 5, 6):contiguous():view(s[1], h, w, b * b * s[4])
  end
end }

return rows
