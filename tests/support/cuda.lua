--- What the tests of the CUDA operations share: where a card is, and how near is near enough.
--
-- The reference is the CPU's operation in f32 (or f64) on the very numbers that the card gets, f16 and
-- bf16 inputs widened first, so that only the card's arithmetic differs. Inputs are drawn afresh in
-- every run; the seed is part of a failure's text, and CR_SEED=N repeats it.

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

--- A test that needs a card; skipped where there is none.
function M.test(name, fn)
  t.test(name, function()
    if not card() then t.skip(why) end
    fn()
  end)
end

--- A test of what cuBLAS or cuDNN does, or of a size that is nothing for kernels without them.
function M.library_test(name, fn)
  M.test(name, function()
    if M.slow then t.skip 'CR_LIBRARIES=0' end
    fn()
  end)
end

--- Of a way to declare tests, as M.test: the same for tests that only a Hopper runs. On other cards the ways that they
--- choose are the library's: right as well, but no test of our kernels.
function M.on_hopper(test)
  return function(name, fn)
    test(name, function()
      if cr.cuda.info(M.device).capability:match '^%d+' ~= '9' then t.skip 'not a Hopper' end
      fn()
    end)
  end
end

--- Whether a slow tool looks for races in our own kernels.
M.slow = os.getenv 'CR_LIBRARIES' == '0'

--- Cases to go through: all, but under a slow tool the first, the middle and the last, since races depend on
--- the kernel and on what hangs over its tiles.
function M.cases(list)
  if not M.slow or #list <= 3 then return list end
  return { list[1], list[math.ceil(#list / 2)], list[#list] }
end

M.seed = tonumber(os.getenv 'CR_SEED') or os.time() % 1000003
math.randomseed(M.seed)
local generator = cr.generator(M.seed, 'philox')

--- Standard normal numbers on the CPU, rounded to `dtype`, as f32 with no more than its precision.
--- @param shape integer[]
--- @param dtype string? 'f32'
function M.randn(shape, dtype, scale)
  return cr.scope(function()
    local x = cr.randn(shape, { generator = generator })
    if scale then x = x * scale end
    return x:to(dtype or 'f32'):to 'f32'
  end)
end

--- The same as f64, for references; f64's own are no rounder than f32's.
function M.randn64(shape, dtype, scale)
  return cr.scope(function() return M.randn(shape, dtype ~= 'f64' and dtype or nil, scale):to 'f64' end)
end

--- Whole numbers as f32 on the CPU, of which products and sums are exact.
--- @param ... integer sizes
function M.whole(...)
  local shape = { ... }
  return cr.scope(function() return M.randn(shape, 'f32', 1.5):round() end)
end

--- A tensor full of what no operation gives, so that what is not written shows.
function M.poisoned(shape, dtype)
  return cr.full(shape, dtype == 'u8' and 170 or 0 / 0, { dtype = dtype, device = M.device })
end

--- The same numbers on the card in `dtype`.
function M.up(x, dtype) return cr.scope(function() return x:to(dtype or x.dtype):to(M.device) end) end

--- Runs fn with options of the card, then puts back what was.
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

--- Checks a result on the card against the CPU's. f32: relative L2 error of at most 1e-5. f16 and
--- bf16: no element is off by more than 2 units in the last place of the largest term, which is the
--- largest number of the reference unless `largest` says otherwise.
--- @param result Tensor on the card
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
    -- A unit in the last place of `largest`: its power of two times eps.
    local unit = largest > 0 and 2 ^ math.floor(math.log(largest) / math.log(2)) * EPS[result.dtype] or EPS[result.dtype]
    t.ok(worst <= 2 * unit, ('%s: off by %.3g, %.2f units of the largest term %.3g'):format(message, worst, worst / unit, largest))
  end)
end

return M
