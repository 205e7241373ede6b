--- The settings of a lip-sync job, declared once. The command line, sessions, samples, comparisons, reports and the
--- documentation all read these rows: a new setting is one row here and its use.
--
-- Stages: 'input' the input files; 'load' the model; 'find' faces, sound and conditioning; 'sample' the steps;
-- 'paste' and 'encode' the result; 'output' further files; 'run' the command's behaviour. (lua/cr/schema.lua
-- describes the fields of a row.)

local choices = require 'models.latentsync.choice'
local errors = require 'cr.errors'
local parts = require 'models.latentsync.part'
local schema = require 'cr.schema'

-- 'A:B' as {A, B}.
local interval = {
  metavar = 'A:B', wanted = 'of the form A:B, as in 100:800', code = 1,
  read = function(text)
    local low, high = text:match '^(%d+%.?%d*):(%d+%.?%d*)$'
    return low and { tonumber(low), tonumber(high) }
  end,
  holds = function(value)
    return type(value) == 'table' and type(value[1]) == 'number' and type(value[2]) == 'number' and #value == 2
  end,
  write = function(value) return ('%.17g:%.17g'):format(value[1], value[2]) end,
}

local upscale = {
  metavar = 'mouth|frame:N', wanted = 'mouth, or frame:N as in frame:2, each with or without :MODEL', code = 1,
  read = function(text) return text end,
  holds = function(value)
    if type(value) ~= 'string' then return false end
    local times = value:match '^frame:(%d+%.?%d*)$' or value:match '^frame:(%d+%.?%d*):.+$'
    return value == 'none' or value == 'mouth' or value:find '^mouth:.' ~= nil or
      times ~= nil and tonumber(times) >= 1 and tonumber(times) <= 16
  end,
}

local whose = {
  metavar = 'WHOSE', wanted = choices.wanted .. ', or reference', code = 1,
  read = function(text) return text end,
  holds = function(value) return value == 'reference' or choices.holds(value) end,
}

local voice = {
  metavar = 'SELECTOR=FILE', wanted = 'of the form SELECTOR=FILE, as in 1=alice.wav (SELECTOR: ' .. choices.wanted .. ')', code = 1,
  read = function(text) return text end,
  holds = function(value) return type(value) == 'string' and choices.holds(value:match '^([^=]+)=.') end,
}

local function is_table(value) return type(value) == 'table' end
local function is_code(value) return type(value) == 'table' or type(value) == 'function' end

-- Options of methods are written after the methods' names.
local function within(kind, having)
  return function(name)
    local method = having(name)
    return method and ("%s have it, as in '%s:%s=...'"):format(kind, method, name)
  end
end

