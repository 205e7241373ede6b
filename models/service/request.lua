--- JobRequests, as HTTP clients, queues and the page write them in JSON, and their translation to the engine's
--- settings. Every job from outside is checked here:
--
--     local request = requests.check(body)                  -- {kind, video, audio, voices, preset, settings}; raises problems
--     requests.check_sampling(request, checkpoint)          -- checks that need the scheduler and its options
--     local given = requests.settings(request, path_of)     -- for models/latentsync/job.lua or models/upscale/job.lua
--
-- The rows of models/latentsync/settings.lua and models/upscale/settings.lua say which settings clients may set
-- (field `client`), with types and ranges. Invariants: a request never names a file of this machine. Its files are
-- ids, which the caller's path_of maps to paths, and no text among the settings is used as a path.

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

--- The settings that clients may set, by kind of job.
M.kinds = { lipsync = latentsync.schema:for_clients(), upscale = upscale:for_clients() }

local function settings_of(kind)
  return { type = 'object', additionalProperties = false, properties = M.kinds[kind]:json_schema() }
end

local function selector_problem(text)
  if not choices.holds(text) then return ("'%s' is not one of: %s"):format(shown(text), choices.wanted) end
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

-- Reports 'settings/steps' as 'steps'.
local function field_of(where) return where and where:gsub('^settings/', '') end

--- Checks a request and fills in defaults, except what depends on its files and the model.
--- @param body any decoded by lua-cjson
--- @return table request {kind, video, audio, voices, preset, settings (typed, by setting name)}
function M.check(body)
  local kind = type(body) == 'table' and body.kind or 'lipsync'
  local schema = M.schemas[kind]
  if not schema then problems.fail(400, ("kind: '%s' is not one of lipsync, upscale"):format(shown(kind)), 'kind') end
  local problem, where = shape.check(schema, body)
  where = field_of(where)
  if problem then problems.fail(400, where and not problem:find ' is missing$' and where .. ': ' .. problem or problem, where) end
  if kind == 'lipsync' and (body.audio == nil) == (body.voices == nil) then
    problems.fail(400, body.audio and 'voices and audio exclude each other: leave one of them out' or
      'audio is missing: the voice, or voices, one for each of several people', body.audio and 'voices' or 'audio')
  end
  local settings, wrong, name = M.kinds[kind]:read_json(body.settings or {})
  if not settings then problems.fail(400, wrong, name) end
  return {
    kind = kind, video = body.video, audio = body.audio, voices = body.voices, preset = body.preset, settings = settings,
  }
end

-- The preset's settings, overridden by the given ones.
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

-- Raises an error about a setting as a problem.
local function refuse(err, field)
  local failure = errors.is_failure(err)
  problems.fail(422, failure and err.message or tostring(err), failure and err.field or field)
end

--- Raises what the scheduler, guidance, cache or upscaler reports about the settings.
--- @param request table
--- @param checkpoint string the model's folder
function M.check_sampling(request, checkpoint)
  if request.kind ~= 'lipsync' then return end
  local folder = require 'models.latentsync.checkpoint'
  local _, _, sampling = folder.unet(checkpoint)
  local s = latentsync.of_model(joined(request), sampling, folder.scheduler(checkpoint))
  local ok, problem = pcall(require 'models.latentsync.sampler'.new, s)
  if not ok then refuse(problem) end
  local network = (s.upscale or ''):match '^mouth:(.+)$' or (s.upscale or ''):match '^frame:[%d.]+:(.+)$'
  ok, problem = pcall(require 'models.upscale.networks'.file, network or 'x4plus', 'upscale')
  if network and not ok then refuse(problem, 'upscale') end
end

--- The files that a request names, as a list of {name, field}.
--- @param request table
--- @return table[]
function M.files(request)
  local list = { { name = request.video, field = 'video' } }
  if request.audio then list[#list + 1] = { name = request.audio, field = 'audio' } end
  for i, voice in ipairs(request.voices or {}) do list[#list + 1] = { name = voice.audio, field = ('voices/%d'):format(i - 1) } end
  return list
end

--- The engine's settings for a request. The server itself sets the output, the model and the device.
--- @param request table from check
--- @param path_of fun(name: string): string local path of a file of the request
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

--- The longest possible result in seconds, and the factor by which its sides grow.
--- @param request table
--- @param video table the probed properties of the file: {video = {width, height, seconds}, audio = {seconds}}
--- @param sounds table[] the same for the voices
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
