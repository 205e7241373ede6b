--- Runs a cell as the command lipsync in a process of its own, from its start to the finished file, as published
--- tables of elapsed time do.

local axes = require 'models.laboratory.compare.axes'
local cr = require 'cr'
local clock = require 'cr.clock'
local grid = require 'models.laboratory.compare.grid'
local sheet = require 'models.laboratory.compare.sheet'
local files = require 'cr.files'

local whole = {}

-- Runs the program; returns its exit status and output.
local function run(args)
  local uv = require 'cr.loop'.uv
  local err, said, code = uv.new_pipe(false), {}, nil
  local ended = false
  local process, reason = uv.spawn(uv.exepath(), { args = args, stdio = { nil, nil, err } }, function(status, signal)
    code = signal ~= 0 and 128 + signal or status
  end)
  if not process then error('lipsync could not be started: ' .. tostring(reason), 0) end
  err:read_start(function(_, data)
    if data then said[#said + 1] = data else ended = true end
  end)
  local ok, problem = pcall(function()
    while not (code and ended) do cr.sleep(0.02) end
  end)
  if not ok then process:kill 'sigterm' end
  process:close()
  err:close()
  if not ok then error(problem, 0) end
  return code, table.concat(said)
end

-- The command line for a cell.
local function arguments(cell, steps, clip, o, report)
  local dtype, quant = grid.precision(cell.dtype)
  local asked = {
    video = o.video, audio = o.audio, checkpoint = o.checkpoint, vae = o.vae, out = clip, report = report, quant = quant,
    device = o.device, rng = o.rng, start = o.start, duration = o.duration, points = o.points, mask = o.mask,
    match_colour = o.match_colour, silence = o.silence, quiet = true,
  }
  for name, value in pairs(axes.settings(cell, 'piece', 'model', 'sample', 'stage')) do asked[name] = value end
  asked.steps, asked.dtype = steps, dtype
  local words = require 'models.latentsync.settings'.schema:words(asked)
  table.insert(words, 1, 'lipsync')
  return words
end

local function must_run(args)
  local code, said = run(args)
  if code ~= 0 then
    local last = said:match '([^\n]*)\n*$'
    error(last ~= '' and last:gsub('^crescent: ', '') or ('lipsync ended with status %d'):format(code), 0)
  end
end

--- An unmeasured run of a single step: on a GPU, the first run of each size searches for algorithms and stores the
--- result.
function whole.warm(cell, folder, o)
  folder:begin(cell)
  must_run(arguments(cell, 1, folder:file(cell, 'clip.mp4'), o))
end

--- Runs one cell.
--- @param cell table
--- @param folder ComparisonFolder
--- @param o table {video, audio, checkpoint, vae, start, duration, device, points (path), mask, silence, rng}
--- @return table result; its peak is the memory reserved on the GPU, or the process's resident memory
function whole.make(cell, folder, o)
  folder:begin(cell)
  local clip, report_path = folder:file(cell, 'clip.mp4'), folder:file(cell, 'report.json')
  local begin = clock()
  must_run(arguments(cell, cell.steps, clip, o, report_path))
  local seconds = clock() - begin
  local report = require 'cr.json'.decode(files.read(report_path))
  local sampling = report.stages.denoise
  local windows = math.ceil(report.frames / report.settings.frames_per_window) - report.windows_in_silence
  local result = {
    seconds = seconds, sampling_seconds = sampling and sampling.seconds, calls = cell.calls, frames = report.frames,
    step_seconds = sampling and sampling.seconds / (cell.steps_made * windows), windows = windows, shown = 'clip.mp4',
    peak_bytes = report.card and report.card.peak_reserved_bytes or report.peak_resident_bytes,
  }
  cr.scope(function()
    local reader, pictures = require 'cr.media'.reader(clip, { fps = 25 }), {}
    local ok, problem = pcall(function()
      for _, frame in ipairs((select(2, sheet.places(result.frames)))) do
        reader:seek(frame - 1)
        pictures[#pictures + 1] = reader:read(1)[1]
      end
    end)
    reader:close()
    if not ok then error(problem, 0) end
    sheet.write_strip(folder:file(cell, 'strip.png'), pictures)
  end)
  return result
end

return whole
