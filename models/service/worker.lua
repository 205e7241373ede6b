--- A worker process: holds the model and runs one job at a time (lua/cr/serve/process.lua).
--
-- It receives {op = 'start', ...} once and answers {ready = {...}} or {refused = sentence}. After that:
--     {op = 'probe', id, path}                               -> {probe = id, info = {...}} or {probe = id, problem = sentence}
--     {op = 'run', id, kind, request, paths, folder, frames}  -> {job = id, progress = {...}} and {job = id, preview = n}, and
--       finally one of {job = id, done = {...}}, {job = id, failed = {detail, own}, broken}, {job = id, cancelled = true}
--     {op = 'cancel', id}
-- A job's results are files in `folder`, which belongs to it alone. Invariants: a failed job leaves the worker as it
-- was. The worker does not know where the server keeps other files.

local cr = require 'cr'
local clock = require 'cr.clock'
local errors = require 'cr.errors'
local files = require 'cr.files'
local json = require 'cr.json'
local media = require 'cr.media'
local reporter = require 'models.service.reporter'
local requests = require 'models.service.request'

local PREVIEW_PAUSE, PREVIEW_SIDE = 1, 480 -- minimum seconds between two previews; pixels of the longer side

local FPS = 25

-- ---- probing files -------------------------------------------------------------------------------

local function positive(x) return x and x > 0 and x or nil end

local function probe(path)
  local info = media.probe(path)
  local found = { sha256 = require 'cr.weights'.sha256(path) }
  if info.has_video then
    local still = info.format:find '_pipe' ~= nil or info.format:find '^image2' ~= nil
    local seconds = not still and positive(info.duration) or nil
    found.still = still or nil
    found.video = {
      width = info.width, height = info.height, frames_per_second = not still and positive(info.fps) or nil, seconds = seconds,
      frames = still and 1 or seconds and positive(info.fps) and math.floor(seconds * info.fps + 0.5) or nil,
    }
  end
  if info.has_audio then
    found.audio = { seconds = positive(info.audio_duration), rate = info.sample_rate, channels = info.channels }
  end
  return found
end

-- ---- jobs --------------------------------------------------------------------------------------------

-- A stage that writes the newest frame from time to time.
local function preview_stage(folder, send)
  local last, count = -math.huge, 0
  return {
    deep = true,
    frame = function(_, _, frame)
      if clock() - last < PREVIEW_PAUSE then return nil end
      last, count = clock(), count + 1
      cr.scope(function()
        local height, width = frame:size(1), frame:size(2)
        local scale = math.min(1, PREVIEW_SIDE / math.max(height, width))
        local small = cr.nn.resize(media.eight_bits(frame), math.max(1, math.floor(height * scale)), math.max(1, math.floor(width * scale)),
          'bilinear')
        media.write_picture(folder .. '/preview.png', small:to 'cpu':contiguous())
      end)
      send(count)
      return nil
    end,
  }
end

local function result_of(path, frames, seconds)
  local info = media.probe(path)
  return { file = path:match '[^/]*$', frames = frames, made_in = seconds, width = info.width, height = info.height,
    seconds = positive(info.duration) }
end

local makers = {}

function makers.lipsync(state, m, progress, given)
  given.checkpoint, given.size = state.model, state.size
  given.out = ('%s/result.%s'):format(m.folder, given.lossless and 'mkv' or 'mp4')
  given.quiet = true
  local job = require 'models.latentsync.job'.new(given, { progress = progress })
  table.insert(job.stages, preview_stage(m.folder, m.preview))
  state.job = job
  local result = job:run()
  local report = require 'models.latentsync.report'
  return result_of(given.out, result.frames, result.seconds), report.of(job, result)
end

function makers.upscale(state, m, progress, given)
  local still = m.paths[m.request.video].still
  local input, out = given.video, ('%s/result.%s'):format(m.folder, still and 'png' or given.lossless and 'mkv' or 'mp4')
  local report = m.folder .. '/upscale.json'
  given.video, given.report, given.quiet = nil, report, true
  given.device, given.dtype = state.device, state.dtype
  local result = require 'models.upscale.job'.run(input, out, given, progress)
  local told = json.decode(files.read(report))
  os.remove(report)
  return result_of(out, result.frames, result.seconds), told
end

-- How well a person's lips agree with the sound, averaged over all their speech.
local function score_of(person)
  local sum, n = 0, 0
  for _, s in ipairs(person.segments) do
    if s.confidence then sum, n = sum + s.confidence * s.windows, n + s.windows end
  end
  return n > 0 and sum / n or nil
end