local settings = schema.new {
  { 'video', 'input', stage = 'input', required = true, help = 'video with the face',
    doc = 'the video with the face, in any container and codec that FFmpeg knows' },
  { 'audio', 'input', stage = 'input', help = 'voice: a sound file, or a video with sound',
    doc = 'voice: a sound file, or a video with sound, for the person whom `--face` selects (this or `--voice` is required)' },
  { 'voice', voice, stage = 'input', per_person = true, help = 'a voice for the person whom SELECTOR (as for --face) selects; repeatable',
    doc = 'instead of `--audio`, once for each voice: the person whom SELECTOR selects (any value of `--face`) speaks FILE, as in ' ..
      '`--voice 1=alice.wav --voice right=bob.wav`; after the end of a voice there is silence. The sound of the result is the sum of ' ..
      'the voices; if it would clip, all of it is attenuated by one factor' },
  { 'out', 'output', stage = 'output', required = true, help = 'video to write; its extension selects the container' },
  { 'checkpoint', 'folder', stage = 'load', required = true, script = is_table, help = 'folder with latentsync_unet.pt, whisper/, vae/',
    doc = 'the folder of the model; `models/README.md` says what it holds' },
  { 'vae', 'folder', stage = 'load', help = 'diffusers folder of the VAE', default_text = 'CHECKPOINT/vae' },
  { 'size', 'int', stage = 'load', min = 1, unit = 'pixels', help = 'side of the square face image',
    default_text = "the checkpoint's, else 256" },
  { 'frames_per_window', 'int', stage = 'find', also = 'frames', default = 16, min = 1, unit = 'frames',
    help = 'frames that are denoised together',
    doc = 'number of frames that are denoised together' },
  { 'steps', 'int', stage = 'sample', client = 'simple', min = 1, max = 1000, help = 'denoising steps',
    default_text = "20, or the checkpoint's" },
  { 'guidance', 'number', stage = 'sample', client = 'advanced', script = is_table,
    help = 'guidance scale, the weight of the sound; 1: no guidance',
    default_text = "1.5, or the checkpoint's" },
  { 'guidance_interval', interval, stage = 'sample', client = 'advanced', help = 'apply guidance only at timesteps from A to B',
    default_text = '0:999, all' },
  { 'guidance_rescale', 'number', stage = 'sample', client = 'advanced', default = 0, min = 0, max = 1,
    help = "how much of the standard deviation that guidance adds is removed",
    doc = "how much of the standard deviation that guidance adds is removed, 0 to 1" },
  { 'guidance_off_last', 'int', stage = 'sample', client = 'advanced', default = 0, min = 0, unit = 'steps',
    help = 'last steps without guidance',
    doc = 'number of last steps without guidance' },
  { 'guidance_method', 'string', stage = 'sample', client = 'advanced', default = 'cfg', metavar = 'NAME|FILE',
    script = is_code, within = within('guidance methods', function(name) return require 'cr.guidance'.having(name) end),
    help = 'guidance method: cfg, apg, cfgpp, pag, zero_star, or a .lua file; options as in apg:eta=0.2',
    doc = 'guidance method: `cfg`, `apg`, `cfgpp`, `pag`, `zero_star`, or a `.lua` file, with options as in `apg:eta=0.2`; see ' ..
      '`lua/README.md`' },
  { 'cache', 'string', stage = 'sample', client = 'advanced', script = is_code, metavar = 'NAME:...', default_text = 'none',
    examples = { 'deepcache:3', 'fora:2' },
    help = 'reuse of features over steps: deepcache:INTERVAL[:BRANCH], fora:INTERVAL, tea:THRESHOLD; combine with commas',
    doc = 'reuse of features of earlier steps: `deepcache:3` (or `:3:BRANCH`), `fora:2`, `tea:THRESHOLD`, or several with commas' },
  { 'strength', 'number', stage = 'sample', client = 'advanced', default = 1, above = 0, max = 1,
    help = "share of the steps that run; below 1, sampling starts from the video's own face plus noise instead of pure noise",
    doc = "share of the steps that run; below 1, sampling starts from the video's own face plus matching noise instead of pure noise" },
  { 'seed', 'int', stage = 'find', client = 'simple', default = 1247, min = -1,
    help = 'seed of the random numbers; -1: a random one, which is printed',
    doc = 'seed of the random numbers; -1: a random one, which is printed' },
  { 'scheduler', 'string', stage = 'sample', client = 'advanced', script = is_code, metavar = 'NAME|FILE',
    default_text = "the checkpoint's, else ddim",
    within = within('schedulers', function(name) return require 'cr.schedulers'.having(name) end),
    help = "sampling method: a name, a .lua file, or diffusers' scheduler_config.json",
    doc = "the sampling method: a name, a `.lua` file, or diffusers' `scheduler_config.json`; see `lua/README.md`" },
  { 'device', 'string', stage = 'load', default = 'auto', metavar = 'NAME',
    help = 'auto, cpu, cuda or cuda:N; several GPUs: cuda:0,cuda:1 or cuda:all',
    doc = 'where to compute: `auto`, `cpu`, `cuda` or `cuda:N`; several GPUs: `cuda:0,cuda:1` or `cuda:all`, with the same pixels as on ' ..
      'one' },
  { 'dtype', 'choice', stage = 'load', choices = { 'f32', 'f16', 'bf16' }, help = 'data type of weights and activations',
    default = function(s) return s.device == 'cpu' and 'f32' or 'f16' end, default_text = 'f16 on a GPU, f32 on a CPU',
    doc = 'data type of weights and activations; on a CPU with avx512_bf16 or AMX, the networks take about two thirds as long in bf16 ' ..
      'as in f32' },
  { 'quant', 'string', stage = 'load', script = is_table, metavar = 'NAME|FILE', default_text = 'none',
    help = '8bit, int8, fp8, int4, or your own FILE.lua: layers in 8 or 4 bits; NETWORK=NAME: one network only',
    doc = 'quantizes layers to 8 or 4 bits: `8bit` (for each layer the fastest format of the device), `int8`, `fp8`, `int4`, or a ' ..
      'recipe, a `.lua` file like `models/quantize/recipe.lua`; `whisper=int8`: one network only, `unet=8bit+whisper=int8`: two. ' ..
      'See "Quantization" in `models/README.md`; `crescent quantize` writes a calibrated checkpoint' },
  { 'card', 'string', stage = 'load', metavar = 'OPTION=on,...', default_text = 'none',
    help = "a GPU's options: tf32=on, search=off, fusion=off ...",
    doc = "a GPU's options, as in `tf32=on,fusion=off`; `kernels/README.md` lists them" },
  { 'rng', 'choice', stage = 'find', client = 'advanced', default = 'torch', choices = { 'torch', 'torch-cpu', 'torch-cuda', 'philox' },
    help = 'random numbers',
    doc = "random number generator: `torch`, `torch-cpu`, `torch-cuda`: PyTorch's numbers for the seed; `philox`: " ..
      'the same numbers on every device' },
  { 'points', 'input', stage = 'find', script = is_table, help = 'JSON with three face points per frame, instead of detection',
    doc = 'JSON `[[[x,y],[x,y],[x,y]], ...]`: left brow, right brow and nose for every frame at 25 frames per second (with `--fps ' ..
      "source` for the video's own frames), `null` for no face; used instead of a detector" },
  { 'detector', 'choice', stage = 'find', default = 'auto', choices = { 'auto', 'insightface', 'mediapipe' },
    help = "the face detector; auto: InsightFace's networks if CHECKPOINT/auxiliary has them",
    doc = 'the face detector: `insightface`: the networks that LatentSync uses, from `DIR/auxiliary`; ' ..
      '`mediapipe`: the built-in ones; `auto`: InsightFace if the checkpoint has it' },
  { 'face', whose, stage = 'find', client = 'simple', default = 'largest', default_text = 'largest',
    help = 'whose mouth: largest, left or right of each shot, person N (see `faces`), X,Y, speaking, all; reference: as LatentSync',
    doc = 'whose mouth: `largest`, `left`, `right`: selected where a shot begins and followed to its end; `first`, `N`: the person ' ..
      'with that number, as `crescent faces` lists them; `X,Y`: the person first seen at that place; `speaking`: the person whose lips ' ..
      "agree best with the video's own sound (without one, with the voice), for each second of speech; `all`: everybody; " ..
      "`reference`: the largest face of each frame, as LatentSync does, regardless of the previous frames" },
  { 'smooth', 'flag', stage = 'find', client = 'advanced', negatable = true,
    help = 'smooth the face points over time', default_text = 'on; off with points and with face reference',
    default = function(s) return not s.points and s.face ~= 'reference' end },
  { 'cut_windows', 'flag', stage = 'find', client = 'advanced', default = false,
    help = 'end windows and face tracking at cuts',
    doc = 'windows end at cuts, and a new shot starts without any knowledge of earlier faces; without it a window may contain a cut, ' ..
      'as in LatentSync' },
  { 'no_face', 'choice', stage = 'find', client = 'advanced', default = 'keep', choices = { 'keep', 'hold', 'error',
    doc = 'a frame without a face: `keep` leaves it unchanged, `hold` reuses the last position for 12 frames, `error` stops' },
    help = 'a frame without a face: leave unchanged, reuse the last position for 12 frames, or stop' },
  { 'mask', 'input', stage = 'find', metavar = 'PICTURE', help = 'white keeps, black is regenerated', default_text = "LatentSync's" },
  { 'paste', 'choice', stage = 'paste', client = 'advanced', default = 'region', choices = { 'region', 'reference' },
    help = 'paste the mouth, or the whole crop', doc = 'paste only the mouth region, or, as LatentSync does, the whole face crop' },
  { 'match_colour', 'flag', stage = 'paste', client = 'advanced', default = false, help = 'match the new region to the colour around it',
    doc = 'shift the new region to the mean colour of the ring around it, smoothed over time' },
  { 'start', 'number', stage = 'find', client = 'simple', default = 0, min = 0, max = 1e6, metavar = 'S', unit = 'seconds',
    help = 'start in video and sound' },
  { 'duration', 'number', stage = 'find', client = 'simple', above = 0, max = 1e6, metavar = 'S', unit = 'seconds',
    help = 'length of the piece',
    default_text = 'all' },
  { 'fps', 'choice', stage = 'find', client = 'simple', default = '25', choices = { '25', 'source' },
    help = "frames per second of the result: the model's 25, or the video's own frames and times",
    doc = "frames per second of the result: the model's, or the video's own frames at their own times; each of them gets the generated " ..
      'mouth that is nearest in time, placed by its own face' },
  { 'length', 'choice', stage = 'find', client = 'advanced', default = 'sound', choices = { 'sound', 'reference' },
    help = "frames of the result: as long as the sound, or two frames more, as in LatentSync" },
  { 'tail', 'choice', stage = 'output', client = 'advanced', default = 'cut', choices = { 'cut', 'keep' },
    help = 'video after the end of the sound: cut, or keep',
    doc = 'the rest of the video after the end of the sound' },
  { 'audio_overlap', 'number', stage = 'find', client = 'advanced', default = 2, min = 0, max = 15, metavar = 'S', unit = 'seconds',
    help = "overlap of the sound's 30 s segments; 0: as LatentSync",
    doc = "overlap of the sound's segments of 30 s, over which one fades into the next; 0 is LatentSync's way and has a glitch every " ..
      '30 s' },
  { 'part', parts.kind, stage = 'find', client = 'advanced', help = 'a part of a film, as crescent split writes it',
    doc = 'a part of a film, without its sound, as `crescent split` writes it' },
  { 'silence', 'choice', stage = 'find', client = 'simple', default = 'model', choices = { 'keep', 'close', 'model' },
    help = 'where nobody speaks for 0.4 s: keep the mouth, or give the model silence (close) or the sound (model)',
    doc = 'where nobody speaks for more than 0.4 s: `keep` keeps the mouth of the video, with 4 frames of transition, and skips ' ..
      'windows without speech; `close`: the model hears silence; `model`: it hears the sound, as in LatentSync' },
  { 'upscale', upscale, stage = 'output', client = 'simple', default_text = 'none', examples = { 'mouth', 'frame:2', 'frame:4' },
    help = 'for a sharper result: `mouth` upscales the mouth before it is pasted, `frame:2` the whole result to twice its size',
    doc = "`mouth`: the new mouth is upscaled to the frame's own resolution before it is pasted (by `x4plus`); `frame:2`: the whole " ..
      'result is upscaled by this factor (by `animevideov3`); `mouth:MODEL`, `frame:2:MODEL`: by another network of `crescent upscale`; ' ..
      'on a processor each frame takes seconds' },
  { 'codec', 'string', stage = 'encode', metavar = 'NAME', help = "FFmpeg's video encoder", default_text = 'libx264' },
  { 'crf', 'int', stage = 'encode', client = 'advanced', default = 18, min = 0, max = 63, help = "encoder's quality, lower is better" },
  { 'lossless', 'flag', stage = 'encode', client = 'advanced', default = false,
    help = "FFV1 in RGB, in Matroska; above 8 bits in the video's own pixel format" },
  { 'pix_fmt', 'string', stage = 'encode', metavar = 'NAME', help = "FFmpeg's name of the result's pixel format, as in yuv422p10le",
    default_text = "yuv420p; above 8 bits the video's own, if the encoder supports it" },
  { 'dump_latents', 'output', stage = 'output', help = 'safetensors file of the final latents [1 4 F h w]', report = false,
    doc = 'safetensors file of the final latents [1 4 F h w]; with several people one tensor each' },
  { 'report', 'output', stage = 'output', report = false,
    help = 'JSON file with the seconds of each stage (total and busy), settings, versions' },
  { 'sound', 'input', stage = 'encode', help = 'sound of the result', default_text = 'the voice, or the sum of the voices',
    doc = 'sound of the result, instead of the voices' },
  { 'label', 'flag', stage = 'encode', default = true, off = 'do not state in the metadata that AI made the video' },
  { 'quiet', 'flag', stage = 'run', default = false, report = false, help = 'no progress' },
}

