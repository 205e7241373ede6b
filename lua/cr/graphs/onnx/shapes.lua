--- ONNX's operators whose results depend on shapes alone. They are computed once for each set of input sizes.

local tensor = require 'cr.tensor'

local rows = {}

--- Makes a row whose result needs no tensors: value(n) returns it.
local function known(value)
  return { make = function(n)
    local t = value(n)
    return function() return t end
  end }
end

local function whole(list) return tensor.tensor(list, { dtype = 'i64', shape = { #list } }) end

rows.Shape = known(function(n)
  local shape = n:shape(1)
  local rank, first, last = #shape, n:attribute('start', 0), n:attribute 'end'
  first = first < 0 and first + rank or first
  last = not last and rank or last < 0 and last + rank or last
  local list = {}
  for k = math.max(first, 0), math.min(last, rank) - 1 do list[#list + 1] = shape[k + 1] end
  return whole(list)
end)

rows.Size = known(function(n)
  local count = 1
  for _, size in ipairs(n:shape(1)) do count = count * size end
  return tensor.tensor(count, { dtype = 'i64' })
end)

rows.Constant = known(function(n)
  local a = n.node.attributes
  if a.value then n:fail 'its value is not a tensor' end
  if a.value_float then return tensor.tensor(n:attribute 'value_float') end
  if a.value_int then return tensor.tensor(n:attribute 'value_int', { dtype = 'i64' }) end
  if a.value_floats then return tensor.tensor(n:list 'value_floats', { shape = { #n:list 'value_floats' } }) end
  if a.value_ints then return whole(n:list 'value_ints') end
  n:fail 'a constant that is not a tensor of numbers is not handled'
end)

rows.ConstantOfShape = known(function(n)
  local shape, a = n:room(n:numbers(1)), n.node.attributes.value
  local value = a and n.plan.net.take(a.tensor)
  local number = value and value:reshape(-1):to('f64'):tolist()[1] or 0
  return tensor.full(shape, number, { dtype = value and value.dtype or 'f32' })
end)

rows.Range = known(function(n)
  local first, limit, step = n:number(1), n:number(2), n:number(3)
  local count = math.max(math.ceil((limit - first) / step), 0)
  if step == 0 then n:fail 'a step is 0' end
  n:room { count }
  if count == 0 then return tensor.zeros({ 0 }, { dtype = n:dtype(1) }) end
  return tensor.arange(first, first + (count - 1) * step, step, { dtype = n:dtype(1) })
end)

--- Returns the target shape of Reshape: 0 keeps a size, unless `zeros` says that it means 0, and -1 is inferred.
local function target(n, from, wanted, zeros)
  local shape, known_, hole, count = {}, 1, nil, 1
  for _, size in ipairs(from) do count = count * size end
  for k, size in ipairs(wanted) do
    if size == 0 and not zeros then
      size = from[k] or n:fail('the shape keeps dimension %d, but the input has no such dimension', k)
    elseif size == -1 and not hole then
      hole, size = k, 1
    end
    shape[k] = size
    known_ = known_ * size
  end
  if hole then shape[hole] = known_ ~= 0 and count / known_ or 0 end
  n:room(shape)
  local total = 1
  for _, size in ipairs(shape) do total = total * size end
  if total ~= count or (hole and shape[hole] % 1 ~= 0) then
    n:fail('[%s] cannot become [%s]', table.concat(from, ' '), table.concat(wanted, ' '))
  end
  return shape
end

--- Makes the row of an operator that reshapes its input.
local function reshaped(shape_of)
  return { make = function(n)
    local shape = shape_of(n, n:shape(1))
    n:plain(1)
    return function(x) return x:reshape(shape, nil) end
  end }
end

rows.Reshape = reshaped(function(n, from)
  return target(n, from, n:list_or('shape', 2) or n:fail 'there is no shape', n:attribute('allowzero', 0) ~= 0)
end)

rows.Flatten = reshaped(function(n, from)
  local axis = n:attribute('axis', 1)
  if axis < 0 then axis = axis + #from end
  local a, b = 1, 1
  for k, size in ipairs(from) do
    if k <= axis then a = a * size else b = b * size end
  end
  return { a, b }
end)

rows.Squeeze = reshaped(function(n, from)
  local axes, drop, shape = n:list_or('axes', 2), {}, {}
  for _, a in ipairs(axes or {}) do drop[n:axis(a, #from) + 1] = true end
  for k, size in ipairs(from) do
    if drop[k] and size ~= 1 then n:fail('axis %d has the size %d', k - 1, size) end
    if axes and not drop[k] or not axes and size ~= 1 then shape[#shape + 1] = size end
  end
  return shape
end)

rows.Unsqueeze = reshaped(function(n, from)
  local axes = n:list_or('axes', 2) or n:fail 'there are no axes'
  local rank, new, shape, k = #from + #axes, {}, {}, 1
  for _, a in ipairs(axes) do new[n:axis(a, rank)] = true end
  for axis = 0, rank - 1 do
    if new[axis] then
      shape[#shape + 1] = 1
    else
      shape[#shape + 1] = from[k] or n:fail 'an axis is named twice'
      k = k + 1
    end
  end
  return n:room(shape)
end)

rows.Expand = { make = function(n)
  local from, wanted = n:shape(1), n:numbers(2)
  local rank = math.max(#from, #wanted)
  local shape, lead = {}, {}
  for k = 1, rank do
    local a, b = from[k - rank + #from] or 1, wanted[k - rank + #wanted] or 1
    if a ~= b and a ~= 1 and b ~= 1 then n:fail('[%s] cannot become [%s]', table.concat(from, ' '), table.concat(wanted, ' ')) end
    shape[k], lead[k] = a == 1 and b or a, a
  end
  n:room(shape)
  n:plain(1)
  return function(x) return x:reshape(lead, nil):expand(shape, nil):contiguous() end
end }

return rows
