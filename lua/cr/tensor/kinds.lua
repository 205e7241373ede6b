--- Kinds of arguments (cr/arguments.lua) that hold tensors.

local arguments = require 'cr.arguments'
local scope = require 'cr.tensor.scope'

local is_tensor = scope.is_tensor
local istype, tensor_type = require 'ffi'.istype, scope.type
local M = {}

--- A tensor that has not been freed.
M.alive = arguments.kind('a tensor', function(x)
  return istype(tensor_type, x) and (x.ended == 0 or x.c.storage ~= nil)
end, function(x)
  if is_tensor(x) then return scope.why_freed(x), true end
end)

--- A tensor for a result, which may be empty.
M.result = arguments.kind('a tensor', is_tensor)

M.operand = arguments.either('a tensor or a number', M.alive, arguments.number)

--- One dimension or several.
M.dimensions = arguments.either('a dimension or a list of them', arguments.integer,
  arguments.list('a list of dimensions', arguments.integer))

--- A generator of random numbers.
M.generator = arguments.kind('a generator, as cr.generator(seed) makes it,', function(v)
  return istype('cr_generator *', v) and v ~= nil
end)

--- A layer's weights. The layer itself checks what they contain.
M.layer = arguments.kind("a layer's weights, such as {weight = ...},", arguments.table.test)

--- A Quantized, which cr.quant makes from a tensor, and producers make for a layer.
M.quantized = arguments.kind('what quant.quantize returns', function(v)
  local scale = type(v) == 'table' and rawget(v, 'scale')
  return type(v) == 'table' and M.alive.test(rawget(v, 'codes')) and (scale == nil or M.alive.test(scale))
end)

return M
