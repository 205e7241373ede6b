--- Files: written whole or not at all, under a temporary name beside the last, then renamed; modules of a
--- folder.

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

local function fail(...) errors.fail((...):format(select(2, ...))) end

--- Fails unless a file can be written at `path`: its folder is there, and it is none itself.
--- @param option string for the message: '--out'
function files.check_folder(option, path)
  local lfs = require 'lfs'
  local folder = path:match '^(.*)/[^/]*$' or '.'
  if folder == '' then folder = '/' end
  if lfs.attributes(folder, 'mode') ~= 'directory' then
    fail('%s: the folder %s does not exist', option, folder)
  end
  if lfs.attributes(path, 'mode') == 'directory' then fail('%s: %s is a folder', option, path) end
end

--- Fails unless `path` is a file with something in it.
--- @param option string? for the message: '--video'
function files.check_readable(option, path)
  option = option and option .. ': ' or ''
  local f, reason = io.open(path, 'rb')
  if not f then fail('%s%s', option, reason) end
  local some = f:read(1)
  f:close()
  if not some then fail('%s%s is empty, or a folder', option, path) end
end

--- The modules of a folder: the names of its Lua files without their ending, sorted; not init.
--- @param folder string
--- @return string[]
function files.modules(folder)
  local list = {}
  for entry in require 'lfs'.dir(folder) do
    local name = entry:match '^([%w_]+)%.lua$'
    if name and name ~= 'init' then list[#list + 1] = name end
  end
  table.sort(list)
  return list
end

return files
