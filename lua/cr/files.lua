--- Files that are there whole or not at all: written under a temporary name beside the last, then renamed.

local errors = require 'cr.errors'

local files = {}

--- Writes a file, instead of what was there. Fails with one sentence, and leaves what was there.
--- @param path string
--- @param text string
--- @param what string? what it is for, before the sentence: '--report'
function files.write(path, text, what)
  what = what and what .. ': ' or ''
  local temporary = path:gsub('([^/]*)$', '.%1.tmp')
  local f, reason = io.open(temporary, 'wb')
  if not f then errors.fail(what .. reason) end
  local ok = f:write(text)
  ok = f:close() and ok
  if not ok or not os.rename(temporary, path) then
    os.remove(temporary)
    errors.fail(('%s%s could not be written'):format(what, path))
  end
end

return files
