-- Checks what this machine has and lacks, and prints the command that fixes each lack.

local ffi = require 'ffi'
local cr = require 'cr'
local cli = require 'cr.tools.cli'

local args = cli.parse(arg, {
  name = 'doctor', options = { { '--checkpoint', 'folder', help = "a model's folder: report which networks would find faces" } },
  summary = 'Reports what this machine has and lacks, and the command that fixes each lack. ' ..
      'The exit status is 1 if something is missing that lip-sync needs, ' ..
      'also for the GPU if there is one.',
})

local missing = 0

local function line(mark, what, text) print(('%-7s %-18s %s'):format(mark, what, text)) end
local function has(what, text) line('ok', what, text) end
local function note(what, text) line('-', what, text) end
local function lacks(what, text, mend)
  missing = missing + 1
  line('MISSING', what, text .. (mend and '  ->  ' .. mend or ''))
end
local function package_of(name) return 'sudo apt-get install ' .. name end

local function read(path, what)
  local file = io.open(path, 'rb')
  local text = file and file:read(what or '*a')
  if file then file:close() end
  return text
end

ffi.cdef [[
void *dlopen(const char *path, int flags);
void *dlsym(void *library, const char *name);
]]
local LAZY = 1

-- The handle of the first of these libraries that can be loaded.
local function library(...)
  for _, name in ipairs { ... } do
    local handle = ffi.C.dlopen(name, LAZY)
    if handle ~= nil then return handle, name end
  end
end

local function call(handle, name, type, ...)
  local f = ffi.C.dlsym(handle, name)
  if f ~= nil then return ffi.cast(type, f)(...) end
end

-- ---- the machine --------------------------------------------------------------------------------

