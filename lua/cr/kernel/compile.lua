--- Compiles source to callable code: by `cc` for the CPU, by NVRTC for a card. Results are cached on disk by source,
--- compiler or card, and version, so that a later process only loads them.

local ffi = require 'ffi'
local base = require 'cr.ffi'
local files = require 'cr.files'

local C = base.C

local M = {}

-- Returns the cache folder, which also holds the algorithm choices for cards, or nil if nothing is cached.
local function folder()
  local set = os.getenv 'CR_CACHE'
  if set == '' then return nil end
  return (set or (os.getenv 'XDG_CACHE_HOME' or (os.getenv 'HOME' or '') .. '/.cache') .. '/crescent') .. '/kernels'
end

-- Returns a 48-bit hash of a text as a short name. Readers of the cache compare the whole text, so collisions are harmless.
local function name_of(text)
  local a, b = 5381, 52711
  for i = 1, #text do
    local byte = text:byte(i)
    a, b = (a * 33 + byte) % 2 ^ 24, (b * 65599 + byte) % 2 ^ 24
  end
  return ('%06x%06x'):format(a, b)
end

-- ---- the CPU ------------------------------------------------------------------------------------------------

ffi.cdef 'void crescent_kernel(long long n, long long length, const long long *parts, void *const *p, const double *s);'

local FLAGS = '-std=gnu11 -O3 -march=native -fno-math-errno -fopenmp -shared -fPIC -w'

local function shell_word(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

-- Compiles source to a file, or raises the compiler's message.
local function build(source, path)
  local text = path .. '.c'
  files.write(text, source)
  local log = path .. '.log'
  local status = os.execute(('cc %s -o %s %s -lm >%s 2>&1'):format(FLAGS, shell_word(path .. '.new'), shell_word(text), shell_word(log)))
  local said = files.read(log) or ''
  os.remove(text)
  os.remove(log)
  if status ~= 0 and status ~= true then
    if said:find 'not found' then base.fail "kernel: there is no C compiler: install `cc` (Debian: gcc), or put the tensors on a card" end
    base.fail('kernel: the C compiler says: ' .. base.printable(said:match '^[^\n]*' or ''))
  end
  os.rename(path .. '.new', path)
end

-- Returns the processor's model and features, on which the compiled code depends.
local function processor()
  local f = io.open('/proc/cpuinfo', 'rb')
  local text = f and f:read(65536) or ''
  if f then f:close() end
  return (text:match 'flags[^\n]*' or '') .. (text:match 'model name[^\n]*' or '')
end

-- Returns the contents of a cached file, or nil unless its key file equals `key`.
local function kept(path, key) return files.read(path .. '.key') == key and files.read(path) end

local loaded = {} -- handles live as long as the program, because their functions may be called at any time

--- Compiles C source and returns its function crescent_kernel.
--- @param source string
--- @return function
function M.c(source)
  if loaded[source] then return loaded[source].kernel end
  local place, key = folder(), table.concat({ source, FLAGS, ffi.string(C.cr_version()), processor() }, '\0')
  local keeps = place ~= nil and files.make_folder(place)
  local path = keeps and ('%s/%s.so'):format(place, name_of(key)) or os.tmpname()
  local ok, code
  if keeps and kept(path, key) then ok, code = pcall(ffi.load, path) end
  if not ok then
    build(source, path)
    code = ffi.load(path)
    if keeps then pcall(files.write, path .. '.key', key) else os.remove(path) end
  end
  loaded[source] = { code = code, kernel = code.crescent_kernel }
  return loaded[source].kernel
end

-- ---- cards --------------------------------------------------------------------------------------------------

local NVRTC = { 'libnvrtc.so.13', 'libnvrtc.so.12' }
local nvrtc

local function library()
  if nvrtc then return ffi.C end
  for _, name in ipairs(NVRTC) do
    if C.cr_cuda_library(name) >= 0 then
      ffi.cdef [[
        typedef struct crescent_nvrtc *crescent_nvrtc_program;
        int nvrtcCreateProgram(crescent_nvrtc_program *, const char *, const char *, int, const char *const *, const char *const *);
        int nvrtcDestroyProgram(crescent_nvrtc_program *);
        int nvrtcCompileProgram(crescent_nvrtc_program, int, const char *const *);
        int nvrtcGetCUBINSize(crescent_nvrtc_program, size_t *);
        int nvrtcGetCUBIN(crescent_nvrtc_program, char *);
        int nvrtcGetProgramLogSize(crescent_nvrtc_program, size_t *);
        int nvrtcGetProgramLog(crescent_nvrtc_program, char *);
      ]]
      nvrtc = true
      return ffi.C
    end
  end
  base.fail 'kernel: libnvrtc.so.13, which compiles kernels for a card, is missing: pip install nvidia-cuda-nvrtc, or set CUDA_HOME'
end

-- Compiles CUDA source to a cubin, or raises the compiler's message with the name and line of the source.
local function cubin(source, name, arch)
  local api = library()
  local program = ffi.new 'crescent_nvrtc_program[1]'
  if api.nvrtcCreateProgram(program, source, name, 0, nil, nil) ~= 0 then base.fail 'kernel: NVRTC cannot be started' end
  local options = { '--gpu-architecture=sm_' .. arch, '--std=c++17', '-lineinfo' }
  local list = ffi.new('const char *[?]', #options, options)
  local rc = api.nvrtcCompileProgram(program[0], #options, list)
  local size = ffi.new 'size_t[1]'
  if rc ~= 0 then
    api.nvrtcGetProgramLogSize(program[0], size)
    local log = ffi.new('char[?]', tonumber(size[0]) + 1)
    api.nvrtcGetProgramLog(program[0], log)
    api.nvrtcDestroyProgram(program)
    local said = ffi.string(log)
    base.fail(('kernel: %s'):format(base.printable(said:match '[^\n]*error[^\n]*' or said:match '^[^\n]*' or 'NVRTC failed')))
  end
  api.nvrtcGetCUBINSize(program[0], size)
  local code = ffi.new('char[?]', tonumber(size[0]))
  api.nvrtcGetCUBIN(program[0], code)
  api.nvrtcDestroyProgram(program)
  return ffi.string(code, size[0])
end

--- Returns the code of CUDA source for a card, compiled or from the cache.
--- @param source string
--- @param name string name of the source in messages
--- @param device string 'cuda:0'
--- @return string
function M.cuda(source, name, device)
  local info = ffi.new 'cr_device_info'
  base.check(C.cr_device_info_get(require 'cr.tensor'.device_code('kernel', device), info))
  local arch = ('%d%d%s'):format(info.major, info.minor, info.major >= 9 and 'a' or '')
  local place = folder()
  local key = table.concat({ source, arch, ffi.string(C.cr_version()) }, '\0')
  local path = place and files.make_folder(place) and ('%s/%s.cubin'):format(place, name_of(key)) or nil
  local code = path and kept(path, key)
  if code then return code end
  code = cubin(source, name, arch)
  if path and pcall(files.write, path, code) then pcall(files.write, path .. '.key', key) end
  return code
end

return M
