--- Weights and inputs computed from a tensor's name by a formula: a network of any size without a file, equal on
--- every machine and in every language. Tests, benchmarks and the demonstration use them. Such a network does the
--- full computation, but is untrained.
--
-- v(name, salt, i) is the top 24 bits of splitmix64(fnv1a64(name) xor splitmix64(salt) + i), mapped
-- to [-1, 1). Steele et al. 2014 (splitmix), Fowler, Noll & Vo (fnv1a).

local cr = require 'cr'
local ffi = require 'ffi'

local formula = {}

local function splitmix64(x)
  x = x + 0x9E3779B97F4A7C15ULL
  x = bit.bxor(x, bit.rshift(x, 30)) * 0xBF58476D1CE4E5B9ULL
  x = bit.bxor(x, bit.rshift(x, 27)) * 0x94D049BB133111EBULL
  return bit.bxor(x, bit.rshift(x, 31))
end

local function fnv1a64(s)
  local h = 0xcbf29ce484222325ULL
  for i = 1, #s do h = bit.bxor(h, s:byte(i)) * 0x100000001b3ULL end
  return h
end

--- Scale and shift of a checkpoint weight: variance-preserving matrices, norms near one, small biases.
local function weight_scale(name, shape, n)
  if #shape >= 2 then return math.sqrt(3 / (n / shape[1])), 0 end
  if name:find 'weight$' then return 0.1, 1 end
  return 0.1, 0
end

--- Creates a tensor by the formula.
--- @param name string
--- @param shape integer[] as in a checkpoint (PyTorch's order)
--- @param options table? {kind = 'input' (v * sqrt 3), 'weight' or 'raw' (v), salt = 1, dtype = 'f32'|'f64'}
--- @return Tensor
function formula.tensor(name, shape, options)
  options = options or {}
  local kind = options.kind or 'input'
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  local scale, shift = 1, 0
  if kind == 'input' then
    scale = math.sqrt(3)
  elseif kind == 'weight' then
    scale, shift = weight_scale(name, shape, n)
  elseif kind ~= 'raw' then
    error("formula: unknown kind '" .. tostring(kind) .. "': input, weight or raw", 2)
  end
  local h = bit.bxor(fnv1a64(name), splitmix64(ffi.new('uint64_t', options.salt or 1)))
  local out = cr.empty(shape, { dtype = options.dtype == 'f64' and 'f64' or 'f32' })
  local p = out:pointer()
  for i = 0, n - 1 do
    local z = splitmix64(h + ffi.cast('uint64_t', i))
    p[i] = shift + scale * (tonumber(bit.rshift(z, 40)) * 2 ^ -23 - 1)
  end
  return out
end

--- All tensors of a list of {name, shape} as checkpoint weights.
--- @param expected table[] {name =, shape =} each, or {name, shape}
--- @return table<string, Tensor>
function formula.weights(expected)
  local all = {}
  for _, e in ipairs(expected) do
    local name, shape = e.name or e[1], e.shape or e[2]
    all[name] = formula.tensor(name, shape, { kind = 'weight' })
  end
  return all
end

return formula