local M = { schema = settings }

--- The titles under which a command's help lists settings, and the stages of each.
M.groups = {
  { 'Files', 'input', 'output' }, { 'Faces, sound and random numbers', 'find' }, { 'Model and device', 'load' }, { 'Sampling', 'sample' },
  { 'The result', 'paste', 'encode' },
}

-- ---- checks beyond types -----------------------------------------------------------

--- Resolves the setting `rng` for a device.
--- @return string 'torch-cpu', 'torch-cuda' or 'philox'
function M.rng(name, device)
  if name and name ~= 'torch' then return name end
  return device == 'cpu' and 'torch-cpu' or 'torch-cuda'
end

-- A seed from the system's random numbers, short enough to be typed again.
local function random_seed()
  local f = io.open('/dev/urandom', 'rb')
  local a, b, c, d = f:read(4):byte(1, 4)
  f:close()
  return a + b * 2 ^ 8 + c * 2 ^ 16 + d % 128 * 2 ^ 24
end

--- Assigns voices to people.
--- @param s table settings
--- @return {face: string, path: string, option: string}[] a person's choice (models/latentsync/choice.lua), and their sound
function M.voices(s)
  if s.audio then return { { face = s.face or 'largest', path = s.audio, option = 'audio' } } end
  local list = {}
  for i, text in ipairs(type(s.voice) == 'table' and s.voice or { s.voice }) do
    local face, path = text:match '^([^=]+)=(.+)$'
    list[i] = { face = face, path = path, option = 'voice' }
  end
  return list
