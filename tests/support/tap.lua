--- A small TAP test runner: `t.test(name, fn)` runs a test, `t.done()` ends the file.
--
-- After each test, only storages may be live that were live before it.

local cr = require 'cr'

local t = { count = 0, failed = 0 }
local current

io.stdout:setvbuf 'line'

-- CR_PART=2/4 runs every fourth test from the second on, for slow tools that run parts in parallel.
local part, parts = (os.getenv 'CR_PART' or ''):match '^(%d+)/(%d+)$'
local seen = 0

local SKIP = {}

local function report(ok, name, note)
  t.count = t.count + 1
  if not ok then t.failed = t.failed + 1 end
  print(('%s %d - %s%s'):format(ok and 'ok' or 'not ok', t.count, (name:gsub('[#\n]', ' ')), note or ''))
end

local function diagnose(text)
  for line in tostring(text):gmatch '[^\n]+' do print('#   ' .. line) end
end

--- Runs one test. It passes if fn ends without a failed check, an error, a new live storage or an open handle of the
--- event loop.
function t.test(name, fn)
  seen = seen + 1
  if part and (seen - part) % parts ~= 0 then return end
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
  require 'jit'.flush() -- compiled traces keep references to closures, and so to tensors
  collectgarbage()
  collectgarbage()
  local left = cr.memory().count - before
  if ok and left ~= 0 and not current.allow_leak then
    table.insert(current.problems, ('%d storages are still live after the test'):format(left))
  end
  local loop = package.loaded['cr.loop']
  if ok and loop then
    loop.uv.run 'nowait' -- lets closed handles go away
    if loop.handles() > 0 then
      table.insert(current.problems, ('%d handles of the loop are open after the test'):format(loop.handles()))
    end
  end
  report(#current.problems == 0, name)
  for _, p in ipairs(current.problems) do diagnose(p) end
end

--- Ends the current test as skipped.
function t.skip(reason)
  current.skipped = reason
  error(SKIP, 0)
end

local function check(ok, text)
  current.checks = current.checks + 1
  if not ok then
    -- The checks below are often tail calls, so the caller's level varies.
    local level, info = 2
    repeat
      level, info = level + 1, debug.getinfo(level, 'Sl')
    until not info or info.what ~= 'C' and not info.short_src:find 'tap%.lua$'
    info = info or { short_src = '?', currentline = 0 }
    table.insert(current.problems, ('%s:%d: %s'):format(info.short_src, info.currentline, text))
  end
  return ok
end

function t.ok(condition, message) return check(condition, message or 'not true') end

function t.equal(a, b, message)
  return check(a == b, ('%s: %s, expected %s'):format(message or 'not equal', tostring(a), tostring(b)))
end

--- The relative L2 error of tensor `a` against `b` in float64; if b is all zero, the norm of a. Infinity or NaN on
--- either side gives infinity.
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

--- Checks that numbers differ by at most `tolerance`, or that tensors of the same shape have at most that relative L2
--- error.
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

--- Calls fn for each combination of one value per list, the last list varying fastest, each in its own scope.
---
---     t.each({ 'f32', 'f16' }, { 1, 17 }, function(dtype, n) ... end)
--- @param ... table lists, then the function
function t.each(...)
  local lists = { ... }
  local fn = table.remove(lists)
  local chosen = {}
  local function choose(k)
    if not lists[k] then return cr.scope(fn, unpack(chosen, 1, #lists)) end
    for i = 1, #lists[k] do
      chosen[k] = lists[k][i]
      choose(k + 1)
    end
  end
  choose(1)
end

--- Waits until fn() returns true; returns false after the time limit (tests/support/time_limit.lua).
--- @return boolean
function t.wait(fn)
  local now = require 'cr.clock'
  local limit = now() + require 'tests.support.time_limit'
  while not fn() do
    if now() > limit then return false end
    cr.sleep(0.02)
  end
  return true
end

local shared = cr.root .. '/../shared/'
local has_shared = io.open(shared .. 'demo/demo1_audio.wav', 'rb')
if has_shared then has_shared:close() end

--- A test of the optional tier: clips of real people, which only the developers have, in ../shared. Elsewhere the
--- test does not exist. fn gets a function that maps a name in that folder to its path.
function t.with_shared(name, fn)
  if not has_shared then return end
  t.test(name, function() fn(function(path) return shared .. path end) end)
end

--- Whether `make models` has fetched this file of models/fetched.
function t.has_fetched(path)
  local f = io.open(cr.root .. '/models/fetched/' .. path, 'rb')
  if f then f:close() end
  return f ~= nil
end

--- The path of a file that `make models` fetches; skips the test without it.
function t.fetched(path)
  if not t.has_fetched(path) then t.skip('models/fetched/' .. path .. ' is absent: run `make models`') end
  return cr.root .. '/models/fetched/' .. path
end

--- The path of a fetched face network; skips the test without it.
function t.face_model(name) return t.fetched('face/' .. name .. '.tflite') end

--- The folder of the face networks; skips the test without them.
function t.face_models() return (t.face_model 'face_landmark':gsub('/[^/]*$', '')) end

--- Declares that the current test keeps storages on purpose (a cache that is filled on first use).
function t.keeps_storages() current.allow_leak = true end

--- The formula of the golden values; see tests/support/formula.lua.
t.formula = require 'tests.support.formula'.tensor

--- Ends the file: prints the plan; the exit status is 1 if a test failed.
function t.done()
  print('1..' .. t.count)
  os.exit(t.failed == 0 and 0 or 1, true)
end

return t
