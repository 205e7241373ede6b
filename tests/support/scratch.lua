--- Temporary files of tests in their own folder, and the few binary formats that they need.

local bit = require 'bit'
local ffi = require 'ffi'

local M = {}

-- In memory if possible, because disk file systems delay the rewriting of files.
local unique = os.tmpname()
os.remove(unique)
local folder = (require 'lfs'.attributes('/dev/shm', 'mode') and '/dev/shm/' or '/tmp/') .. unique:match '[^/]*$'
assert(require 'lfs'.mkdir(folder))
M.folder = folder

-- Is removed with the Lua state, however the test ends.
M.guard = newproxy(true)
getmetatable(M.guard).__gc = function() os.execute("rm -rf '" .. folder .. "'") end

--- A path in the folder.
function M.path(name) return folder .. '/' .. name end

--- Writes bytes to a file in the folder; returns its path.
function M.write(name, bytes)
  local path = M.path(name)
  local handle = assert(io.open(path, 'wb'))
  assert(handle:write(bytes))
  handle:close()
  return path
end

local trees = 0

--- Creates a folder with files, {['whisper/tiny.pt'] = bytes, ...}; returns its path.
function M.tree(files)
  trees = trees + 1
  local name = 'tree' .. trees
  assert(require 'lfs'.mkdir(M.path(name)))
  for file, bytes in pairs(files) do
    local at = name
    for part in file:gmatch '([^/]+)/' do
      at = at .. '/' .. part
      require 'lfs'.mkdir(M.path(at))
    end
    M.write(name .. '/' .. file, bytes)
  end
  return M.path(name)
end

--- A file's bytes.
function M.read(path)
  local handle = assert(io.open(path, 'rb'))
  local bytes = handle:read '*a'
  handle:close()
  return bytes
end

--- A number as `width` little-endian bytes.
function M.le(value, width)
  local bytes = {}
  for i = 1, width do
    bytes[i] = string.char(value % 256)
    value = math.floor(value / 256)
  end
  return table.concat(bytes)
end

--- A WAV file, 16 kHz mono, with the given 16-bit samples as bytes.
function M.wav(samples)
  return 'RIFF' .. M.le(36 + #samples, 4) .. 'WAVEfmt ' .. M.le(16, 4) .. M.le(1, 2) .. M.le(1, 2) .. M.le(16000, 4) ..
    M.le(32000, 4) .. M.le(2, 2) .. M.le(16, 2) .. 'data' .. M.le(#samples, 4) .. samples
end

--- A WAV file of samples, mono at 16 kHz; values beyond full scale are clipped.
--- @param x Tensor f32 [n]
function M.wav_of(x)
  local bytes = {}
  for i, v in ipairs((x:clamp(-1, 1) * 32767):tolist()) do bytes[i] = M.le(math.floor(v + 0.5) % 65536, 2) end
  return M.wav(table.concat(bytes))
end

--- float32 numbers as bytes.
function M.floats(...)
  local n = select('#', ...)
  return ffi.string(ffi.new('float[?]', n, ...), 4 * n)
end

--- A safetensors file: its header as text, then the data.
function M.safetensors(header, numbers) return M.le(#header, 8) .. header .. (numbers or '') end

local crc_table
local function crc32(bytes)
  if not crc_table then
    crc_table = {}
    for i = 0, 255 do
      local c = i
      for _ = 1, 8 do
        c = bit.band(c, 1) == 1 and bit.bxor(bit.rshift(c, 1), 0xedb88320) or bit.rshift(c, 1)
      end
      crc_table[i] = c
    end
  end
  local c = -1
  for i = 1, #bytes do
    c = bit.bxor(bit.rshift(c, 8), crc_table[bit.band(bit.bxor(c, bytes:byte(i)), 255)])
  end
  return bit.bnot(c) % 2 ^ 32
end

ffi.cdef 'int compress2(uint8_t *out, unsigned long *size, const char *bytes, unsigned long n, int level);'

--- Compresses bytes as in method 8 of zip archives.
function M.deflate(bytes)
  local size = ffi.new('unsigned long[1]', #bytes + 1024)
  local out = ffi.new('uint8_t[?]', size[0])
  assert(ffi.load 'z'.compress2(out, size, bytes, #bytes, 9) == 0)
  return ffi.string(out + 2, tonumber(size[0]) - 6) -- without zlib's header and checksum
end

--- A zip archive with members {name, bytes, deflated = false}. zip64: sizes and offsets are in zip64 fields.
function M.zip(members, zip64)
  local parts, central, at = {}, {}, 0
  local big = 0xffffffff
  for _, m in ipairs(members) do
    local name, bytes = m[1], m[2]
    local crc, whole, method = crc32(bytes), #bytes, m.deflated and 8 or 0
    if m.deflated then bytes = M.deflate(bytes) end
    local sizes = M.le(crc, 4) .. M.le(#bytes, 4) .. M.le(whole, 4)
    parts[#parts + 1] = 'PK\3\4' .. M.le(20, 2) .. M.le(0, 2) .. M.le(method, 2) .. M.le(0, 4) .. sizes ..
        M.le(#name, 2) .. M.le(0, 2) .. name .. bytes
    local extra, place = '', M.le(at, 4)
    if zip64 then
      extra = M.le(1, 2) .. M.le(24, 2) .. M.le(#bytes, 8) .. M.le(#bytes, 8) .. M.le(at, 8)
      sizes, place = M.le(crc, 4) .. M.le(big, 4) .. M.le(big, 4), M.le(big, 4)
    end
    central[#central + 1] = 'PK\1\2' .. M.le(20, 2) .. M.le(20, 2) .. M.le(0, 2) .. M.le(method, 2) .. M.le(0, 4) ..
        sizes .. M.le(#name, 2) .. M.le(#extra, 2) .. M.le(0, 2) .. M.le(0, 4) .. M.le(0, 4) .. place .. name .. extra
    at = at + #parts[#parts]
  end
  local directory = table.concat(central)
  local tail = 'PK\5\6' .. M.le(0, 4) .. M.le(#members, 2) .. M.le(#members, 2) .. M.le(#directory, 4) .. M.le(at, 4) .. M.le(0, 2)
  if zip64 then
    tail = 'PK\6\6' .. M.le(44, 8) .. M.le(45, 2) .. M.le(45, 2) .. M.le(0, 8) .. M.le(#members, 8) .. M.le(#members, 8) ..
        M.le(#directory, 8) .. M.le(at, 8) ..
        'PK\6\7' .. M.le(0, 4) .. M.le(at + #directory, 8) .. M.le(1, 4) ..
        'PK\5\6' .. M.le(0, 4) .. M.le(0xffff, 2) .. M.le(0xffff, 2) .. M.le(big, 4) .. M.le(big, 4) .. M.le(0, 2)
  end
  return table.concat(parts) .. directory .. tail
end

--- A command's output (stdout and stderr) and exit status.
function M.command(line)
  local log = M.path 'command.log'
  local status = os.execute(line .. ' >' .. log .. ' 2>&1 </dev/null')
  if status == true then status = 0 end
  if type(status) == 'number' and status >= 256 then status = status / 256 end
  return M.read(log), status
end

--- The program under test.
M.program = os.getenv 'CRESCENT' or require 'cr'.root .. '/build/crescent'

return M
