--- Every benchmark starts: it runs at a tiny size, or ends with the message that there is no GPU.
--
-- Each benchmark's header contains the line `-- Tiny: ARGUMENTS` with its smallest run, and, if it cannot finish
-- here, `=> the message with which it ends`. OUT is an empty folder, DIR a tiny checkpoint. A file that returns a
-- value is a module of the benchmarks.

local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'
local lfs = require 'lfs'

local folder = cr.root .. '/tests/bench/'
local names = {}
for name in lfs.dir(folder) do
  if name:find '%.lua$' then names[#names + 1] = name end
end
table.sort(names)

local dir = child.folder .. '/checkpoint'
require 'tests.support.checkpoint'.write(dir)

for _, name in ipairs(names) do
  local file = assert(io.open(folder .. name))
  local source = file:read '*a'
  file:close()
  if not source:find '\nreturn ' and not source:find '^return ' then
    t.test(name, function()
      local card = source:find("require 'tests.bench.card'", 1, true) or source:find("require 'tests.bench.products'", 1, true)
      local line = source:match '\n%-%- Tiny: ([^\n]*)'
      t.ok(line or card, 'the header has no line "-- Tiny: ARGUMENTS"')
      local tiny, sentence = ((line or '') .. ' => '):match '^(.-)%s*=> (.-)%s*=?>?%s*$'
      local args = { folder .. name }
      for word in tiny:gmatch '%S+' do
        args[#args + 1] = word:gsub('^OUT', child.folder):gsub('^DIR$', dir)
      end
      local r = child.run(args, { env = { CUDA_VISIBLE_DEVICES = '' } })
      if card or sentence ~= '' then
        t.equal(r.code, 1, 'exit status: ' .. r.err)
        t.equal(r.lines, 1, 'lines of ' .. r.err)
        t.ok(r.err:find(sentence ~= '' and sentence or 'NVIDIA', 1, true), r.err)
      else
        t.equal(r.code, 0, r.err)
        t.ok(r.out:find '%d', 'it prints a figure: ' .. r.out)
      end
      r = child.run { folder .. name, '--no-such-option' }
      t.ok(r.code ~= 0 and r.err:find '%-%-no%-such%-option', 'an option that there is not: ' .. r.err)
    end)
  end
end

child.clean()
t.done()