local cpu = read '/proc/cpuinfo' or ''
local model = cpu:match 'model name%s*:%s*([^\n]+)' or jit.arch
local flags = ' ' .. (cpu:match 'flags%s*:%s*([^\n]+)' or '') .. ' '
local known = {}
for _, flag in ipairs { 'avx2', 'fma', 'f16c', 'avx512f', 'avx512_bf16', 'amx_tile' } do
  if flags:find(' ' .. flag .. ' ', 1, true) then known[#known + 1] = flag end
end
has('crescent', cr.version .. ', ' .. jit.version .. ', in ' .. cr.root)
has('processor', model .. (#known > 0 and ': ' .. table.concat(known, ' ') or ''))
if jit.arch == 'x64' and not flags:find(' avx2 ', 1, true) then
  note('processor', 'no AVX2: matrix multiplication will be slow')
end
has('threads', ('%d (CR_THREADS=N sets another number)'):format(cr.threads()))

local memory = read '/proc/meminfo' or ''
local total, free = tonumber(memory:match 'MemTotal:%s*(%d+)'), tonumber(memory:match 'MemAvailable:%s*(%d+)')
if total and free then
  local text = ('%.1f GiB, of which %.1f are free'):format(total / 2 ^ 20, free / 2 ^ 20)
  -- What the full-size networks need in f32: 5 GiB for the UNet, plus a window of 16 frames.
  if free < 8 * 2 ^ 20 then
    note('memory', text .. ': little for the full-size networks (about 8 GiB), plenty for small ones')
  else
    has('memory', text)
  end
end

-- ---- libraries ----------------------------------------------------------------------------------

local dnnl = library('libdnnl.so.2', 'libdnnl.so.3')
if dnnl then
  ffi.cdef 'typedef struct { int major, minor, patch; } cr_doctor_dnnl;'
  local v = call(dnnl, 'dnnl_version', 'const cr_doctor_dnnl *(*)(void)')
  has('libdnnl', v ~= nil and ('oneDNN %d.%d.%d'):format(v.major, v.minor, v.patch) or 'found')
else
  lacks('libdnnl', 'oneDNN: matrix multiplication and convolutions', package_of 'libdnnl2')
end

for _, module in ipairs {
  { 'luv', 'lua-luv', 'event loop: files, timers, media threads' },
  { 'cjson', 'lua-cjson', 'JSON' },
  { 'lyaml', 'lua-yaml', 'YAML configurations' },
  { 'argparse', 'lua-argparse', 'command lines' },
  { 'lfs', 'lua-filesystem', 'folders' },
} do
  local ok, value = pcall(require, module[1] == 'luv' and 'cr.loop' or module[1])
  if not ok then
    lacks(module[2], module[3], package_of(module[2]))
  elseif module[1] == 'luv' then
    has(module[2], 'libuv ' .. value.uv.version_string())
  else
    has(module[2], type(value) == 'table' and value._VERSION or 'found')
  end
end
if pcall(require, 'DBI') and pcall(require, 'dbd.sqlite3') then
  has('lua-dbi-sqlite3', 'jobs of `crescent serve`')
else
  note('lua-dbi-sqlite3', 'without it no `crescent serve`  ->  ' .. package_of 'lua-dbi-sqlite3')
end
if library 'libreadline.so.8' then
  has('readline', 'line editing at the prompt')
else
  note('readline', 'no line editing at the prompt  ->  ' .. package_of 'libreadline8')
end
if not library 'libsixel.so.1' then
  note('libsixel', 'pictures by half-block characters in sixel terminals  ->  ' .. package_of 'libsixel1')
end

-- ---- media --------------------------------------------------------------------------------------

local function av_version(name, handle)
  local v = call(handle, name .. '_version', 'unsigned (*)(void)')
  return v and ('%d.%d.%d'):format(bit.rshift(v, 16), bit.band(bit.rshift(v, 8), 255), bit.band(v, 255))
end

local function sonames(name, first, last)
  local list = {}
  for version = last, first, -1 do list[#list + 1] = ('lib%s.so.%d'):format(name, version) end
  return unpack(list)
end

local codec
local versions, absent = {}, {}
for _, part in ipairs {
  { 'avutil', 56, 60 }, { 'avcodec', 58, 62 }, { 'avformat', 58, 62 }, { 'avfilter', 7, 11 },
  { 'swscale', 5, 9 }, { 'swresample', 3, 6 },
} do
  local handle = library(sonames(part[1], part[2], part[3]))
  if handle then
    versions[#versions + 1] = part[1] .. ' ' .. (av_version(part[1], handle) or '?')
    if part[1] == 'avcodec' then codec = handle end
  else
    absent[#absent + 1] = 'lib' .. part[1]
  end
end
if #versions > 0 then has('libav', table.concat(versions, ', ')) end
if #absent > 0 then lacks('libav', table.concat(absent, ', '), package_of 'libavfilter8 libavformat59') end

if codec then
  for _, encoder in ipairs {
    { 'libx264', 'H.264 video' }, { 'aac', 'AAC sound' }, { 'ffv1', 'lossless video' },
  } do
    local found = call(codec, 'avcodec_find_encoder_by_name', 'void *(*)(const char *)', encoder[1])
    if found ~= nil then
      has(encoder[1], 'encodes ' .. encoder[2])
    else
      lacks(encoder[1], 'this libavcodec cannot encode ' .. encoder[2], package_of 'libavcodec-extra')
    end
  end
end

-- Checks a library that is loaded on first use, and returns its path if it exists. Optional ones are also loaded;
-- lip-sync works without them.
local function check_part(name, task, remedy, optional)
  local path = package.searchpath(name, package.cpath) or package.searchpath(name, cr.root .. '/build/?.so')
  if path and (not optional or library(path)) then
    has(name, path)
  elseif optional then
    note(name, ('the part %s was not built'):format(task) .. '  ->  ' .. remedy)
  else
    lacks(name, ('the part %s was not built'):format(task), remedy)
  end
  return path
end

check_part('crescent_media', 'for decoding and encoding',
  package_of 'libavformat-dev libavfilter-dev libswscale-dev libswresample-dev' .. ' && make')

-- ---- servers, queues and buckets ------------------------------------------------------------------

check_part('crescent_http', 'for serving HTTP', package_of 'node-llhttp libwslay-dev libssl-dev' .. ' && make', true)
check_part('crescent_remote', 'for S3, SQS and URLs', package_of 'libcurl4-openssl-dev' .. ' && make', true)
if library 'libhiredis.so.0.14' then
  has('libhiredis', 'queues of Redis')
else
  note('libhiredis', 'no queues of Redis  ->  ' .. package_of 'libhiredis0.14')
end

-- ---- networks -----------------------------------------------------------------------------------

local purposes = {
  face = 'the face detector and mesh', whisper = 'Whisper tiny.en', demo = "the tests' picture",
}
local listed, third_party = pcall(require, 'models.third_party')
if not listed then
  lacks('models', tostring(third_party):gsub('\n.*', ''))
else
  local gone, there = {}, {}
  for _, package in ipairs(third_party.packages) do
    for _, file in ipairs(package.spare and {} or package.files) do
      local folder = file[2]:match '^[^/]*'
      local list = read(third_party.folder .. '/' .. file[2], 1) and there or gone
      if not list[folder] then
        list[folder] = true
        list[#list + 1] = purposes[folder] or folder
      end
    end
  end
  if #there > 0 then has('models', table.concat(there, ', ')) end
  if #gone > 0 then
    lacks('models', 'not fetched: ' .. table.concat(gone, ', '), read(cr.root .. '/Makefile', 1) and 'make models' or 'crescent fetch')
  end
end

-- ---- the GPU ------------------------------------------------------------------------------------

-- Flag 2 of dlopen is RTLD_NOW. A library that is already loaded is found by its bare name.
local NOW = 2

-- The path from which it was loaded.
local function path_of(name)
  local maps = io.open('/proc/self/maps', 'rb')
  if not maps then return name end
  local found
  for mapping in maps:lines() do
    local path = mapping:match '/.*$'
    if path and path:match '[^/]*$':sub(1, #name) == name then found = path end
  end
  maps:close()
  return found or name
end

-- One of CUDA's libraries, from the paths in core/base/cuda_load.c.
local function cuda_library(name)
  local handle = ffi.C.dlopen(name, NOW)
  if handle ~= nil then return handle end
  local folders = { '/usr/local/cuda/lib64' }
  local function add(variable, ending)
    local value = os.getenv(variable)
    if value and value ~= '' then folders[#folders + 1] = value .. ending end
  end
  add('CUDA_HOME', '/lib64')
  add('CUDA_HOME', '/lib')
  local packages = '/python3*/*-packages/nvidia/*/lib'
  for variable, below in pairs { VIRTUAL_ENV = '/lib', CONDA_PREFIX = '/lib', HOME = '/.local/lib' } do
    add(variable, below .. packages)
  end
  folders[#folders + 1] = '/usr/local/lib' .. packages
  folders[#folders + 1] = '/usr/lib' .. packages
  for i, folder in ipairs(folders) do folders[i] = folder:gsub('[^%w_/.*-]', '\\%0') .. '/' .. name end
  local list = io.popen('ls -d ' .. table.concat(folders, ' ') .. ' 2>/dev/null')
  local paths = list:read '*a'
  list:close()
  for path in paths:gmatch '[^\n]+' do
    handle = ffi.C.dlopen(path, NOW)
    if handle ~= nil then return handle end
  end
end

-- Whether the machine has an NVIDIA GPU, with or without a driver.
local function has_card()
  local list = io.popen 'cat /sys/bus/pci/devices/*/uevent 2>/dev/null'
  local text = list:read '*a'
  list:close()
  for class, vendor in text:gmatch 'PCI_CLASS=(%x+)\nPCI_ID=(%x+)' do
    if vendor == '10DE' and class:find '^30' then return true end
  end
  return false
end

local function gpu()
  local ok, why = cr.cuda.available() -- loads the CUDA part and its libraries
  local driver = library 'libcuda.so.1'
  if not driver then
    if has_card() then
      lacks('NVIDIA driver', 'there is a GPU but no driver (libcuda.so.1)',
        'driver 580 or newer: sudo apt-get install nvidia-open, from developer.nvidia.com/cuda-downloads')
    else
      note('NVIDIA driver', 'none: everything runs on the CPU')
    end
    return
  end
  local version = ffi.new 'int[1]'
  call(driver, 'cuDriverGetVersion', 'int (*)(int *)', version)
  local release = (read '/proc/driver/nvidia/version' or ''):match '%s(%d+%.%d+[%d.]*)%s'
  local text = ('%sfor CUDA %d.%d'):format(release and release .. ', ' or '', version[0] / 1000, version[0] % 1000 / 10)
  if version[0] >= 13000 then
    has('NVIDIA driver', text)
  else
    lacks('NVIDIA driver', text .. ', too old for CUDA 13',
      'driver 580 or newer: sudo apt-get install nvidia-open, from developer.nvidia.com/cuda-downloads')
  end

  local part = check_part('crescent_cuda', 'for GPUs',
    'sudo apt-get install cuda-toolkit-13-0 cudnn9-cuda-13 && make')
  local complete = true
  for _, l in ipairs {
    { 'libcublasLt.so.13', 'cuBLAS 13', 'cublasLtGetVersion', 10000, 'nvidia-cublas' },
    { 'libcudnn.so.9', 'cuDNN 9', 'cudnnGetVersion', 10000, 'nvidia-cudnn-cu13' },
  } do
    local handle = cuda_library(l[1])
    local v = handle and call(handle, l[3], 'size_t (*)(void)')
    if v then
      v = tonumber(v)
      has(l[2], ('%d.%d.%d, %s'):format(v / l[4], v % l[4] / 100, v % 100, path_of(l[1])))
    else
      complete = false
      lacks(l[2], l[1] .. ' is missing or cannot be loaded', 'pip install ' .. l[5] .. ', or set CUDA_HOME')
    end
  end
  if not ok then
    if complete and part then lacks('GPU', tostring(why)) end
    return
  end
  for i = 0, cr.cuda.count() - 1 do
    local name = 'cuda:' .. i
    local info = cr.cuda.info(name)
    local card = ('%s, capability %s, %d multiprocessors, %.1f GiB, of which %.1f are free'):format(info.name,
      info.capability, info.multiprocessors, info.memory_total / 2 ^ 30, info.memory_free / 2 ^ 30)
    -- A CUDA part that was built for other GPUs can be loaded, but its kernels do not run.
    local works, reason = pcall(cr.scope, function()
      return (cr.ones(2, { device = name }) + 1):to('cpu'):sum():item() == 4 or error('1 + 1 is not 2 on it', 0)
    end)
    if not works then
      lacks('GPU ' .. name, ('%s: %s'):format(card, tostring(reason):gsub('\n.*', '')), ('make CUDA_ARCHS=%s'):format(
        info.capability == '9.0' and '90a' or info.capability:gsub('%.', '')))
    elseif info.memory_free < 4 * 2 ^ 30 then
      note('GPU ' .. name, card .. ': little for the full-size networks (about 3.5 GiB at 256 px, 5 at 512)')
    else
      has('GPU ' .. name, card)
    end
  end
end
gpu()

-- ---- faces --------------------------------------------------------------------------------------

local dir = args.checkpoint
if dir and require 'lfs'.attributes(dir, 'mode') ~= 'directory' then
  lacks('faces', dir .. ' is not a folder')
elseif listed and dir then
  local finder, insight = require 'models.latentsync.finder', require 'models.latentsync.insight'
  local ok, detector = pcall(finder.choose, 'auto', dir, '--')
  if ok and detector == 'insightface' then
    local fine, why = pcall(finder.check, detector, dir)
    if fine then
      has('faces', 'found by InsightFace: ' .. insight.folder(dir))
    else
      lacks('faces', (tostring(why):gsub('^[^\n]-%.lua:%d+: ', '')))
    end
  elseif ok then
    note('faces', "found by MediaPipe; results differ slightly from LatentSync's, because this file is missing: " .. insight.missing(dir))
  else
    lacks('faces', tostring(detector))
  end
else
  print [[

Faces are found and aligned by InsightFace's networks if a checkpoint's folder has them (doctor --checkpoint DIR
checks it), as in LatentSync, else by MediaPipe's face mesh: results then differ slightly from LatentSync's.]]
end

if missing > 0 then
  cli.fail(('doctor: %d thing%s missing: see the lines above')
    :format(missing, missing == 1 and ' is' or 's are'))
end
print '\nNothing is missing.'
