--- Creates the inputs of the media tests with the ffmpeg program, in a temporary folder.

local ffi = require 'ffi'

local inputs = {}

inputs.folder = os.tmpname()
os.remove(inputs.folder)
assert(os.execute('mkdir "' .. inputs.folder .. '"') == 0)

--- A path in the folder.
function inputs.path(name) return inputs.folder .. '/' .. name end

local function run(command)
  local status = os.execute(('cd "%s" && %s </dev/null >log 2>&1'):format(inputs.folder, command))
  return status == 0 or status == true
end

inputs.has_ffmpeg = run 'ffmpeg -version'

--- Runs ffmpeg with these arguments in the folder; returns false if it failed (an encoder may be missing).
function inputs.ffmpeg(arguments) return run('ffmpeg -v error -y ' .. arguments) end

function inputs.read_file(name)
  local file = io.open(inputs.path(name), 'rb')
  if not file then return nil end
  local bytes = file:read '*a'
  file:close()
  return bytes
end

function inputs.write_file(name, bytes)
  local file = assert(io.open(inputs.path(name), 'wb'))
  file:write(bytes)
  file:close()
  return inputs.path(name)
end

--- Names in the folder that look like unfinished outputs.
function inputs.leftovers()
  local pipe = io.popen(('ls -A "%s" | grep "^\\..*tmp"'):format(inputs.folder))
  local names = pipe:read '*a'
  pipe:close()
  return names
end

--- A tensor's bytes.
function inputs.bytes(t)
  local dense = t:contiguous()
  local size = ({ u8 = 1, f32 = 4 })[t.dtype]
  return ffi.string(dense:pointer(), dense:numel() * size)
end

function inputs.remove() os.execute(('rm -rf "%s"'):format(inputs.folder)) end

return inputs
