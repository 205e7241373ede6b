--- `--fps source`: the result has the video's own frames and times, each with the mouth of the generated frame that
--- is nearest in time.

local t = require 'tests.support.tap'
local child = require 'tests.support.child'
local cr = require 'cr'
local cjson = require 'cjson'
local media = require 'cr.media'
local scratch = require 'tests.support.scratch'
local smooth = require 'tests.support.formula_image'

if not t.has_fetched 'whisper/tiny.en.safetensors' then
  t.test("the video's own rate", function() t.skip 'Whisper tiny.en is not fetched: run `make models`' end)
  child.clean()
  t.done()
end

local function path(name) return child.folder .. '/' .. name end

-- A video whose frames are shown at given times, points for each frame, and a voice of a given length.
local function prepare(times, fps, seconds)
  local sink, points = media.writer(path 'face.mkv', { lossless = true, timed = true, fps = fps }), {}
  for k, at in ipairs(times) do
    cr.scope(function() sink:write(smooth.image('frame' .. k, 96, 128), at) end)
    points[k] = { { 40 + k, 32 }, { 75 + k, 33 }, { 57 + k, 54 } }
  end
  sink:close()
  child.file('points.json', cjson.encode(points))
  child.file('voice.wav', scratch.wav(('\0\16'):rep(seconds * 16000)))
end

local function run(...)
  return child.run { 'lipsync', '--video', path 'face.mkv', '--audio', path 'voice.wav', '--out', path 'out.mkv', '--checkpoint',
    path 'checkpoint', '--size', '64', '--steps', '1', '--points', path 'points.json', '--lossless', '--frames-per-window', '4',
    '--fps', 'source', '--quiet', ... }
end

-- The times of a file's frames, and the frames.
local function frames_of(name)
  local reader = media.reader(path(name), { fps = 0 })
  local frames = reader:read(200)
  local times = reader.last_seconds
  reader:close()
  return times, frames
end

require 'tests.support.checkpoint'.write(path 'checkpoint')

for _, case in ipairs { { 'of 60', 60, 24 }, { 'of 24', 24, 10 }, { 'uneven', 25, { 0, 0.04, 0.1, 0.13, 0.3, 0.32, 0.36, 0.4 } } } do
  local name, fps, times = unpack(case)
  t.test(('%s frames a second: the video\'s own frames, made anew'):format(name), function()
    if type(times) == 'number' then
      local n = times
      times = {}
      for k = 1, n do times[k] = (k - 1) / fps end
    end
    prepare(times, fps, 0.4)
    local r = run()
    if not t.equal(r.code, 0, r.err) then return end
    cr.scope(function()
      local wanted, before = frames_of 'face.mkv'
      local got, after = frames_of 'out.mkv'
      local shown = 0
      for _, at in ipairs(wanted) do shown = shown + (at < 0.4 - 1e-3 and 1 or 0) end
      t.ok(shown > 5, 'there are frames')
      t.equal(#got, shown, 'frames')
      for k = 1, shown do
        t.ok(math.abs(got[k] - wanted[k]) < 1.1e-3, ('frame %d is shown at %g, not %g'):format(k, got[k] or -1, wanted[k]))
        t.ok(smooth.compare(after[k], before[k]) > 0.01, ('frame %d has a new mouth'):format(k))
        -- Above the mouth nothing changes, which proves that it is the same frame.
        t.equal(smooth.compare(after[k]:narrow(1, 1, 20), before[k]:narrow(1, 1, 20)), 0, ('frame %d'):format(k))
      end
    end)
    local sound = media.probe(path 'out.mkv').audio_duration
    t.ok(math.abs(sound - 0.4) < 0.06, ('%g s of sound'):format(sound))
  end)
end

t.test('a longer sound plays the video backward, at its own rate', function()
  prepare({ 0, 0.05, 0.15 }, 20, 0.5)
  local r = run()
  if not t.equal(r.code, 0, r.err) then return end
  cr.scope(function()
    local times, frames = frames_of 'out.mkv'
    -- The last frame is shown as long as the one before it: 0.25 s in total, then the same backward.
    local wanted = { 0, 0.05, 0.15, 0.25, 0.35, 0.45, 0.5 }
    t.equal(#times, #wanted)
    for k, at in ipairs(wanted) do t.ok(math.abs(times[k] - at) < 1.1e-3, ('%g, not %g'):format(times[k] or -1, at)) end
    for k = 1, 3 do
      t.equal(smooth.compare(frames[k]:narrow(1, 1, 20), frames[7 - k]:narrow(1, 1, 20)), 0, 'backward')
    end
  end)
end)

t.test('a start within the video, and refusals', function()
  prepare({ 0, 0.1, 0.2, 0.3, 0.4 }, 10, 0.5)
  local r = run('--start', '0.15', '--duration', '0.2')
  if not t.equal(r.code, 0, r.err) then return end
  local times = cr.scope(function() return (frames_of 'out.mkv') end)
  t.equal(#times, 2)
  t.ok(math.abs(times[1] - 0.05) < 1.1e-3 and math.abs(times[2] - 0.15) < 1.1e-3, table.concat(times, ' '))
  r = run('--length', 'reference')
  t.equal(r.code, 1)
  t.ok(r.err:find 'counts at 25 frames per second', r.err)
end)

child.clean()
t.done()