end

--- Fails unless there is a voice, in one of the two ways, and the other settings are compatible with it.
--- @param s table from check
--- @param dash string prefix of setting names in messages: '--' or ''
function M.check_voices(s, dash)
  local function fail(text, ...) errors.fail((text:format(...):gsub('%-%-', dash))) end
  local list, faces = M.voices(s), {}
  local several = #list > 1 or #list == 1 and list[1].face == 'all'
  if #list == 0 then fail '--audio is missing: a sound, or --voice SELECTOR=FILE for each of several people' end
  if s.audio and s.voice then fail '--voice and --audio exclude each other: leave one of them out' end
  if s.voice and s.face then fail '--voice already selects the person: leave --face out' end
  if (s.voice or several) and s.points then
    fail '--points belongs to one person: give the voice by --audio, and leave --face out'
  end
  if several and s.paste == 'reference' then
    fail '--paste reference pastes the whole crop, which may cover another person: use --paste region with several people'
  end
  for _, one in ipairs(list) do
    if faces[one.face] then fail('--voice: %s has two voices: leave one of them out', one.face) end
    faces[one.face] = true
  end
end

--- The points as {points of frame 1, ...}, with false for null.
--- @param path string JSON file
--- @param where string prefix of messages: '--points'
function M.read_points(path, where)
  local function fail(...) errors.fail(where .. ': ' .. (...):format(select(2, ...))) end
  local f, reason = io.open(path, 'rb')
  if not f then fail('%s', reason) end
  local text = f:read '*a'
  f:close()
  local cjson = require 'cjson'
  local ok, list = pcall(cjson.decode, text or '')
  if not ok or type(list) ~= 'table' then
    fail('%s is not JSON of the form [[[x,y],[x,y],[x,y]], ...]', path)
  end
  local points = {}
  for i, entry in ipairs(list) do
    if entry == cjson.null then
      points[i] = false
    else
      local good = type(entry) == 'table' and #entry == 3
      for k = 1, 3 do
        local p = good and entry[k]
        good = type(p) == 'table' and #p == 2 and type(p[1]) == 'number' and type(p[2]) == 'number'
      end
      if not good then fail('%s: entry %d is neither three points [x,y] nor null', path, i) end
      points[i] = entry
    end
  end
  if #points == 0 then fail('%s holds no frames', path) end
  return points
