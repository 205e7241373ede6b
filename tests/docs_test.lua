--- Generated documentation is up to date with `make docs`.

local docs = require 'tests.support.docs'
local t = require 'tests.support.tap'

for _, entry in ipairs(docs.tables) do
  t.test(('%s: %s'):format(entry[1], entry[2] and 'the table ' .. entry[2] or 'the file'), function()
    t.ok(docs.written(entry) == entry[3](), 'it is stale: run `make docs`')
  end)
end

t.done()
