--- The log of `crescent serve` and `crescent worker`: one JSON object per line on stderr, with a level, an event and the time.

local json = require 'cr.json'
local names = require 'models.service.names'

--- @param level 'debug'|'info'|'warning'|'error'
--- @param event string
--- @param fields table? more fields of the line
return function(level, event, fields)
  local line = { level = level, event = event, time = names.now() }
  for key, value in pairs(fields or {}) do line[key] = value end
  io.stderr:write(json.encode(line), '\n')
end
