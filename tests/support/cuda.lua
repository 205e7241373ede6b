--- What the tests of CUDA operations share: the GPU, and tolerances.
--
-- The reference is the CPU operation in f32 (or f64) on exactly the numbers that the GPU gets (f16 and bf16 inputs
-- are widened first), so that only the GPU's arithmetic differs. Inputs are random in every run; a failure's text
-- contains the seed, and CR_SEED=N repeats it.

local cr = require 'cr'
local t = require 'tests.support.tap'

local M = { device = 'cuda:0' }

local why
local function card()
  if why == nil then
    local ok, err = pcall(function() cr.empty(1, { device = M.device }):free() end)
    why = not ok and tostring(err):gsub('^.-: ', '') or false
  end
  return why == false
end

--- A test that needs a GPU; it is skipped without one.
function M.test(name, fn)
  t.test(name, function()
    if not card() then t.skip(why) end
    fn()
  end)
end

--- A test of cuBLAS or cuDNN, or of a size that our kernels do not support without them.
function M.library_test(name, fn)
  M.test(name, function()
    if M.slow then t.skip 'CR_LIBRARIES=0' end
    fn()
  end)
end

--- Like M.test, for tests of kernels that run only on Hopper. On other GPUs the operation uses a library, which is
--- correct, but does not test our kernels.
function M.on_hopper(test)
  return function(name, fn)
    test(name, function()
      if cr.cuda.info(M.device).capability:match '^%d+' ~= '9' then t.skip 'not a Hopper' end
      fn()
    end)
  end
end

--- Whether a slow tool is searching for races in our own kernels.
M.slow = os.getenv 'CR_LIBRARIES' == '0'

--- The cases to run: all, or under a slow tool the first, the middle and the last one, because races depend on the
--- kernel and on partial tiles.
function M.cases(list)
  if not M.slow or #list <= 3 then return list end
  return { list[1], list[math.ceil(#list / 2)], list[#list] }
end

M.seed = tonumber(os.getenv 'CR_SEED') or os.time() % 1000003
math.randomseed(M.seed)
local generator = cr.generator(M.seed, 'philox')

--- Standard normal numbers on the CPU, rounded to `dtype` but stored as f32.
--- @param shape integer[]
--- @param dtype string? 'f32'
function M.randn(shape, dtype, scale)
  return cr.scope(function()
    local x = cr.randn(shape, { generator = generator })
    if scale then x = x * scale end
    return x:to(dtype or 'f32'):to 'f32'
  end)
end

--- The same as f64, for references; f64 inputs are also rounded to f32.
function M.randn64(shape, dtype, scale)
  return cr.scope(function() return M.randn(shape, dtype ~= 'f64' and dtype or nil, scale):to 'f64' end)
end

--- Integers as f32 on the CPU, whose products and sums are exact.
--- @param ... integer sizes
function M.whole(...)
  local shape = { ... }
  return cr.scope(function() return M.randn(shape, 'f32', 1.5):round() end)
end

--- A tensor filled with a value that no operation returns, so that unwritten elements are detected.
function M.poisoned(shape, dtype)
  return cr.full(shape, dtype == 'u8' and 170 or 0 / 0, { dtype = dtype, device = M.device })
end

--- The same numbers on the GPU in `dtype`.
function M.up(x, dtype) return cr.scope(function() return x:to(dtype or x.dtype):to(M.device) end) end

--- Runs fn with options of the GPU, then restores them.
--- @param options table<string, boolean>
function M.with(options, fn)
  local old = {}
  for name, value in pairs(options) do
    old[name] = cr.cuda.device[name]
    cr.cuda.device[name] = value
  end
  local ok, err = xpcall(fn, debug.traceback)
  for name, value in pairs(old) do cr.cuda.device[name] = value end
  if not ok then error(err, 0) end
end

local EPS = { f32 = 2 ^ -23, f16 = 2 ^ -10, bf16 = 2 ^ -7, f64 = 2 ^ -52 }
M.eps = EPS

--- Compares a result on the GPU with the CPU's. f32: relative L2 error of at most 1e-5. f16 and bf16: the error of
--- each element is at most 2 ulps of the largest term, which is the reference's largest magnitude unless `largest` is
--- given.
--- @param result Tensor on the GPU
--- @param reference Tensor on the CPU, f32 or f64
--- @param options table? {message =, largest = number, limit = relative L2 error for f32 and f64}
function M.near(result, reference, options)
  options = options or {}
  local message = ('%s %s (CR_SEED=%d)'):format(options.message or '', result.dtype, M.seed)
  cr.scope(function()
    local y, r = result:to 'cpu':to 'f64', reference:to 'f64'
    if table.concat(y.shape, ' ') ~= table.concat(r.shape, ' ') then
      t.ok(false, ('%s: shapes [%s] and [%s]'):format(message, table.concat(y.shape, ' '), table.concat(r.shape, ' ')))
      return
    end
    if result.dtype == 'f32' or result.dtype == 'f64' then
      t.near(y, r, options.limit or 1e-5, message)
      return
    end
    local worst = (y - r):abs():max():item()
    local largest = options.largest or r:abs():max():item()
    -- One ulp of `largest`: its power of two times eps.
    local unit = largest > 0 and 2 ^ math.floor(math.log(largest) / math.log(2)) * EPS[result.dtype] or EPS[result.dtype]
    t.ok(worst <= 2 * unit, ('%s: error %.3g, which is %.2f ulps of the largest term %.3g'):format(message, worst, worst / unit, largest))
  end)
end

return M
