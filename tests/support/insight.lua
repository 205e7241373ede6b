--- Small networks with the layers of InsightFace's, and the images for which tests/golden/insight.safetensors has the
--- package's results.

local cr = require 'cr'
local detector = require 'models.networks.insight_detector'
local ffi = require 'ffi'
local golden = require 'tests.support.golden'
local insight = require 'models.latentsync.insight'
local landmarks = require 'models.networks.insight_landmarks'

local M = {}

--- The golden values by name; the caller frees them.
--- @return table<string, Tensor>
function M.numbers() return cr.load(golden.folder .. 'insight.safetensors') end

--- The bytes of a network's file, by its name in the pack.
--- @return string
function M.bytes(name)
  local numbers = M.numbers()
  local x = numbers[name == detector.FILE and 'det_nano' or name == landmarks.FILE and 'lmk_nano']
  local bytes = ffi.string(x:pointer(), x:numel())
  for _, y in pairs(numbers) do y:free() end
  return bytes
end

--- Writes the pack into a checkpoint's folder; returns the pack's folder.
--- @param dir string
--- @param change table<string, string|boolean>? replacements of files by name; false omits a file
--- @return string
function M.pack(dir, change)
  local folder = insight.folder(dir)
  os.execute(("rm -rf '%s' && mkdir -p '%s'"):format(folder, folder))
  local files = { [detector.FILE] = true, [landmarks.FILE] = true }
  for name, bytes in pairs(change or {}) do files[name] = bytes end
  for name, bytes in pairs(files) do
    if bytes then
      local f = assert(io.open(folder .. '/' .. name, 'wb'))
      f:write(bytes == true and M.bytes(name) or bytes)
      f:close()
    end
  end
  return folder
end

--- The image of tests/golden/insight.py.
--- @return Tensor u8 [height width 3]
function M.picture(height, width, seed)
  local out = cr.empty({ height, width, 3 }, { dtype = 'u8' })
  local p = out:pointer()
  for y = 0, height - 1 do
    for x = 0, width - 1 do
      for c = 0, 2 do
        local a = math.abs((x * (3 + seed) + y * 2 + c * 90 + seed * 37) % 510 - 255)
        local b = math.abs((y * (5 - seed % 3) - x + c * 60 + 70000) % 510 - 255)
        p[(y * width + x) * 3 + c] = math.floor((a * 2 + b) / 3)
      end
    end
  end
  return out
end

return M
