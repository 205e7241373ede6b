--- Files: written whole or not at all, told apart, and the modules of a folder.

local errors = require 'cr.errors'

local files = {}

-- The core is loaded by whoever writes, not by whoever lists a folder.
local function core()
  return require 'cr.ffi'
end

--- Writes a file, instead of what was there. Fails with one sentence, and leaves what was there. What is no
--- regular file (a device, a pipe, /dev/stdout) gets the text.
--- @param path string
--- @param text string
--- @param what string? what it is for, before the sentence: '--report'
function files.write(path, text, what)
  local base = core()
  if base.C.cr_file_write(path, text, #text) < 0 then
    errors.fail((what and what .. ': ' or '') .. require 'ffi'.string(base.C.cr_last_error()))
  end
end

--- Whether two names lead to one regular file: the same name, a link to it, or another of its names.
--- @param a string
--- @param b string
--- @return boolean
function files.same(a, b) return core().C.cr_file_same(a, b) == 1 end

--- Refuses an output that is one of the inputs, which it would replace.
--- @param path string the output
--- @param inputs table what each is for -> a path, or an array of paths: { ['--video'] = 'a.mp4' }
--- @param what string? what the output is for, before the sentence: '--out'
function files.check_output(path, inputs, what)
  local names = {}
  for name in pairs(inputs) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local list = inputs[name]
    for _, input in ipairs(type(list) == 'table' and list or { list }) do
      if files.same(path, input) then
        errors.fail(('%s%s is the file of %s (%s), which would be lost: choose another name'):format(
          what and what .. ': ' or '', path, name, input))
      end
    end
  end
end

local fail = errors.failf

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

--- Fails unless `path` is a file with something in it. Pipes are not opened: that would wait for a writer, and take
--- from what comes.
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

--- A file's bytes; nil if it cannot be read.
--- @param path string
--- @return string?
function files.read(path)
  local f = io.open(path, 'rb')
  if not f then return nil end
  local text = f:read '*a'
  f:close()
  return text
end

--- Makes a folder with all folders above it.
--- @param path string
--- @return boolean whether it is there now
function files.make_folder(path)
  local lfs = require 'lfs'
  local at = path:sub(1, 1) == '/' and '' or '.'
  for part in path:gmatch '[^/]+' do
    at = at .. '/' .. part
    lfs.mkdir(at)
  end
  return lfs.attributes(path, 'mode') == 'directory'
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
