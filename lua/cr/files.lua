--- Files: atomic writing, checks of paths, and the modules in a folder.

local errors = require 'cr.errors'

local files = {}

-- The core is loaded on first use, so that merely listing a folder does not load it.
local function core()
  return require 'cr.ffi'
end

--- Writes a file atomically. On an error it fails with one sentence and leaves an existing file as it was. A device,
--- a pipe or /dev/stdout is written to directly.
--- @param path string
--- @param text string
--- @param what string? the option that named the file, for messages: '--report'
function files.write(path, text, what)
  local base = core()
  if base.C.cr_file_write(path, text, #text) < 0 then
    errors.fail((what and what .. ': ' or '') .. require 'ffi'.string(base.C.cr_last_error()))
  end
end

--- Returns whether two paths lead to the same regular file, by name, by a symbolic link or by a hard link.
--- @param a string
--- @param b string
--- @return boolean
function files.same(a, b) return core().C.cr_file_same(a, b) == 1 end

--- Fails if an output is one of the inputs, which it would overwrite.
--- @param path string the output
--- @param inputs table a path or a list of paths by the option that named it: { ['--video'] = 'a.mp4' }
--- @param what string? the option that named the output, for messages: '--out'
function files.check_output(path, inputs, what)
  local names = {}
  for name in pairs(inputs) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local list = inputs[name]
    for _, input in ipairs(type(list) == 'table' and list or { list }) do
      if files.same(path, input) then
        errors.fail(('%s%s is also the input of %s (%s) and would overwrite it: choose another name'):format(
          what and what .. ': ' or '', path, name, input))
      end
    end
  end
end

local fail = errors.failf

--- Fails unless a file can be written at `path`: its folder must exist, and it must not be a folder itself.
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

--- Fails unless `path` is a file that is not empty. Pipes are not opened, because that would wait for a writer and
--- consume data.
--- @param option string? for the message: '--video'
function files.check_readable(option, path)
  option = option and option .. ': ' or ''
  local mode = require 'lfs'.attributes(path, 'mode')
  if mode and mode ~= 'file' and mode ~= 'directory' or not mode and path == '-' then
    fail('%s%s: a pipe or device cannot be read twice: save it to a file first', option, path)
  end
  local f, reason = io.open(path, 'rb')
  if not f then fail('%s%s', option, reason) end
  local some = f:read(1)
  f:close()
  if not some then fail('%s%s is empty, or a folder', option, path) end
end

--- Returns the bytes of a file, or nil if it cannot be read.
--- @param path string
--- @return string?
function files.read(path)
  local f = io.open(path, 'rb')
  if not f then return nil end
  local text = f:read '*a'
  f:close()
  return text
end

--- Makes a folder and all its parent folders.
--- @param path string
--- @return boolean whether it exists now
function files.make_folder(path)
  local lfs = require 'lfs'
  local at = path:sub(1, 1) == '/' and '' or '.'
  for part in path:gmatch '[^/]+' do
    at = at .. '/' .. part
    lfs.mkdir(at)
  end
  return lfs.attributes(path, 'mode') == 'directory'
end

--- Returns the modules of a folder: the names of its Lua files without the ending, sorted, except init.
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
