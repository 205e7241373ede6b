--- JSON Schemas of a server's answers, for its OpenAPI document, and of the one request that is not a JobRequest.

local requests = require 'models.service.request'

local function text(description) return { type = 'string', description = description } end
local function number(description) return { type = 'number', description = description } end
local function whole(description) return { type = 'integer', description = description } end
local time = { type = 'string', format = 'date-time' }
local problem = { ['$ref'] = '#/components/schemas/Problem' }

local M = {}

M.states = { 'queued', 'running', 'done', 'failed', 'cancelled' }
M.kinds = { 'lipsync', 'upscale', 'faces' }

M.File = {
  type = 'object', required = { 'id', 'name', 'bytes', 'type', 'sha256', 'created' },
  properties = {
    id = text 'used in job requests', name = text 'file name of the upload', bytes = whole(), type = text 'MIME type, from its bytes',
    sha256 = text(),
    created = time,
    video = { type = 'object', required = { 'width', 'height' }, properties = { width = whole(), height = whole(), frames = whole(),
      frames_per_second = number(), seconds = number() } },
    audio = { type = 'object', properties = { seconds = number(), rate = whole 'Hz', channels = whole() } },
  },
}

M.FacesRequest = {
  type = 'object', additionalProperties = false,
  properties = {
    audio = { type = 'string', minLength = 1, maxLength = 40, description = "a file's id: lips are compared with this sound" },
    start = { type = 'number', minimum = 0, maximum = 1e6, description = 'start in seconds; people are numbered within this piece' },
    duration = { type = 'number', exclusiveMinimum = 0, maximum = 1e6, description = 'seconds' },
  },
}

M.JobRequest = { oneOf = { requests.schemas.lipsync, requests.schemas.upscale } }

M.Job = {
  type = 'object', required = { 'id', 'kind', 'state', 'created', 'attempts', 'video', 'settings', 'progress' },
  properties = {
    id = text(), kind = { type = 'string', enum = M.kinds }, state = { type = 'string', enum = M.states }, created = time, started = time,
    finished = time, attempts = whole 'number of attempts', video = text "the video's file id", audio = text(),
    voices = { type = 'array', items = { type = 'object', properties = { face = text(), audio = text() } } }, preset = text(),
    settings = { type = 'object' }, start = number 'of the kind faces', duration = number 'of the kind faces',
    position = whole 'position in the queue; 1 is next',
    progress = {
      type = 'object', required = { 'stage', 'frames' },
      properties = { stage = text(), step = whole 'step in the window', steps = whole(), window = whole(), windows = whole(),
        frames = whole 'generated frames', total = whole 'frames of the result', seconds_left = number() },
    },
    error = problem,
    result = { type = 'object', required = { 'url', 'bytes', 'type' }, properties = { url = text(), bytes = whole(), type = text(),
      seconds = number(), width = whole(), height = whole(), frames = whole() } },
    people = {
      type = 'array',
      items = {
        type = 'object', required = { 'number', 'first', 'last', 'share', 'box' },
        properties = {
          number = whole 'person number, as for the setting `face`', first = number 'seconds', last = number 'seconds',
          share = number 'share of the frames with the person, 0 to 1',
          box = { type = 'array', items = number(), description = 'x, y, width, height in the first frame with the person' },
          score = number 'agreement of lips and sound; higher is better',
        },
      },
    },
  },
}

local row = {
  type = 'object', required = { 'name', 'type', 'help', 'group' },
  properties = {
    name = text(), type = text 'int, number, string, flag or choice', default = {}, default_text = text(), minimum = number(),
    maximum = number(), choices = { type = 'array', items = text() }, unit = text(), help = text(), doc = text 'Markdown',
    group = { type = 'string', enum = { 'simple', 'advanced' } }, stage = text(),
  },
}
M.Settings = {
  type = 'object', required = { 'kinds' },
  properties = { kinds = { type = 'object', additionalProperties = { type = 'array', items = row } } },
}

M.Presets = {
  type = 'object', required = { 'presets' },
  properties = { presets = { type = 'array', items = { type = 'object', required = { 'name', 'help', 'settings' },
    properties = { name = text(), help = text(), settings = { type = 'object' } } } } },
}

M.System = {
  type = 'object', required = { 'version', 'devices', 'checkpoint', 'limits', 'token_required' },
  properties = {
    version = text(), checkpoint = { type = 'object', properties = { name = text(), size = whole 'pixels' } },
    devices = { type = 'array', items = { type = 'object', properties = { name = text(), description = text(), state = text() } } },
    limits = { type = 'object', properties = { upload_bytes = whole(), seconds = number(), pixels = whole(), queued = whole() } },
    token_required = { type = 'boolean' },
    live = { type = 'object', description = 'live sessions, if enabled', properties = {
      sessions = whole(), idle = { type = 'boolean', description = 'whether the server has an idle clip of its own' },
      say = text(),
    } },
  },
}

return M
