-- Measures the small model and checks its acceptance criteria: a table, JSON and a contact sheet.
--
--     build/crescent tests/bench/mini.lua --clips CLIPS [--checkpoint models/mini] [--json FILE] [--sheet FILE]
--         [--markdown FILE] [--out FOLDER] [--most N] [--steps N] [--guidance X] [--device cpu] [--time yes|no] [--shift 4]
 -- every eighth clip, from the second on; no table
 -- the table of the parts' measurements
--
-- CLIPS is the output of models/mini/train/clips.py. For each clip, its face is generated with the pair's sentence;
-- for the first sixteen, also with a silent sound. models/latentsync/face.lua measures the opening of the mouth:
-- distance of the inner lips divided by the mouth's width. Each rendered face is measured first, since its true
-- opening is known. If the mesh does not follow it (correlation below 0.7: some beards and glasses), the generated
-- clip is not used, and is counted. The mesh does not read closed lips as 0, so silence is judged relative to the
-- reading of the same face's closed lips. "Mismatched" compares a generated clip with the previous sound of its face.
-- The time is that of the command lipsync on the CPU, scaled to 125 frames if the sound is shorter. The exit status
-- is 1 if a clip could not be measured; an unmet criterion is not an error.
--
-- Tiny: --clips OUT/none => render the clips

local cr = require 'cr'
local cjson = require 'cjson'
local lfs = require 'lfs'
local uv = require 'luv'
local cli = require 'cr.tools.cli'
local media = require 'cr.media'
local insert = require 'tests.support.insert'
local measure = require 'tests.bench.mini_measure'
local sheet = require 'models.laboratory.face_sheet'

local SILENT, SHEETS, BAR_CLIPS, TRACK = 16, 4, 40, 20
local CLOSED, READABLE = 0.01, 0.7 -- the opening of lips that are rendered closed; the least correlation of a mesh that follows the lips

local o = require 'tests.bench.options'.read('The small model and its acceptance criteria.', {
  { '--clips', 'file', required = true, help = 'the folder that models/mini/train/clips.py renders' },
  { '--checkpoint', 'file', default = cr.root .. '/models/mini', help = 'a checkpoint folder' },
  { '--json', 'file', help = 'file for the results' },
  { '--sheet', 'file', help = 'file for the contact sheet' },
  { '--markdown', 'file', help = 'file for the table, in Markdown' },
  { '--out', 'file', default = '/tmp', help = 'folder for generated videos' },
  { '--most', 'int', default = 1000, min = 1, help = 'clips' },
  { '--steps', 'int', min = 1, help = 'instead of the checkpoint\'s' },
  { '--guidance', 'number', help = 'instead of the checkpoint\'s' },
  { '--device', default = 'cpu', help = 'cpu or a GPU' },
  { '--time', 'choice', default = 'yes', choices = { 'yes', 'no' }, help = 'whether the command lipsync is timed' },
  { '--shift', 'int', default = 4, min = 1, help = 'frames by which the sound is delayed' },
  { '--part', default = '1/1', help = 'K/N: every Nth clip, from the Kth on' },
  { '--join', help = 'files of parts' },
})

local function exists(path) return lfs.attributes(path) ~= nil end

local function read_json(path)
  local f, reason = io.open(path, 'rb')
  if not f then cli.fail(reason) end
  local ok, value = pcall(cjson.decode, f:read '*a')
  f:close()
  if not ok then cli.fail(path .. ': ' .. value) end
  return value
end

if not exists(o.clips .. '/clips.json') then
  cli.fail(o.clips .. '/clips.json is missing: render the clips with `python -m train.clips --out ' .. o.clips .. '` (models/mini/train)')
end
if not exists(o.checkpoint .. '/latentsync_unet.safetensors') and not exists(o.checkpoint .. '/latentsync_unet.pt') then
  cli.fail(o.checkpoint .. ' contains no network: train it and export it (models/mini/train/README.md), or name another --checkpoint')
end
local part, parts = o.part:match '^(%d+)/(%d+)$'
part, parts = tonumber(part), tonumber(parts)
if not part or part < 1 or part > parts then cli.fail(("--part: '%s' is not of the form 2/8"):format(o.part)) end
if parts > 1 and not o.json then cli.fail '--part: name the file for its figures with --json' end
local syncnet = o.checkpoint .. '/syncnet.safetensors'
local has_syncnet = exists(syncnet)
local work = ('%s/mini-bench-%d'):format(o.out, uv.os_getpid())
assert(lfs.mkdir(work))

-- ---- measuring -------------------------------------------------------------------------------

