--- The tables of the documentation that come from declarations: `make docs` writes them, tests/docs_test.lua tells
--- when one is stale. A new table is a row below.

local root = require 'cr.ffi'.root

local docs = {}

local HEAD = '| option | meaning |\n| --- | --- |\n'

--- {file, name of the block, function that gives its lines}
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
}

--- What stands in a file's block now; nil without one.
--- @param entry table of docs.tables
--- @return string?
function docs.written(entry)
  local f = assert(io.open(root .. '/' .. entry[1], 'rb'))
  local text = f:read '*a'
  f:close()
  local _, from = text:find(('<!-- begin %s -->\n'):format(entry[2]), 1, true)
  local to = from and text:find(('<!-- end %s -->'):format(entry[2]), from, true)
  return to and text:sub(from + 1, to - 1)
end

--- Writes every table anew.
function docs.write()
  local insert = require 'tests.support.insert'
  for _, entry in ipairs(docs.tables) do insert(root .. '/' .. entry[1], entry[2], entry[3]()) end
end

return docs