function makers.faces(state, m, progress)
  local finders = require 'models.latentsync.finder'
  state.finder = state.finder or finders.load(finders.choose('auto', state.checkpoint), state.checkpoint, { device = state.device })
  local path_of = function(name) return m.paths[name].path end
  local found = require 'models.latentsync.census'.of(path_of(m.request.video), {
    finder = state.finder, device = state.device, sound = m.request.audio and path_of(m.request.audio), start = m.request.start,
    duration = m.request.duration, portraits = true, measure = function(...) return progress:measure(...) end,
    advance = function(n) progress:advance(n) end,
  })
  for _, view in ipairs(found.views) do view.picture:free() end
  local people = {}
  for i, p in ipairs(found.people) do
    media.write_picture(('%s/person-%d.png'):format(m.folder, p.number), p.portrait)
    p.portrait:free()
    local b = p.box
    people[i] = { number = p.number, first = p.first / FPS, last = (p.last + 1) / FPS, share = p.share,
      box = json.list { b[1], b[2], b[3] - b[1], b[4] - b[2] }, score = score_of(p) }
  end
  return nil, { people = json.list(people), frames = found.frames }, json.list(people)
end

-- The message for the client; second: whether it is an internal error of the program.
local function sentence_of(err)
  if errors.is_failure(err) then return err.message, false end
  if type(err) ~= 'string' then return tostring(err), true end
  -- The library's messages about wrong arguments begin with the position of the call, which is in our code.
  local text = err:gsub('^[^\n]-%.lua:%d+: ', '')
  local own = text ~= err and (text:find '^attempt to ' or text:find '^bad argument' or text:find 'stack overflow')
  return text, own ~= nil and own ~= false
end

-- Memory used by tensors, and free memory of a GPU.
local function memory_of(state)
  local memory, info = cr.memory(state.device), {}
  if state.device ~= 'cpu' then
    local ok, found = pcall(cr.cuda.info, state.device)
    info = ok and found or {}
  end
  return { live = memory.live, peak = memory.peak, total = info.memory_total, free = info.memory_free }
end

local function run(state, tell, m)
  state.begun = true
  local progress = reporter.new(function(p) tell { job = m.id, progress = p } end, m.frames)
  function m.preview(n) tell { job = m.id, preview = n } end
  local ok, result, report, people = xpcall(function()
    if state.cancelled then error('cancelled', 0) end
    local given = m.kind ~= 'faces' and requests.settings(requests.check(m.request), function(name) return m.paths[name].path end)
    return makers[m.kind](state, m, progress, given)
  end, function(err)
    if select(2, sentence_of(err)) and not state.cancelled then io.stderr:write(debug.traceback(tostring(err), 2), '\n') end
    return err
  end)
  progress:close()
  local told = { job = m.id, frames = progress.done, stages = progress:report(), memory = memory_of(state) }
  if ok and report then files.write(m.folder .. '/report.json', json.encode(report, true) .. '\n') end
  if ok then
    told.done = { result = result, people = people }
  elseif state.cancelled then
    told.cancelled = true
  else
    local detail, own = sentence_of(result)
    told.failed = { detail = detail, own = own }
    told.broken = not cr.cuda.survived(result, state.device) -- after a fault, a GPU stays unusable in this process
  end
  state.running, state.begun, state.job, state.cancelled, state.task = nil, nil, nil, nil, nil
  collectgarbage()
  collectgarbage()
  tell(told)
end

local function cancel(state)
  state.cancelled = true
  if not state.begun then return end -- a task that is cancelled before it starts would send no answer
  if state.job and state.job.task then state.job:cancel 'cancelled' else state.task:cancel 'cancelled' end
end

-- ---- starting ---------------------------------------------------------------------------------------

-- Loads the model, or returns the reason why it cannot be loaded.
local function start(state, m)
  state.checkpoint, state.device, state.dtype = m.checkpoint, require 'cr.cuda'.choose(m.device, '--device'), m.dtype
  if not m.loads then return end
  local dtype = m.dtype or state.device == 'cpu' and 'f32' or 'f16'
  state.model = require 'models.latentsync'.load(m.checkpoint,
    { device = state.device, dtype = dtype, quant = m.quant, card = m.card, vae = m.vae, size = m.size })
  state.size = state.model.size
end

local function device_of(state)
  if state.device == 'cpu' then return { name = 'cpu', description = ('%d threads'):format(cr.threads()) } end
  local info = cr.cuda.info(state.device)
  return { name = state.device, description = info.name, memory_total = info.memory_total }
end

--- @param parent table {messages, tell}
return function(parent)
  local state, tell = {}, parent.tell
  for m in parent.messages do
    if m.op == 'start' then
      local ok, problem = pcall(start, state, m)
      if not ok then
        tell { refused = (sentence_of(problem)) }
        return
      end
      local device = device_of(state)
      device.size = state.size
      tell { ready = device, memory = memory_of(state) }
    elseif m.op == 'probe' then
      local ok, found = pcall(probe, m.path)
      tell(ok and { probe = m.id, info = found } or { probe = m.id, problem = (sentence_of(found)) })
    elseif m.op == 'run' then
      state.running = m.id
      state.task = cr.go(run, state, tell, m)
    elseif m.op == 'cancel' and state.running == m.id then
      cancel(state)
    end
  end
  os.exit(0) -- the process that would receive results is gone
end