local got = { -- of all clips
  correlation = {}, ceiling = {}, whole = {}, mouth = {}, outside = 0, seam = {}, chin_in = {}, chin_out = {},
  readable = {}, speaking = {}, silent = {}, closed = {},
  true_offset = {}, shifted = {}, true_confidence = {}, made_offset = {}, made_confidence = {}, mismatched = {}, notes = {},
}
local function add(list, value) if value then list[#list + 1] = value end end
local function note(...) add(got.notes, (...):format(select(2, ...))) end

local model, finder_in, finder_out, finder_still, finder_all, judge
local function load()
  model = require 'models.latentsync'.load(o.checkpoint, { device = o.device })
  finder_in = require 'models.latentsync.face'.load { range = 'full', track = true }
  finder_out = require 'models.latentsync.face'.load { range = 'full', track = true }
  -- A mesh from a tracked face follows the lips best; one from a detected face reads closed lips nearest to 0.
  finder_still = require 'models.latentsync.face'.load { range = 'full' }
  finder_all = measure.remembering(require 'models.latentsync.face'.load { range = 'full' })
  judge = has_syncnet and require 'models.laboratory.evaluate'.open { syncnet = syncnet, finder = finder_all }
end

--- Returns {confidence, offset}, or nil and a note.
local function judged(video, audio)
  if not judge then return {} end
  local ok, result = pcall(function() return cr.scope(function()
    finder_all:of(video)
    local r = judge:run(video, { audio = audio, longer_than = TRACK })
    return { confidence = r.confidence, offset = r.offset }
  end) end)
  if ok then return result end
  note('%s', result)
  return {}
end

--- Generates a face with a sound. Returns the opening curves of input and output (unless the face cannot be read),
--- and the output's without tracking, for every third frame.
local function make(video, audio, out, rows)
  local before, after, still = measure.curves(finder_in), measure.curves(finder_out), measure.curves(finder_still)
  measure.generate(model, video, audio, {
    out = out, steps = o.steps, guidance = o.guidance,
    frame = function(frame, painted, item, mask, i)
      if i % 3 == 1 then still.read(painted) end
      got.outside = got.outside + measure.changed_outside(frame, painted, item.matrix, mask)
      if not out then return end
      if i % 25 == 1 and item.matrix then add(got.seam, measure.seam(frame, painted, item.matrix, mask)) end
      local seen, made = before.read(frame), after.read(painted)
      if rows then
        rows[1]:add(frame, seen, i)
        rows[2]:add(painted, made, i)
      end
      if seen and (i - 1) % 25 == 0 then
        local e = measure.vae_error(model, frame, seen.points, mask)
        add(got.whole, e.whole)
        add(got.mouth, e.mouth)
      end
    end,
  })
  return before, after, still
end

local function curves_of(video, row)
  local c = measure.curves(finder_in)
  for frame in media.frames(video) do
    local found = c.read(frame)
    if row then row:add(frame, found, c.n) end
    frame:free()
  end
  return c
end

--- The mesh's reading of lips that are known to be closed: every third frame of a rendered clip with the true opening
--- `truth`.
local function closed_frames(video, truth)
  local curve, i = measure.curves(finder_still), 0
  for frame in media.frames(video) do
    i = i + 1
    if i % 3 == 1 and (truth[i] or 1) < CLOSED then curve.read(frame) end
    frame:free()
  end
  return curve
end

local function mean_opening(curves) -- over the frames with a detected face
  local values = {}
  for i = 1, curves.n do add(values, curves.opening[i]) end
  return measure.mean(values)
end

local table_of_clips, groups = read_json(o.clips .. '/clips.json'), {}
local function at(name, ending) return o.clips .. '/' .. name .. ending end
local done, failed = 0, 0

local function measure_clip(number, entry)
  local video, spoken, readable = at(entry.name, '.mp4'), nil, nil
  local function step()
    local own_opening = read_json(at(entry.name, '.json')).opening
    -- True pairs, in sync and shifted: a sound that is delayed by k frames gives -k.
    local own = judged(video)
    add(got.true_confidence, own.confidence)
    if judge then
      table.insert(got.true_offset, own.offset or false) -- a clip without a result counts as missed
      measure.delay_sound(at(entry.name, '.wav'), work .. '/delayed.wav', o.shift / 25)
      local late = judged(video, work .. '/delayed.wav')
      table.insert(got.shifted, own.offset and late.offset and own.offset - late.offset or false)
    end
    if type(entry.pair) == 'string' then
      local pair = entry.name .. '-pair'
      local truth = read_json(at(pair, '.json'))
      local n, out = truth.frames, work .. '/made.mkv'
      local rows = #groups < SHEETS and { sheet.row('input', n), sheet.row('output', n) } or nil
      local reading = measure.correlation(curves_of(video).opening, own_opening) or 0
      add(got.readable, reading)
      readable = reading >= READABLE
      local before, after, still = make(video, at(pair, '.wav'), out, rows)
      local correlation = measure.correlation(after.opening, truth.opening)
      if readable then
        add(got.correlation, correlation or 0)
        if not correlation then note('%s: the output has no mouth that moves: correlation 0', entry.name) end
      else
        note('%s: the mesh cannot read this face (%.2f with its own opening, %.2f once generated): left out', entry.name,
          reading, correlation or 0)
      end
      local lost = after.n - #after.widths
      if lost > 0 then note('%s: no face was found in %d of %d frames of the output', entry.name, lost, after.n) end
      spoken = mean_opening(still)
      add(got.chin_in, measure.jitter(before))
      add(got.chin_out, measure.jitter(after))
      if entry.truth and exists(at(pair, '.mp4')) then
        if rows then rows[3] = sheet.row('truth', n) end
        add(got.ceiling, measure.correlation(curves_of(at(pair, '.mp4'), rows and rows[3]).opening, truth.opening))
      end
      local made, wrong = judged(out, at(pair, '.wav')), judged(out, at(entry.name, '.wav'))
      add(got.made_confidence, made.confidence)
      if judge then table.insert(got.made_offset, made.offset or false) end
      add(got.mismatched, wrong.confidence)
      if rows then
        groups[#groups + 1] = { rows = rows, title = ('%s says "%s": correlation %s'):format(entry.name, truth.text,
          correlation and ('%.2f'):format(correlation) or 'none') }
      end
      os.remove(out)
      finder_all:forget(out)
    end
    if number <= SILENT and readable then
      local _, _, still = make(video, o.clips .. '/silent.wav')
      local silent, closed = mean_opening(still), mean_opening(closed_frames(video, own_opening))
      if spoken and silent and closed then
        add(got.speaking, spoken)
        add(got.silent, silent)
        add(got.closed, closed)
      end
    end
  end
  local ok, reason = pcall(step)
  if not ok then
    failed = failed + 1
    note('%s: %s', entry.name, tostring(reason))
  end
  finder_all:forget(video)
  done = done + 1
  io.stderr:write(('%s: %d done\n'):format(entry.name, done))
