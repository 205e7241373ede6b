--- Generated documentation is up to date with `make docs`.

local docs = require 'tests.support.docs'
local t = require 'tests.support.tap'

for _, entry in ipairs(docs.tables) do
  t.test(('%s: %s'):format(entry[1], entry[2] and 'the table ' .. entry[2] or 'the file'), function()
    t.ok(docs.written(entry) == entry[3](), 'it is stale: run `make docs`')
  end)
end

-- A recipe of a page whose last step is forgotten would otherwise leave no trace.
local files, root = require 'cr.files', require 'cr'.root

t.test('each command has a sentence for the list of commands, and a row on the page', function()
  local page = require 'tests.support.scratch'.read(root .. '/scripts/README.md')
  for _, name in ipairs(files.modules(root .. '/scripts')) do
    local text = require 'tests.support.scratch'.read(('%s/scripts/%s.lua'):format(root, name))
    t.ok(text:find '^%-%-%-? %u[^\n]+', ('scripts/%s.lua begins with no comment, whose first sentence `crescent help` shows'):format(name))
    t.ok(page:find(('`%s.lua`'):format(name), 1, true), ('%s.lua has no row in the first table of scripts/README.md'):format(name))
  end
end)

t.test('each stage has its place in the order of stages', function()
  local placed = {}
  for _, name in ipairs(require 'models.latentsync.stages'.NAMES) do placed[name] = true end
  for _, name in ipairs(files.modules(root .. '/models/latentsync/stages')) do
    t.ok(placed[name], ('stages/%s.lua is not among NAMES of models/latentsync/stages/init.lua, so it never runs'):format(name))
  end
end)

t.done()
