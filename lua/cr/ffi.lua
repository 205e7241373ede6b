--- The boundary to C: reads core/crescent.h into LuaJIT's FFI and finds libcrescent.so.
--
-- Only files in lua/cr/ may require this. Inside the `crescent` program the library is already linked. Plain `luajit`
-- loads it from the build folder of the source tree or from the installation prefix.

local ffi = require 'ffi'
local errors = require 'cr.errors'

local M = {}

local function exists(path)
  local f = io.open(path, 'rb')
  if f then f:close() end
  return f ~= nil
end

-- The folder that holds lua/, models/, scripts/ and core/crescent.h.
local here = debug.getinfo(1, 'S').source:gsub('^@', '')
M.root = here:match('^(.*)/lua/cr/ffi%.lua$') or (here:match('^lua/cr/ffi%.lua$') and '.')
if not M.root then error('crescent: cannot find its own Lua files; this file was loaded as ' .. here) end

local header = assert(io.open(M.root .. '/core/crescent.h', 'rb'))
local text = header:read('*a')
header:close()

-- Returns the header without preprocessor lines and without the part for C++. Plain searches take a tenth of the time
-- of patterns.
local function declarations()
  local parts, at = {}, 1
  while true do
    local first = text:find('\n#', at, true)
    parts[#parts + 1] = text:sub(at, first)
    if not first then return table.concat(parts) end
    local conditional = text:sub(first + 1, first + 18) == '#ifdef __cplusplus'
    at = text:find('\n', conditional and text:find('#endif', first, true) or first + 1, true)
  end
end
ffi.cdef(declarations())

local function library()
  if pcall(function() return ffi.C.cr_version end) then return ffi.C end
  local tried = os.getenv 'CR_LIBRARY'
  tried = tried and { tried } or
      { M.root .. '/build/libcrescent.so', M.root .. '/../../lib/crescent/libcrescent.so' }
  for _, path in ipairs(tried) do
    if exists(path) then
      M.library_path = path
      -- See core/main.c: OpenMP's threads must not spin for long.
      if not os.getenv 'GOMP_SPINCOUNT' and not os.getenv 'OMP_WAIT_POLICY' then
        ffi.cdef 'int setenv(const char *name, const char *value, int overwrite);'
        ffi.C.setenv('GOMP_SPINCOUNT', '5000', 0)
      end
      return ffi.load(path)
    end
  end
  error('crescent: ' .. tried[1] .. ' is not there: run `make` first, or set CR_LIBRARY to the library')
end

local lib = library()

ffi.cdef [[
void *dlopen(const char *path, int flags);
typedef struct { const char *file; void *base; const char *symbol; void *address; } cr_dl_info;
int dladdr(const void *address, cr_dl_info *info);
]]

--- Returns the shared library that holds a C function, or nil if it is unknown.
--- @param fn any
--- @return string?
function M.file_of(fn)
  local info = ffi.new 'cr_dl_info'
  return ffi.C.dladdr(ffi.cast('void *', fn), info) ~= 0 and ffi.string(info.file) or nil
end

--- Returns a part of the runtime, a shared library beside libcrescent.so that is loaded when one of its functions is
--- first accessed. A machine that lacks the libraries of one part can thus do everything else. CR_MEDIA_LIBRARY and
--- its like name another file.
--- @param name string 'media': crescent_media.so
--- @param remedy string what to do if it is missing
--- @return table of its functions
function M.part(name, remedy)
  local loaded
  local function load_part()
    local file = 'crescent_' .. name .. '.so'
    local path = os.getenv('CR_' .. name:upper() .. '_LIBRARY') or
      ((M.file_of(lib.cr_version) or ''):match '^(.*)/[^/]*$' or '.') .. '/' .. file
    local ok, value = pcall(ffi.load, path)
    if ok then return value end
    local reason = tostring(value):gsub('%s+', ' ')
    local memory = reason:find 'failed to map segment' or reason:find 'annot allocate memory'
    M.fail(('%s: %s cannot be loaded (%s): %s'):format(name, file, reason, memory and 'out of memory' or remedy))
  end
  return setmetatable({}, {
    __index = function(self, key)
      loaded = loaded or load_part()
      local value = loaded[key]
      rawset(self, key, value)
      return value
    end,
  })
end

--- Loads a library of the system, such as 'libcairo.so.2', or returns nil. It is never unloaded, because Lua would
--- unload it at the end of the program, before the library's own exit handlers run.
--- @param name string
--- @return any
function M.system_library(name)
  local LAZY, NODELETE = 0x1, 0x1000
  if ffi.C.dlopen(name, LAZY + NODELETE) == nil then return nil end
  local ok, loaded = pcall(ffi.load, name)
  return ok and loaded or nil
end

-- The function that M.observe has installed.
local observer

--- Installs fn(name, f, ...), which is called instead of each operation f(...) and must return the result of f.
--- Without an argument it removes the function.
--- @param fn function?
--- @return function? the one that was installed before
function M.observe(fn)
  local before = observer
  observer = fn
  M.observed = fn ~= nil
  return before
end

-- Retries an operation once, after a garbage collection, if it found no memory for its result. An operation allocates
-- its result before it does anything else, so running it again is safe.
local function retried(name, f)
  return function(...)
    local rc
    if observer then rc = observer(name, f, ...) else rc = f(...) end
    if rc ~= lib.CR_ENOMEM then return rc end
    collectgarbage()
    collectgarbage()
    lib.cr_memory_collected()
    return f(...)
  end
end

local observed = { cr_fill = true, cr_graph_launch = true } -- these make no tensor, but traces show them
local function makes_tensor(name) return observed[name] or text:find('\nint ' .. name .. '(cr_tensor *out', 1, true) ~= nil end

--- The functions and constants that crescent.h declares.
M.C = setmetatable({}, {
  __index = function(self, name)
    local value = lib[name]
    if makes_tensor(name) then value = retried(name, value) end
    rawset(self, name, value)
    return value
  end,
})

-- Returns an enum of crescent.h: its names by number, and its numbers by name.
local function named(count, name_of)
  local list = {}
  for i = 0, count - 1 do
    local name = ffi.string(name_of(i))
    list[i], list[name] = name, i
  end
  return list
end
M.dtypes = named(M.C.CR_DTYPES, M.C.cr_dtype_name)
M.acts = named(M.C.CR_ACTS, M.C.cr_act_name)
M.resize_methods = named(M.C.CR_RESIZE_METHODS, M.C.cr_resize_method_name)
M.generator_kinds = named(M.C.CR_RNG_KINDS, M.C.cr_generator_kind_name)
--- The operations of cr_unary, cr_binary and cr_reduce: unary[2] is 'exp', unary.exp is 2.
M.unary = named(M.C.CR_UNARY_OPS, M.C.cr_unary_name)
M.binary = named(M.C.CR_BINARY_OPS, M.C.cr_binary_name)
M.reduce = named(M.C.CR_REDUCE_OPS, M.C.cr_reduce_name)

--- Returns the comments that crescent.h has beside the enumerators of these operations, by the operations' names.
--- @param names table M.unary, M.binary or M.reduce
--- @param count string the enumerator that ends the enum
--- @return table<string, string>
function M.comments_of(names, count)
  local block = text:sub(1, text:find(count, 1, true)):match '.*enum {(.*)'
  local comments = {}
  for enumerator, comment in block:gmatch '(CR_[%u%d_]+),%s*/%*%s*(.-)%s*%*/' do
    comments[names[tonumber(M.C[enumerator])]] = comment:gsub('%s*\n%s*%*?%s*', ' ')
  end
  return comments
end

--- Raises cr_last_error() at the position of the first caller outside lua/cr/.
--- @param prefix string|false|nil what to put before the message, such as the path of a layer
function M.raise(prefix)
  M.fail((prefix and prefix .. ': ' or '') .. ffi.string(M.C.cr_last_error()))
end

--- Raises `message` at the position of the first caller outside lua/cr/.
function M.fail(message)
  local level = errors.caller(2)
  error(message, level or 0)
end

--- Makes text from a file safe for one line of a message: control characters are escaped, and long text is cut.
--- @param bytes string
--- @return string
function M.printable(bytes) return ffi.string(M.C.cr_printable(bytes, #bytes)) end

--- Returns the result of a C function, or raises its message if the result is negative.
function M.check(rc)
  if rc < 0 then M.raise() end
  return rc
end

return M