end

--- Adds the measurements of a part to `got`.
local function join(path)
  local raw = read_json(path)
  if type(raw.got) ~= 'table' then cli.fail(path .. ': not a file that --part writes') end
  for key, value in pairs(raw.got) do
    if type(value) == 'number' then
      got[key] = got[key] + value
    else
      for _, v in ipairs(value) do table.insert(got[key], v) end
    end
  end
  done, failed = done + raw.done, failed + raw.failed
end

if o.join then
  for path in o.join:gmatch '[^,]+' do join(path) end
else
  load()
  for number, entry in ipairs(table_of_clips) do
    if number > o.most then break end
    if (number - part) % parts == 0 then measure_clip(number, entry) end
  end
end

--- Seconds of the command lipsync on the CPU for 5 s (125 frames), and the number of frames.
local function timed()
  if o.time == 'no' or not table_of_clips[1] then return nil end
  local name, report = table_of_clips[1].name, work .. '/report.json'
  local function q(text) return "'" .. text:gsub("'", "'\\''") .. "'" end
  local code = os.execute(table.concat({ q(uv.exepath()), 'lipsync', '--quiet', '--device cpu', '--duration 5',
    '--checkpoint', q(o.checkpoint), '--video', q(at(name, '.mp4')), '--audio', q(at(name, '.wav')),
    '--out', q(work .. '/timed.mp4'), '--report', q(report) }, ' '))
  os.remove(work .. '/timed.mp4')
  if code ~= 0 then return note 'lipsync failed: it is not timed' end
  local r = read_json(report)
  os.remove(report)
  if r.frames < 125 then note('the time is of %d frames, scaled to 125', r.frames) end
  return r.seconds * 125 / r.frames, r.frames
end

-- ---- the table -------------------------------------------------------------------------------

local rows = {}
local function row(what, bar, value, unit, met, count)
  rows[#rows + 1] = { what = what, bar = bar, value = value or cjson.null, unit = unit, count = count,
    met = value == nil and cjson.null or met(value) }
end
local function at_least(limit) return function(v) return v >= limit end end
local function at_most(limit) return function(v) return v <= limit end end
local function near(list) return measure.share(list, function(v) return v and math.abs(v) <= 1 end) end
local function ratio(a, b) return a and b and b ~= 0 and a / b or nil end
local function percent(v) return v and 100 * v end

