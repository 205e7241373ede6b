--- A small TAP test runner: `t.test(name, fn)` runs a test, `t.done()` ends the file.
--
-- After each test no storage may be live that was not before it. Golden values of the developers'
-- machines lie in ../shared, which a fresh clone lacks: tests that need them are skipped there.

local cr = require 'cr'
local ffi = require 'ffi'

local t = { count = 0, failed = 0 }
local current

io.stdout:setvbuf 'line'

local SKIP = {}

local function report(ok, name, note)
  t.count = t.count + 1
  if not ok then t.failed = t.failed + 1 end
  print(('%s %d - %s%s'):format(ok and 'ok' or 'not ok', t.count, (name:gsub('[#\n]', ' ')), note or ''))
end

local function diagnose(text)
  for line in tostring(text):gmatch '[^\n]+' do print('#   ' .. line) end
end

--- Runs one test; it passes if fn ends without a failed check, an error or a leak.
function t.test(name, fn)
  collectgarbage()
  collectgarbage()
  local before = cr.memory().count
  current = { problems = {}, checks = 0 }
  local ok, err = xpcall(fn, function(e)
    return e == SKIP and e or type(e) == 'string' and debug.traceback(e, 2) or e
  end)
  if not ok and err == SKIP then
    print(('ok %d - %s # SKIP %s'):format(t.count + 1, name, current.skipped))
    t.count = t.count + 1
    return
  end
  if not ok then table.insert(current.problems, tostring(type(err) == 'table' and err.message or err)) end
  if ok and current.checks == 0 then table.insert(current.problems, 'the test checked nothing') end
  fn = nil -- luacheck: ignore
  collectgarbage()
  collectgarbage()
  local left = cr.memory().count - before
  if ok and left ~= 0 and not current.allow_leak then
    table.insert(current.problems, ('%d storages are still live after the test'):format(left))
  end
  report(#current.problems == 0, name)
  for _, p in ipairs(current.problems) do diagnose(p) end
end

--- Leaves the current test as skipped.
function t.skip(reason)
  current.skipped = reason
  error(SKIP, 0)
end

local function check(ok, text)
  current.checks = current.checks + 1
  if not ok then
    local info = debug.getinfo(3, 'Sl')
    table.insert(current.problems, ('%s:%d: %s'):format(info.short_src, info.currentline, text))
  end
  return ok
end

function t.ok(condition, message) return check(condition, message or 'not true') end

function t.equal(a, b, message)
  return check(a == b, ('%s: %s, expected %s'):format(message or 'not equal', tostring(a), tostring(b)))
end

--- Relative L2 error of tensor `a` against `b` in float64; for all-zero b the norm of a. An
--- infinity or nan on either side gives infinity.
function t.relative_error(a, b)
  return cr.scope(function()
    local x, y = a:to 'f64':contiguous(), b:to 'f64':contiguous()
    local n = x:numel()
    local p, q = x:pointer(), y:pointer()
    local d, s = 0, 0
    for i = 0, n - 1 do
      d = d + (p[i] - q[i]) ^ 2
      s = s + q[i] ^ 2
    end
    local e = s > 0 and math.sqrt(d / s) or math.sqrt(d)
    return e == e and e or math.huge
  end)
end

--- Numbers within `tolerance`, or tensors of the same shape within that relative L2 error.
function t.near(a, b, tolerance, message)
  message = message or 'not near'
  if cr.is_tensor(a) then
    if not cr.is_tensor(b) then b = cr.tensor(b) end
    local sa, sb = table.concat(a.shape, ' '), table.concat(b.shape, ' ')
    if sa ~= sb then return check(false, ('%s: shapes [%s] and [%s]'):format(message, sa, sb)) end
    local e = t.relative_error(a, b)
    return check(e <= tolerance, ('%s: relative error %.3g, allowed %.3g'):format(message, e, tolerance))
  end
  local ok = a == b or math.abs(a - b) <= tolerance
  return check(ok, ('%s: %.9g, expected %.9g within %.3g'):format(message, a, b, tolerance))
end

--- fn must raise an error whose text matches the Lua pattern.
function t.raises(fn, pattern)
  local ok, err = pcall(fn)
  if ok then return check(false, 'no error was raised, expected ' .. pattern) end
  if err == SKIP then error(err, 0) end
  local text = tostring(type(err) == 'table' and err.message or err)
  return check(text:find(pattern) ~= nil, ('raised "%s", expected %s'):format(text, pattern))
end

--- Path of a file of ../shared; skips the test where that folder is absent.
function t.shared(path)
  local full = cr.root .. '/../shared/' .. path
  local f = io.open(full, 'rb')
  if not f then t.skip('../shared/' .. path .. ' is absent') end
  f:close()
  return full
end

--- Declares that the current test keeps storages on purpose (a cache filled on first use).
function t.keeps_storages() current.allow_leak = true end

-- ---- the golden formula ----------------------------------------------------------------------

local mask53 = 2 ^ -24

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

--- Numbers that a formula makes from a name, so that whole networks need no files: kind 'input'
--- (v sqrt 3), 'weight' (as a checkpoint's) or 'raw' (v in [-1, 1)).
--- @param name string
--- @param shape integer[] PyTorch's order
--- @param options table? {kind=, salt=1, dtype='f32'}
function t.formula(name, shape, options)
  options = options or {}
  local kind = options.kind or 'input'
  local n = 1
  for _, s in ipairs(shape) do n = n * s end
  local scale, shift = 1, 0
  if kind == 'input' then
    scale = math.sqrt(3)
  elseif kind == 'weight' then
    if #shape >= 2 then
      scale = math.sqrt(3 / (n / shape[1]))
    elseif name:find 'weight$' then
      scale, shift = 0.1, 1
    else
      scale = 0.1
    end
  end
  local h = bit.bxor(fnv1a64(name), splitmix64(ffi.new('uint64_t', options.salt or 1)))
  local out = cr.empty(shape, { dtype = options.dtype == 'f64' and 'f64' or 'f32' })
  local p = out:pointer()
  for i = 0, n - 1 do
    local z = splitmix64(h + ffi.cast('uint64_t', i))
    p[i] = shift + scale * (tonumber(bit.rshift(z, 40)) * mask53 * 2 - 1)
  end
  return out
end

--- Ends the file: the plan, and exit status 1 if a test failed.
function t.done()
  print('1..' .. t.count)
  os.exit(t.failed == 0 and 0 or 1, true)
end

return t