end

-- Fields of a table given as `guidance`, and the settings that they set.
local GUIDANCE = { scale = 'guidance', interval = 'guidance_interval', rescale = 'guidance_rescale', off_last = 'guidance_off_last',
  method = 'guidance_method' }

local function unfold_guidance(where, given)
  if type(given.guidance) ~= 'table' then return given end
  local flat, known = {}, {}
  for key, value in pairs(given) do flat[key] = value end
  for key in pairs(GUIDANCE) do known[#known + 1] = key end
  flat.guidance = nil
  for key, value in pairs(given.guidance) do
    if not GUIDANCE[key] then errors.no_option(where .. ': guidance', key, known) end
    if given[GUIDANCE[key]] ~= nil and key ~= 'scale' then
      errors.failf('%s: guidance.%s and %s contradict each other: leave one out', where, key, GUIDANCE[key])
    end
    flat[GUIDANCE[key]] = value
  end
  return flat
end

--- Checks the settings that a script gives for some stages: types, ranges, names.
--- @param where string prefix of messages: 'session'
--- @param given table<string, any>
--- @param stages string[]? names of stages or settings (all)
--- @param extra string[]? names that are passed on unchecked
--- @return table
function M.check(where, given, stages, extra)
  if type(given) ~= 'table' then errors.fail(where .. ': expected a table of settings') end
  local rows = stages and settings:only(stages) or settings
  return rows:check(where, unfold_guidance(where, given), extra)
end

--- Fills in every default of a job's checked settings: chooses the device, draws the seed, reads the points. Settings
--- that depend on the model (size, steps, guidance, scheduler) stay open until `of_model`.
--- @param given table from check
--- @param where string? '--' if messages shall name options of the command line
--- @param model LatentSync? a loaded model, which sets device and dtype
--- @param several boolean? several GPUs may be used: `devices` lists all of them, `device` is the first
--- @return table
function M.resolve(given, where, model, several)
  local dash = where == '--' and '--' or ''
  local s = {}
  for key, value in pairs(given) do s[key] = value end
  if model then s.device, s.dtype = model.device, model.dtype end
  local cuda = require 'cr.cuda'
  s.devices = several and cuda.choose_all(s.device or 'auto', dash .. 'device') or { cuda.choose(s.device or 'auto', dash .. 'device') }
  s.device = s.devices[1]
  if s.seed == -1 then
    s.seed = random_seed()
    io.stderr:write('seed ', s.seed, '\n')
  end
  settings:complete(s)
  s.rng = M.rng(s.rng, s.device)
  if type(s.points) == 'string' then s.points_file, s.points = s.points, M.read_points(s.points, dash .. 'points') end
  local finder, dir = require 'models.latentsync.finder', model and model.dir or s.checkpoint
  s.detector = s.points == nil and finder.choose(s.detector, dir, dash) or nil
  if s.cut_windows and (s.points or s.face == 'reference') then
    errors.fail(('%scut-windows: with %s cuts are not detected: leave it out'):format(dash,
      s.points and dash .. 'points' or dash .. 'face reference'))
  end
  local speaking = s.face == 'speaking'
  for _, one in ipairs(M.voices(s)) do speaking = speaking or one.face == 'speaking' end
  -- Reports a missing file before the job starts.
  if s.silence ~= 'model' or speaking and not s.points then require 'models.networks.vad'.file() end
  return s
end

--- Fills in the checkpoint's values, or LatentSync's: steps, guidance, scheduler.
--- @param s table from resolve; modified in place
--- @param sampling table {size, steps, guidance} of the checkpoint
--- @param scheduler string? the checkpoint's
--- @return table s
function M.of_model(s, sampling, scheduler)
  s.steps = s.steps or sampling.steps or 20
  s.guidance = s.guidance or sampling.guidance or 1.5
  s.scheduler = s.scheduler or scheduler or 'ddim'
  return s
end

return M