local function fill()
  local true_confidence = measure.median(got.true_confidence)
  local made, wrong = measure.median(got.made_confidence), measure.median(got.mismatched)
  local k = o.shift
  row('VAE on held-out faces', '>= 30 dB', measure.psnr(measure.mean(got.whole)), 'dB', at_least(30), #got.whole)
  row('VAE, the mouth alone', '', measure.psnr(measure.mean(got.mouth)), 'dB', function() return cjson.null end, #got.mouth)
  row('mouth opening against the truth', '>= 0.8, 40 clips', measure.median(got.correlation), 'median r',
    function(v) return v >= 0.8 and #got.correlation >= BAR_CLIPS end, #got.correlation)
  row('faces that the mesh can read', '', percent(measure.share(got.readable, function(r) return r >= READABLE end)), '%',
    function() return cjson.null end, #got.readable)
  row('the same of the rendered truth', '', measure.median(got.ceiling), 'median r', function() return cjson.null end, #got.ceiling)
  row('true pairs: offset within 1', '>= 95 %', percent(near(got.true_offset)), '%', at_least(95), #got.true_offset)
  row(('true pairs: sound delayed by %d'):format(k), '>= 95 % exact',
    percent(measure.share(got.shifted, function(v) return v == k end)), '%', at_least(95), #got.shifted)
  row('generated confidence of true', '>= 75 %', percent(ratio(made, true_confidence)), '%', at_least(75), #got.made_confidence)
  row('generated of mismatched sound', '>= 3 x', ratio(made, wrong), 'x', at_least(3), #got.mismatched)
  row('generated: offset within 1', '>= 90 %', percent(near(got.made_offset)), '%', at_least(90), #got.made_offset)
  local speaking, silent, closed = measure.mean(got.speaking), measure.mean(got.silent), measure.mean(got.closed)
  row('silence: opening of speaking', '< 10 %', percent(speaking and ratio(silent - closed, speaking - closed)), '%',
    function(v) return v < 10 end, #got.silent)
  row('pixels changed outside', '0', done > 0 and #got.whole > 0 and got.outside or nil, 'pixels', at_most(0), #got.readable + #got.silent)
  row('colour jumps at the seam by', '<= 3 levels', measure.mean(got.seam), 'levels', at_most(3), #got.seam)
  row("chin's jitter of the input's", '<= 1 x', ratio(measure.median(got.chin_out), measure.median(got.chin_in)), 'x',
    at_most(1), #got.chin_out)
  local seconds, frames = timed()
  row('lipsync of 5 s on the CPU', '<= 60 s', seconds, 's', at_most(60), frames or 0)
end

local function end_work()
  for name in lfs.dir(work) do os.remove(work .. '/' .. name) end
  lfs.rmdir(work)
end

if parts > 1 then
  require 'cr.files'.write(o.json, require 'cr.json'.encode { got = got, done = done, failed = failed } .. '\n')
end
if o.sheet and #groups > 0 then
  cr.scope(sheet.write, o.sheet, groups)
  print('contact sheet: ' .. o.sheet)
end
if parts > 1 then
  end_work()
  os.exit(failed > 0 and 1 or 0, true)
end
fill()
end_work()
if not has_syncnet then note('%s does not exist: no confidence and offsets', syncnet) end
print(('%-36s %-18s %12s %-9s %5s  %s'):format('what', 'bar', 'measured', '', 'of', 'met'))
for _, r in ipairs(rows) do
  local met = r.met == cjson.null and (r.value == cjson.null and 'not measured' or '') or r.met and 'yes' or 'NO'
  print(('%-36s %-18s %12s %-9s %5d  %s'):format(r.what, r.bar, r.value == cjson.null and '-' or ('%.3g'):format(r.value),
    r.unit, r.count, met))
end
for _, text in ipairs(got.notes) do print('note: ' .. text) end
if o.markdown then
  local lines = { '| what | bar | measured | of | met |', '| --- | --- | --- | --- | --- |' }
  for _, r in ipairs(rows) do
    lines[#lines + 1] = ('| %s | %s | %s | %d | %s |'):format(r.what, r.bar,
      r.value == cjson.null and 'not measured' or ('%.3g %s'):format(r.value, r.unit), r.count,
      r.met == cjson.null and '' or r.met and 'yes' or '**no**')
  end
  insert(o.markdown, 'mini', table.concat(lines, '\n') .. '\n')
end
if o.json then
  require 'cr.files'.write(o.json, require 'cr.json'.encode {
    checkpoint = o.checkpoint, clips = done, rows = rows, notes = got.notes,
    medians = { true_confidence = measure.median(got.true_confidence), generated_confidence = measure.median(got.made_confidence),
      mismatched_confidence = measure.median(got.mismatched) },
    openings = { speaking = got.speaking, silent = got.silent, closed = got.closed },
    readable = got.readable,
    correlations = got.correlation, offsets = { true_pairs = got.true_offset, generated = got.made_offset, shifted = got.shifted },
  } .. '\n')
end
if failed > 0 then os.exit(1) end
