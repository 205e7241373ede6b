--- Quantized variants of a checkpoint, created when first requested and cached, so that nothing is added to the
--- checkpoint's own files.

local errors = require 'cr.errors'
local lfs = require 'lfs'

local M = {}

-- The cache folder for variants: CR_CACHE, else the user's cache.
local function home()
  local set = os.getenv 'CR_CACHE'
  if set == '' then return nil end
  return set or (os.getenv 'XDG_CACHE_HOME' or (os.getenv 'HOME' or '') .. '/.cache') .. '/crescent'
end

--- The folder of a variant. If it does not exist, it is created under a temporary name and renamed when it is
--- complete.
--- @param checkpoint string
--- @param recipe string a recipe's name or file
--- @param o table {clips = { {video, audio} }, windows, device, progress = fun(text)}
--- @return string folder
function M.folder(checkpoint, recipe, o)
  local at = home()
  if not at then errors.fail 'a quantized variant needs a cache folder, but CR_CACHE is empty' end
  local unet = require 'models.latentsync.checkpoint'.unet(checkpoint)
  -- The name depends on the checkpoint's files and the program's version.
  local folder = ('%s/variants/%s-%s-%s'):format(at, checkpoint:match '([^/]*)/*$', recipe:match '[^/]*$',
    require 'cr.weights'.sha256(unet):sub(1, 12))
  if lfs.attributes(folder, 'mode') == 'directory' then return folder end
  local part = ('%s.%d.part'):format(folder, require 'luv'.os_getpid())
  require 'models.laboratory.quantizer'.run {
    checkpoint = checkpoint, out = part, recipe = recipe, clips = o.clips, windows = o.windows, device = o.device,
    dtype = o.device == 'cpu' and 'f32' or 'f16', progress = o.progress, tell = function() end,
  }
  local ok, reason = os.rename(part, folder)
  -- Another process may have created it first.
  if not ok and lfs.attributes(folder, 'mode') ~= 'directory' then errors.fail(('%s: %s'):format(folder, reason)) end
  return folder
end

return M
