--- NaNs of every sign and payload, as files may contain them: LuaJIT encodes the types of its values in the bits of
--- NaNs, so none of them may become a Lua value unchanged.

local t = require 'tests.support.tap'
local cr = require 'cr'
local ffi = require 'ffi'
local child = require 'tests.support.child'

-- Element 1 is a number, the others are NaN.
local bits = {
  f32 = { 'uint32_t', 0x3fc00000, 0xffffffff, 0xffc00001, 0x7fffffff, 0xff800001, 0x7f800001, 0xfffe1234 },
  f16 = { 'uint16_t', 0x3e00, 0xffff, 0xfe01, 0x7fff, 0xfc01, 0x7c01, 0xfe00 },
  bf16 = { 'uint16_t', 0x3fc0, 0xffff, 0xffc1, 0x7fff, 0xff81, 0x7f81, 0xffc0 },
  f64 = { 'uint64_t', 0x3ff8000000000000ULL, -1ULL, 0xfff8000000000001ULL, 0x7fffffffffffffffULL,
    0xfff0000000000001ULL, 0x7ff0000000000001ULL, 0xfffe123456789abcULL },
}

local function tensor_of(dtype)
  local list = bits[dtype]
  local x = cr.empty(#list - 1, { dtype = dtype })
  local p = ffi.cast(list[1] .. ' *', x:pointer())
  for i = 2, #list do p[i - 2] = list[i] end
  return x
end

local function is_nan(v) return type(v) == 'number' and v ~= v end

for dtype, list in pairs(bits) do
  local n = #list - 1
  t.test(dtype .. ': item, tolist, print', function()
    local x = tensor_of(dtype)
    for _ = 1, 100 do -- often enough to be compiled
      local values = x:tolist()
      t.equal(values[1], 1.5)
      for i = 2, n do
        t.ok(is_nan(values[i]), 'tolist ' .. i)
        t.ok(is_nan(x:select(1, i):item()), 'item ' .. i)
        t.ok(is_nan(x:select(1, i):max():item()), 'max ' .. i)
      end
    end
    local text = tostring(x)
    t.ok(text:find(('(%d nan)'):format(n - 1), 1, true), text)
    local _, shown = text:match '\n(.*)':gsub('nan', '')
    t.equal(shown, n - 1, text)
    t.ok(text:find('1.50', 1, true), text)
    t.ok(tostring(x:select(1, 2)):find '\n +nan$', tostring(x:select(1, 2)))
  end)

  t.test(dtype .. ': from a file', function()
    local path = child.file('nan.safetensors', '')
    cr.save(path, { x = tensor_of(dtype) })
    local x = cr.load(path).x
    t.equal(x.dtype, dtype)
    for i, v in ipairs(x:tolist()) do t.ok(i == 1 and v == 1.5 or is_nan(v), i) end
    t.ok(tostring(x):find 'nan')
    local r = child.run { 'weights', path, '--json' }
    t.equal(r.code, 0, r.err)
    local statistics = require 'cr.json'.decode(r.out).tensors.x
    t.equal(statistics.shape[1], n)
    t.ok(type(statistics.mean) ~= 'number' and type(statistics.min) ~= 'number', r.out)
  end)
end

child.clean()
t.done()
