-- The environment switches that choose between kernels: declared in one place, and in kernels/README.md.

local t = require 'tests.support.tap'

local function read(path)
  local f = assert(io.open(path))
  local text = f:read '*a'
  f:close()
  return text
end

--- The switches of kernels/device/switches.h: name to a list of values.
local function declared()
  local list = {}
  for name, values in read('kernels/device/switches.h'):gmatch '\n  X%(([%u%d_]+)([^)]*)%)' do
    list['CR_' .. name] = {}
    for value in values:gmatch '"([^"]*)"' do table.insert(list['CR_' .. name], value) end
  end
  return list
end

t.test('kernels/README.md lists each switch with its values', function()
  local switches, rows, n = declared(), {}, 0
  for name, values in read('kernels/README.md'):gmatch '\n| `(CR_[%u%d_]+)` | ([^|\n]+) | [^|\n]+ |' do rows[name] = values end
  for name, values in pairs(switches) do
    n = n + 1
    t.ok(rows[name], name .. ' has no row in kernels/README.md')
    for value in rows[name]:gmatch '`([^`]*)`' do
      t.ok(table.concat(values, ' '):find(value, 1, true), ('%s does not take %s'):format(name, value))
    end
    for _, value in ipairs { values[1], values[#values] } do
      t.ok(rows[name]:find('`' .. value .. '`', 1, true), ('kernels/README.md leaves out %s=%s'):format(name, value))
    end
  end
  t.ok(n > 5, n .. ' switches were found')
  for name in pairs(rows) do t.ok(switches[name], name .. ' of kernels/README.md is not declared') end
end)

t.test('kernels read the environment in one place', function()
  local files = io.popen "grep -l 'getenv(\"CR_' kernels/*.cu kernels/*/*.cu kernels/*/*.h"
  t.equal(files:read '*a', '')
  files:close()
end)
t.done()
