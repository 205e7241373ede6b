--- The documentation tables that are generated from declarations: `make docs` writes them, and tests/docs_test.lua
--- checks that they are up to date. To add a table, add a row below.

local root = require 'cr.ffi'.root

local docs = {}

local HEAD = '| option | meaning |\n| --- | --- |\n'

--- {file, name of the block or false for the whole file, function that gives its lines}
docs.tables = {
  { 'scripts/README.md', 'lipsync', function()
    return HEAD .. table.concat(require 'models.latentsync.settings'.schema:markdown(), '\n') .. '\n'
  end },
  { 'scripts/README.md', 'upscale', function()
    return HEAD .. table.concat(require 'models.upscale.settings':markdown(), '\n') .. '\n'
  end },
  { 'scripts/README.md', 'live', function()
    local live = require 'models.latentsync.live.settings'
    return HEAD .. table.concat(live.schema:only(live.special):markdown(), '\n') .. '\n'
  end },
  { 'lua/README.md', 'operations', function() return require 'tests.support.operations_table'() end },
  { 'lua/types/cr.lua', false, function() return require 'tests.support.stubs'.text() end },
}

--- The current contents of a file, or of its block; nil if it is missing.
--- @param entry table of docs.tables
--- @return string?
function docs.written(entry)
  local f = io.open(root .. '/' .. entry[1], 'rb')
  if not f then return nil end
  local text = f:read '*a'
  f:close()
  if not entry[2] then return text end
  local _, from = text:find(('<!-- begin %s -->\n'):format(entry[2]), 1, true)
  local to = from and text:find(('<!-- end %s -->'):format(entry[2]), from, true)
  return to and text:sub(from + 1, to - 1)
end

--- Writes all tables.
function docs.write()
  local insert = require 'tests.support.insert'
  local files = require 'cr.files'
  for _, entry in ipairs(docs.tables) do
    local path = root .. '/' .. entry[1]
    if entry[2] then insert(path, entry[2], entry[3]()) else files.write(path, entry[3](), 'docs') end
  end
end

return docs
