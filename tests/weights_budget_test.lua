--- Limits for hostile weights files: memory within a multiple of the file's size plus 64 MiB, time within CPU
--- seconds.

local cr = require 'cr'
local pickle = require 'tests.support.pickle'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'

local le, text, int, tensor = scratch.le, pickle.text, pickle.int, pickle.tensor
local MOST_SECONDS, TIMES, SPARE = 10, 100, 64 * 2 ^ 20

-- The peak memory in bytes and the CPU seconds of a program that lists a file and reads its tensors.
local looker = scratch.write('look.lua', [[
local cr = require 'cr'
local function peak()
  for line in io.lines '/proc/self/status' do
    local kib = line:match '^VmHWM:%s*(%d+)'
    if kib then return tonumber(kib) * 1024 end
  end
end
local before, begin = peak(), os.clock()
local ok, file = pcall(cr.weights.open, arg[1])
local said = ok and 'opened' or tostring(file)
if ok then
  local _ = file.metadata
  for _, name in ipairs(file.names) do
    local fine, x = pcall(file.get, file, name)
    if fine then x:free() else said = tostring(x) end
  end
end
print(('%d %.3f %s'):format(peak() - before, os.clock() - begin, said))
]])

local function cost(path)
  local out, status = scratch.command(('%s %s %s'):format(scratch.program, looker, path))
  local bytes, seconds, said = out:match '(%d+) ([%d.]+) ([^\n]*)'
  t.ok(status == 0 and bytes, out)
  return tonumber(bytes), tonumber(seconds), said
end

local function bounded(what, path, pattern)
  t.test(what, function()
    local size = require 'lfs'.attributes(path, 'size')
    local bytes, seconds, said = cost(path)
    t.ok(bytes <= TIMES * size + SPARE, ('%d bytes of memory for %d of file'):format(bytes, size))
    t.ok(seconds < MOST_SECONDS, ('%.1f s'):format(seconds))
    t.ok(said:find(pattern), said)
  end)
end

local made = 0
local function archive(bytes, members)
  made = made + 1
  local path = scratch.path(('budget%d.pt'):format(made))
  assert(os.rename(pickle.archive(bytes, members), path))
  return path
end

local numbers = { { 'm/data/0', scratch.floats(1, 2, 3, 4) } }

-- Nested lists of two references to the last one, to a given depth; the innermost is `value`.
local function doubled(value, times)
  local parts = { '\128\2', value, 'q\0' }
  for i = 1, times do parts[#parts + 1] = '](' .. ('h' .. string.char(i - 1)):rep(2) .. 'eq' .. string.char(i) end
  return table.concat(parts) .. '.'
end

bounded('lists of a tensor that double', archive(doubled(tensor('0', 4, 0, { 4 }, { 1 }), 24), numbers), 'too large')
bounded('with a long name at each', archive(doubled(tensor('0', 4, 0, { 4 }, { 1 }), 24):sub(1, -2) ..
  '}' .. text(('n'):rep(900)) .. 'h\24s.', numbers), 'more memory than a file of its size')
bounded('lists of a long text that double', archive(doubled(text(('t'):rep(1000)), 24)), 'too large')
bounded('lists of a number that double', archive(doubled(int(7), 30)), 'too large')
bounded('a list that is copied into tuples again and again', archive('\128\2](' .. ('N'):rep(1000) .. 'eq\0' ..
  ('cbuiltins\ntuple\n(h\0tR0'):rep(4000) .. 'N.'), 'opened')
bounded('storages of one key without end', archive('\128\2' ..
  pickle.storage(('k'):rep(255), 4):gsub('Q$', 'q\0') .. ('h\0Q0'):rep(300000) .. '.'), 'more memory than a file of its size')
bounded('a hundred thousand opcodes that each make a value', archive('\128\2' .. (']'):rep(102000) .. '.'), 'opened')

t.test("compressed parts are bounded by the file's size, not by their claims", function()
  local path = scratch.path 'deflated.pt'
  local function write(members)
    local f = assert(io.open(path, 'wb'))
    f:write(scratch.zip(members))
    f:close()
  end
  -- Compression bombs: 60 MB of pickle in 60 kB, and 100 MB of data in 100 kB.
  write { { 'm/data.pkl', '\128\2](' .. ('N'):rep(30e6) .. 'e.', deflated = true } }
  local bytes, _, said = cost(path)
  t.ok(bytes < TIMES * 1e5 + SPARE, bytes)
  t.ok(said:find 'more memory than a file of its size may take', said)
  write { { 'm/data.pkl', pickle.dict(text 'x', tensor('0', 4, 0, { 4 }, { 1 })) },
    { 'm/data/0', ('\0'):rep(100e6), deflated = true } }
  bytes, _, said = cost(path)
  t.ok(bytes < TIMES * 2e5 + SPARE, bytes)
  t.ok(said:find 'its compressed parts claim more bytes than a file of its size may', said)
end)

bounded('a tensor that is expanded without end', archive(pickle.dict(text 'x', tensor('0', 4, 0, { 30000, 30000 }, { 0, 0 })), numbers),
  'tensor x claims 3600000000 bytes, more than a file of this size may')

t.test('honest files are not refused', function()
  -- Only numbers, names and a few tensors that share a storage.
  local parts = {}
  for i = 1, 20000 do parts[#parts + 1] = text('parameter.' .. i) .. '](' .. int(i) .. 'G\63\240\0\0\0\0\0\0N\136e' end
  local bytes, _, said = cost(archive(pickle.dict(table.concat(parts), text 'a', tensor('0', 4, 0, { 4 }, { 1 }), text 'b',
    tensor('0', 4, 0, { 1024, 1024 }, { 0, 0 })), numbers))
  t.equal(said, 'opened')
  t.ok(bytes < 1e8, bytes)
end)

-- ---- CTranslate2 -----------------------------------------------------------------------------

local function c_string(s) return le(#s + 1, 2) .. s .. '\0' end

t.test('a hundred thousand aliases take no time', function()
  local variables, aliases = {}, {}
  for i = 1, 20000 do variables[i] = c_string('encoder/variable_' .. i) .. '\0\1' .. le(1, 4) .. '\7' end
  for i = 1, 100000 do aliases[i] = c_string('alias_' .. i) .. c_string('encoder/variable_' .. (20000 - i % 20000)) end
  local path = scratch.write('aliases.bin', le(6, 4) .. c_string 'WhisperSpec' .. le(3, 4) .. le(#variables, 4) ..
    table.concat(variables) .. le(#aliases, 4) .. table.concat(aliases))
  local bytes, seconds, said = cost(path)
  t.equal(said, 'opened')
  t.ok(seconds < MOST_SECONDS, seconds)
  t.ok(bytes <= TIMES * require 'lfs'.attributes(path, 'size') + SPARE, bytes)
  local file = cr.weights.open(path)
  t.equal(#file.names, 120000)
  t.equal(file:get('alias_100000'):item(), 7)
end)

t.done()
