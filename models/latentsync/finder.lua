--- Which networks find the faces: the setting `detector`.

local errors = require 'cr.errors'
local insight = require 'models.latentsync.insight'

local M = {}

-- As people know them.
local SHOWN = { insightface = 'InsightFace', mediapipe = 'MediaPipe' }

--- A detector's name for people.
---@param name 'insightface'|'mediapipe'|nil nil: none is used
---@return string
function M.shown(name) return SHOWN[name] or 'the points given' end

--- The detector that a setting means for a checkpoint's folder. A file of InsightFace's pack that is missing where it is
--- asked for, or where the other one is there, is refused.
---@param name string 'auto', 'insightface' or 'mediapipe'
---@param dir string? the checkpoint's folder
---@param dash string? before the option's name in a sentence: '--'
---@return 'insightface'|'mediapipe'
function M.choose(name, dir, dash)
  if name == 'insightface' and not dir then
    errors.failf("%sdetector insightface: a checkpoint's folder, in which its networks are, is not named", dash or '')
  end
  if name == 'mediapipe' or not dir then return 'mediapipe' end
  local missing, any = insight.missing(dir)
  if not missing then return 'insightface' end
  if name == 'auto' and not any then return 'mediapipe' end
  errors.fail(("%s is not there: put InsightFace's pack buffalo_l there, or leave it aside by %sdetector mediapipe"):format(missing,
    dash or ''))
end

--- Reads a detector's files, so that damaged ones are told before anything starts.
---@param name 'insightface'|'mediapipe'|nil nil: none is used
---@param dir string the checkpoint's folder
function M.check(name, dir)
  if name == 'insightface' then insight.load({ dir = insight.folder(dir) }):free() end
end

--- The checkpoint's files that a detector is made of.
---@param name 'insightface'|'mediapipe'|nil nil: none is used
---@param dir string the checkpoint's folder
---@return table<string, string> paths by what they are
function M.files(name, dir) return name == 'insightface' and insight.files(dir) or {} end

--- What finds faces, as models/latentsync/people.lua uses it.
---@param name 'insightface'|'mediapipe'
---@param dir string? the checkpoint's folder
---@param options {device: string, alone: boolean} where it runs and frames lie; whether each frame is looked at by itself
---@return table finder
function M.load(name, dir, options)
  if name == 'insightface' then return insight.load { dir = insight.folder(dir), device = options.device } end
  return require 'models.latentsync.face'.load { device = options.device, alone = options.alone }
end

return M
