--- Chooses the networks that find faces: the setting `detector`.

local errors = require 'cr.errors'
local insight = require 'models.latentsync.insight'

local M = {}

-- Their names in messages.
local SHOWN = { insightface = 'InsightFace', mediapipe = 'MediaPipe' }

--- A detector's name for messages.
--- @param name 'insightface'|'mediapipe'|nil nil if none is used
--- @return string
function M.shown(name) return SHOWN[name] or 'the points given' end

--- Resolves the setting to a detector. If InsightFace is requested, or one of its two files exists, a missing file is
--- an error.
--- @param name string 'auto', 'insightface' or 'mediapipe'
--- @param dir string? the checkpoint's folder
--- @param dash string? '--' to name the option as on the command line
--- @return 'insightface'|'mediapipe'
function M.choose(name, dir, dash)
  if name == 'insightface' and not dir then
    errors.failf("%sdetector insightface needs a checkpoint's folder that holds its networks", dash or '')
  end
  if name == 'mediapipe' or not dir then return 'mediapipe' end
  local missing, any = insight.missing(dir)
  if not missing then return 'insightface' end
  if name == 'auto' and not any then return 'mediapipe' end
  errors.fail(("%s does not exist: put InsightFace's pack buffalo_l there, or choose %sdetector mediapipe"):format(missing,
    dash or ''))
end

--- Reads a detector's files, so that damaged files are reported before the job starts.
--- @param name 'insightface'|'mediapipe'|nil nil if none is used
--- @param dir string the checkpoint's folder
function M.check(name, dir)
  if name == 'insightface' then insight.load({ dir = insight.folder(dir) }):free() end
end

--- The files of a checkpoint that a detector needs.
--- @param name 'insightface'|'mediapipe'|nil nil if none is used
--- @param dir string the checkpoint's folder
--- @return table<string, string> paths by role
function M.files(name, dir) return name == 'insightface' and insight.files(dir) or {} end

--- Loads a detector, as models/latentsync/people.lua uses it.
--- @param name 'insightface'|'mediapipe'
--- @param dir string? the checkpoint's folder
--- @param options {device: string, alone: boolean} the device of networks and frames; whether each frame is treated independently
--- @return table finder
function M.load(name, dir, options)
  if name == 'insightface' then return insight.load { dir = insight.folder(dir), device = options.device } end
  return require 'models.latentsync.face'.load { device = options.device, alone = options.alone }
end

return M
