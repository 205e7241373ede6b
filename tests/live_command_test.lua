--- `crescent live` as a command: inputs, outputs and refusals. With CR_SLOW=1 also how well the lips follow.

local t = require 'tests.support.tap'
local child = require 'tests.support.child'
local clip = require 'tests.support.clip'
local cjson = require 'cjson'
local cr = require 'cr'
local media = require 'cr.media'
local scratch = require 'tests.support.scratch'

clip.needs_whisper(t, 'crescent live')

local idle, voice = clip.video('idle.mkv', 6, 64, 96), clip.voice('voice.wav', 1)
local points = clip.points('points.json', clip.moving(6, { { 30, 20 }, { 60, 21 }, { 45, 40 } }))
local checkpoint = clip.checkpoint 'checkpoint'

local function live(...)
  return child.run { 'live', '--idle', idle, '--points', points, '--checkpoint', checkpoint, '--size', '64', '--steps', '1',
    '--device', 'cpu', '--silence', 'model', '--every', '12', '--frames-per-window', '2', ... }
end

t.test('a file is played in real time, into a growing file, with a report', function()
  local r = live('--audio', voice, '--out', clip.path 'out.mp4', '--report', clip.path 'report.json')
  if not t.equal(r.code, 0, r.err) then return end
  t.ok(r.err:find 'frames shown' and r.err:find 'latency   median', r.err)
  local report = cjson.decode(scratch.read(clip.path 'report.json'))
  t.ok(report.frames >= 25 and report.seconds.latency.n >= 25, 'a second of speech')
  t.equal(report.settings.steps .. ' ' .. report.settings.every, '1 12')
  local info = media.probe(clip.path 'out.mp4')
  t.equal(info.width .. ' ' .. info.height .. ' ' .. info.video_codec, '96 64 h264')
  t.ok(math.abs(info.duration - report.frames / 25) < 0.1, ('%g s of %d frames'):format(info.duration, report.frames))
  local loudest = cr.scope(function() return media.load_audio(clip.path 'out.mp4', { rate = 16000, channels = 1 }):abs():max():item() end)
  t.ok(loudest > 0.15, 'the voice is in it')
end)

t.test("sound comes and video goes by FFmpeg's protocols; a connection that ends is the end of the sound", function()
  if os.execute 'ffmpeg -v quiet -version >/dev/null 2>&1' ~= 0 then t.skip 'ffmpeg is not installed' end
  local uv, port = require 'cr.loop'.uv, 20000 + require 'cr.clock'() * 1e6 % 20000
  local sound, video = ('srt://127.0.0.1:%d'):format(port), ('rtmp://127.0.0.1:%d/live/key'):format(port + 1)
  local peers = {}
  for i, words in ipairs {
    { '-re', '-i', voice, '-c:a', 'aac', '-f', 'mpegts', sound .. '?mode=listener' },
    { '-y', '-listen', '1', '-i', video, '-c', 'copy', clip.path 'seen.flv' },
  } do
    peers[i] = assert(uv.spawn('ffmpeg', { args = { '-v', 'quiet', '-nostdin', unpack(words) } }, function() end))
  end
  -- (the receiver may not listen yet)
  local r
  for _ = 1, 50 do
    r = live('--audio', sound, '--out', video)
    if r.code == 0 or not r.err:find 'refused' and not r.err:find 'cannot be opened' then break end
    uv.sleep(200)
  end
  t.equal(r.code, 0, r.err)
  t.ok(r.err:find(sound .. ': ', 1, true) and r.err:find('the sound ends here', 1, true), r.err)
  for _, peer in ipairs(peers) do peer:kill 'sigint' end
  local loudest
  for _ = 1, 50 do
    uv.sleep(100)
    local ok, found = pcall(cr.scope, function()
      return media.load_audio(clip.path 'seen.flv', { rate = 16000, channels = 1 }):abs():max():item()
    end)
    loudest = ok and found or 0
    if loudest > 0.15 then break end
  end
  t.ok(loudest > 0.15, 'the voice has come through: ' .. tostring(loudest))
  for _, peer in ipairs(peers) do peer:close() end
end)

t.test('errors are one sentence, and nothing is written', function()
  local out = clip.path 'none.mp4'
  for _, case in ipairs {
    { { '--audio', clip.path 'nobody.wav', '--out', out }, 'nobody.wav is neither a file nor a URL' },
    { { '--audio', idle, '--out', out }, 'idle.mkv has no audio stream' },
    { { '--audio', voice, '--out', clip.path 'nowhere/x.mp4' }, 'nowhere' },
    { { '--audio', voice, '--out', idle }, 'idle' },
    { { '--audio', voice, '--out', out, '--face', 'all' }, 'face all: a live session' },
    { { '--audio', voice, '--out', out, '--speed', '2' }, 'speed', 2 },
    { { '--audio', voice, '--out', out, '--every', '0' }, 'every: 0 is less than 1' },
    { { '--audio', voice, '--out', clip.path 'x.txt' }, 'its ending does not name a kind of video' },
  } do
    local r = live(unpack(case[1]))
    t.equal(r.code, case[3] or 1, r.err)
    t.ok(r.err:find(case[2], 1, true), r.err)
    t.ok(not io.open(out, 'rb'), 'nothing was written')
  end
end)

if os.getenv 'CR_SLOW' then
  t.test('lips follow a streamed sound as well as a complete one', function()
    local r = child.run { cr.root .. '/tests/bench/live_quality.lua', '--windows', '8', '--ahead', '100', '--seconds', '3', '--audio',
      cr.root .. '/models/mini/demo.flac', '--out', child.folder }
    if not t.equal(r.code, 0, r.err) then return end
    local share, offset = r.out:match '8 +0  100 ms     8 s +[%d.]+ +([%d.]+) %% +(%-?%d+)'
    t.ok(tonumber(share or 0) >= 85, r.out)
    t.equal(offset, '0')
  end)
end

child.clean()
t.done()
