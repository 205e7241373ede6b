--- What all files of tensor/ use: LuaJIT's FFI, C and its errors, tensors, scopes, and kinds of arguments.

local ffi = require 'ffi'
local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local kinds = require 'cr.tensor.kinds'
local scope = require 'cr.tensor.scope'

return {
  ffi = ffi, base = base, C = base.C, fail = base.fail, raise = base.raise,
  arguments = arguments, maybe = arguments.maybe, kinds = kinds, alive = kinds.alive,
  scope = scope, new = scope.new, filled = scope.filled, is_tensor = scope.is_tensor,
  shape_type = ffi.typeof 'int32_t[8]',
}
