--- A checkpoint's variant in 8 or 4 bits that is made when it is first asked for, and kept: so nothing is added to the
--- checkpoint's own files.

local errors = require 'cr.errors'
local lfs = require 'lfs'

local M = {}

-- Where variants are kept: CR_CACHE, else the user's cache.
local function home()
  local set = os.getenv 'CR_CACHE'
  if set == '' then return nil end
  return set or (os.getenv 'XDG_CACHE_HOME' or (os.getenv 'HOME' or '') .. '/.cache') .. '/crescent'
end

--- The folder of a variant; it is made if it is not there yet, under another name until it is whole.
--- @param checkpoint string
--- @param recipe string a recipe's name or file
--- @param o table {clips = { {video, audio} }, windows, device, progress = fun(text)}
--- @return string folder
function M.folder(checkpoint, recipe, o)
  local at = home()
  if not at then errors.fail 'a variant in 8 or 4 bits is kept in CR_CACHE, which is empty' end
  local unet = require 'models.latentsync.checkpoint'.unet(checkpoint)
  -- Another checkpoint of that name, or another program, has a variant of its own.
  local folder = ('%s/variants/%s-%s-%s'):format(at, checkpoint:match '([^/]*)/*$', recipe:match '[^/]*$',
    require 'cr.weights'.sha256(unet):sub(1, 12))
  if lfs.attributes(folder, 'mode') == 'directory' then return folder end
  local part = ('%s.%d.part'):format(folder, require 'luv'.os_getpid())
  require 'models.laboratory.quantizer'.run {
    checkpoint = checkpoint, out = part, recipe = recipe, clips = o.clips, windows = o.windows, device = o.device,
    dtype = o.device == 'cpu' and 'f32' or 'f16', progress = o.progress, tell = function() end,
  }
  local ok, reason = os.rename(part, folder)
  -- Another run of the program may have been first.
  if not ok and lfs.attributes(folder, 'mode') ~= 'directory' then errors.fail(('%s: %s'):format(folder, reason)) end
  return folder
end

return M
