--- What is asked for: a JobRequest, as a server's client, a queue or a page writes it in JSON, and the engine's settings
--- that it means. Whoever takes jobs from outside goes through this door:
--
--     local request = requests.check(body)                  -- {kind, video, audio, voices, preset, settings}, or a problem is raised
--     requests.check_sampling(request, checkpoint)          -- what only the scheduler and its options can say
--     local given = requests.settings(request, path_of)     -- for models/latentsync/job.lua or models/upscale/job.lua
--
-- Which settings may be asked for, and their types and ranges, are rows of models/latentsync/settings.lua and
-- models/upscale/settings.lua (their field `client`). Invariants: nothing in a request names a file of this machine: files are
-- the names that whoever calls gave them, which path_of turns into paths; a text of the settings is never a path.

local choices = require 'models.latentsync.choice'
local errors = require 'cr.errors'
local latentsync = require 'models.latentsync.settings'
local presets = require 'models.service.presets'
local problems = require 'cr.serve.problem'
local shape = require 'cr.serve.shape'
local shown = require 'cr.serve.text'.shown
local upscale = require 'models.upscale.settings'

local M = {}

local MOST_VOICES = 16
local file = { type = 'string', minLength = 1, maxLength = 2000,
  description = "an uploaded file's id, or a URL https://... of a host that the server allows" }
M.file = file

local preset_names = {}
for i, preset in ipairs(presets) do preset_names[i] = preset.name end

--- The settings that may be asked for, by kind of job.
M.kinds = { lipsync = latentsync.schema:for_clients(), upscale = upscale:for_clients() }

local function settings_of(kind)
  return { type = 'object', additionalProperties = false, properties = M.kinds[kind]:json_schema() }
end

local function selector_problem(text)
  if not choices.holds(text) then return ("'%s' is none of: %s"):format(shown(text), choices.wanted) end
end

--- The JSON Schemas of a request, by kind of job.
M.schemas = {
  lipsync = {
    type = 'object', additionalProperties = false, required = { 'video' },
    anyOf = { { required = { 'audio' } }, { required = { 'voices' } } },
    properties = {
      kind = { type = 'string', enum = { 'lipsync' }, default = 'lipsync' }, video = file, audio = file,
      voices = {
        type = 'array', minItems = 1, maxItems = MOST_VOICES,
        items = {
          type = 'object', additionalProperties = false, required = { 'face', 'audio' },
          properties = {
            face = { type = 'string', maxLength = 40, description = 'whose voice: ' .. choices.wanted, holds = selector_problem,
              pattern = '^(largest|first|left|right|speaking|all|[1-9][0-9]{0,3}|[0-9]+,[0-9]+)$' },
            audio = file,
          },
        },
      },
      preset = { type = 'string', enum = preset_names }, settings = settings_of 'lipsync',
    },
  },
  upscale = {
    type = 'object', additionalProperties = false, required = { 'kind', 'video' },
    properties = { kind = { type = 'string', enum = { 'upscale' } }, video = file, settings = settings_of 'upscale' },
  },
}

-- 'settings/steps' is told as 'steps'.
local function field_of(where) return where and where:gsub('^settings/', '') end

--- A request, checked and complete but for what only its files and the model can tell.
--- @param body any as lua-cjson reads it
--- @return table request {kind, video, audio, voices, preset, settings (typed, by the rows' names)}
function M.check(body)
  local kind = type(body) == 'table' and body.kind or 'lipsync'
  local schema = M.schemas[kind]
  if not schema then problems.fail(400, ("kind: '%s' is none of lipsync, upscale"):format(shown(kind)), 'kind') end
  local problem, where = shape.check(schema, body)
  where = field_of(where)
  if problem then problems.fail(400, where and not problem:find ' is missing$' and where .. ': ' .. problem or problem, where) end
  if kind == 'lipsync' and (body.audio == nil) == (body.voices == nil) then
    problems.fail(400, body.audio and 'voices: audio is there too: leave one of them out' or
      'audio is missing: the voice, or voices, one for each of several people', body.audio and 'voices' or 'audio')
  end
  local settings, wrong, name = M.kinds[kind]:read_json(body.settings or {})
  if not settings then problems.fail(400, wrong, name) end
  return {
    kind = kind, video = body.video, audio = body.audio, voices = body.voices, preset = body.preset, settings = settings,
  }
end

-- The settings of a preset, and those that were given, which win.
local function joined(request)
  local all = {}
  for _, preset in ipairs(presets) do
    if preset.name == request.preset then
      for key, value in pairs(preset.settings) do all[key] = value end
    end
  end
  for key, value in pairs(request.settings) do all[key] = value end
  return all
end

--- Raises what a scheduler, guidance or cache says to the settings.
--- @param request table
--- @param checkpoint string the model's folder
function M.check_sampling(request, checkpoint)
  if request.kind ~= 'lipsync' then return end
  local folder = require 'models.latentsync.checkpoint'
  local _, _, sampling = folder.unet(checkpoint)
  local s = latentsync.of_model(joined(request), sampling, folder.scheduler(checkpoint))
  local ok, problem = pcall(require 'models.latentsync.sampler'.new, s)
  if not ok then problems.fail(422, errors.is_failure(problem) and problem.message or tostring(problem)) end
end

--- The files that a request names: {name, field} each.
--- @param request table
--- @return table[]
function M.files(request)
  local list = { { name = request.video, field = 'video' } }
  if request.audio then list[#list + 1] = { name = request.audio, field = 'audio' } end
  for i, voice in ipairs(request.voices or {}) do list[#list + 1] = { name = voice.audio, field = ('voices/%d'):format(i - 1) } end
  return list
end

--- The engine's settings, but for what is the server's own: where the result goes, the model, the device.
--- @param request table from check
--- @param path_of fun(name: string): string where a file of the request lies
--- @return table
function M.settings(request, path_of)
  local s = joined(request)
  s.video = path_of(request.video)
  if request.kind == 'lipsync' then
    s.audio = request.audio and path_of(request.audio)
    for i, voice in ipairs(request.voices or {}) do
      s.voice = s.voice or {}
      s.voice[i] = voice.face .. '=' .. path_of(voice.audio)
    end
  end
  return s
end

--- How long the result may become, in seconds, and how many times larger a side of it.
--- @param request table
--- @param video table what was found in the file: {video = {width, height, seconds}, audio = {seconds}}
--- @param sounds table[] the same of the voices
--- @return number seconds
--- @return number scale
function M.extent(request, video, sounds)
  local s = joined(request)
  local longest = 0
  if request.kind == 'upscale' or s.tail == 'keep' then longest = video.video and video.video.seconds or 0 end
  for _, sound in ipairs(sounds) do longest = math.max(longest, sound.audio and sound.audio.seconds or 0) end
  longest = math.min(math.max(0, longest - (s.start or 0)), s.duration or math.huge)
  local times = request.kind == 'upscale' and (s.scale or 4) or tonumber((s.upscale or ''):match '^frame:([%d.]+)') or 1
  return longest, times
end

return M
