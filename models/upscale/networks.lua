--- Upscaling networks by name: those that `make models` fetches, or a user's file.

local cr = require 'cr'
local errors = require 'cr.errors'
local files = require 'cr.files'
local upscaler = require 'models.networks.upscaler'

local M = {}

--- Names of fetched networks. x4plus keeps photographs realistic; x4plus-anime (3 times cheaper) and animevideov3 (29
--- times cheaper) were trained on drawings.
M.names = { 'x4plus', 'x4plus-anime', 'animevideov3' }

local FOLDER = cr.root .. '/models/fetched/upscale/'

--- The file for a name or a path.
--- @param name string
--- @param option string? the option's name for messages: '--model'
--- @return string
function M.file(name, option)
  for _, known in ipairs(M.names) do
    if name == known then
      local path = FOLDER .. name .. '.safetensors'
      if not require 'lfs'.attributes(path, 'mode') then
        errors.fail(('the network %s is not fetched: run `make models`'):format(name))
      end
      return path
    end
  end
  if not name:find '[./]' then
    errors.fail(("there is no network '%s': did you mean '%s'? (A file's name has an ending.)"):format(name,
      errors.nearest(name, M.names)))
  end
  files.check_readable(option or '--model', name)
  return name
end

-- The authors' variant of the same network that removes less noise, beside the file: realesr-general-wdn-x4v3.pth.
local function second_of(path)
  local folder, name = path:match '^(.-)([^/]*)$'
  local other, count = name:gsub('general%-', 'general-wdn-', 1)
  if count == 0 or name:find('general-wdn-', 1, true) then
    errors.fail(('--denoise: %s has no second network to mix it with: only realesr-general-x4v3 has'):format(path))
  end
  files.check_readable('--denoise', folder .. other)
  return folder .. other
end

--- Loads a network.
--- @param name string a name or a file
--- @param options table? {device = 'cpu', dtype = 'f32', denoise = weight of general-x4v3, 0 to 1, in a blend with
---   general-wdn-x4v3}
--- @return table from models/networks/upscaler.lua
function M.load(name, options)
  options = options or {}
  local path = M.file(name)
  return upscaler.load(path, {
    device = options.device, dtype = options.dtype, share = options.denoise, other = options.denoise and second_of(path) or nil,
  })
end

return M
