--- A synthetic world in which the brightness of images follows the loudness of the sound, for the tests of the
--- metric: videos, sounds, a hand-made SyncNet for it, and a finder that replaces the detector.

local cjson = require 'cjson'
local cr = require 'cr'
local evaluate = require 'models.laboratory.evaluate'
local formula = require 'tests.support.formula'
local media = require 'cr.media'
local mfcc = require 'models.networks.mfcc'
local scratch = require 'tests.support.scratch'
local syncnet = require 'models.networks.syncnet'

local M = { side = 128, fps = 25 }

local PER_FRAME = 640

--- The log loudness at a time in frames: no two stretches within 30 frames of each other are similar.
local function loudness(frame)
  return 1.1 + 0.55 * math.sin(2 * math.pi * frame / 37) + 0.55 * math.sin(2 * math.pi * frame / 23 + 1)
end

--- One period of 160 noise samples, so that all MFCC frames have the same spectrum at different levels.
local period = cr.scope(function() return formula.tensor('input:period', { 160 }, { kind = 'raw' }):tolist() end)

--- A sound of `frames` frames whose loudness at frame i matches the image at frame i + early.
local function samples(frames, early)
  local list = {}
  for i = 0, frames * PER_FRAME - 1 do
    local amplitude = 1000 * math.exp(loudness((i + 0.5) / PER_FRAME - 0.5 + early))
    list[i + 1] = math.floor(amplitude * period[i % 160 + 1] + 0.5)
  end
  return list
end

function M.write_sound(name, frames, early)
  local bytes = {}
  for i, v in ipairs(samples(frames, early or 0)) do
    v = v % 65536
    bytes[i] = string.char(v % 256, math.floor(v / 256))
  end
  return scratch.write(name, scratch.wav(table.concat(bytes)))
end

--- The log energy of a frame at loudness 0.
local base = cr.scope(function()
  local list = {}
  for i = 1, 800 do list[i] = math.floor(1000 * period[(i - 1) % 160 + 1] + 0.5) end
  local energy = mfcc.compute(cr.tensor(list)):select(1, 2):tolist()[1]
  mfcc.free()
  return energy
end)

function M.brightness(frame) return math.floor(40 + 80 * loudness(frame) + 0.5) end

--- Writes a video whose brightness follows the loudness; with `lag`, the second half of the image follows it that
--- many frames late.
function M.write_video(name, frames, lag)
  local width = lag and 2 * M.side or M.side
  local sink = media.writer(scratch.path(name), { width = width, height = M.side, fps = M.fps, lossless = true })
  for i = 0, frames - 1 do
    cr.scope(function()
      local picture = cr.full({ M.side, width, 3 }, M.brightness(i), { dtype = 'u8' })
      if lag then picture:narrow(2, M.side + 1, M.side):fill_(M.brightness(i - lag)) end
      sink:write(picture)
    end)
  end
  sink:close()
  return scratch.path(name)
end

--- Writes the network: embeddings {log energy, 0} from sound and, by brightness, from images.
function M.write_network(name, settings, picture)
  local one = { 1, 1, 1, 1, 1, 1 }
  local sizes = { sound = one, mouth = one, picture = picture, sound_hidden = 1, mouth_hidden = 1, embedding = 2 }
  local all = {}
  for _, e in ipairs(syncnet.expected(sizes)) do
    if not e.optional then
      local unchanged = e.name:find 'running_var' and 1 - 1e-5 or (e.name:find 'weight$' and #e.shape == 1) and 1 or 0
      all[e.name] = cr.full(e.shape, unchanged)
    end
  end
  for _, part in ipairs { 'netcnnaud', 'netcnnlip' } do
    for _, place in ipairs { 0, 4, 8, 11, 14 } do
      local w = all[('%s.%d.weight'):format(part, place)]
      local middle = w
      for d = 3, w:dim() do middle = middle:narrow(d, (w:size(d) + 1) / 2, 1) end
      middle:fill_(1)
    end
  end
  -- It uses the middle ones of the sound's 20 rows, their first coefficient, and the middle three of the five frames.
  all['netcnnaud.18.weight']:narrow(3, 1, 1):narrow(4, 2, 2):fill_(0.5)
  all['netcnnlip.0.weight']:narrow(3, 2, 3):narrow(4, 4, 1):narrow(5, 4, 1):fill_(1 / 9)
  all['netcnnlip.18.weight']:fill_(1 / (picture[1] * picture[2]))
  for _, part in ipairs { 'netfcaud', 'netfclip' } do all[part .. '.0.weight']:fill_(1) end
  all['netfcaud.3.weight']:narrow(1, 1, 1):fill_(1)
  all['netfclip.3.weight']:narrow(1, 1, 1):fill_(1 / 40)
  -- Centred at 0, so that the zeros beyond the ends of the sound are not special.
  all['netfcaud.3.bias']:narrow(1, 1, 1):fill_(-base - 2.2)
  all['netfclip.3.bias']:narrow(1, 1, 1):fill_(-3.2)
  cr.save(scratch.path(name .. '.safetensors'), all)
  scratch.write(name .. '.json', cjson.encode(settings))
  return scratch.path(name .. '.safetensors')
end

--- A finder that returns faces(i) for frame i (from 0).
function M.finder(faces)
  local at = -1
  return {
    find_all = function()
      at = at + 1
      return faces(at) or {}
    end,
    free = function() end,
  }
end

function M.face_at(x, y, size)
  return {
    box = { x - size / 2, y - size / 2, x + size / 2, y + size / 2 },
    points = { { x - size / 5, y - size / 5 }, { x + size / 5, y - size / 5 }, { x, y + size / 10 } },
  }
end

function M.whole() return { M.face_at(64, 60, 90) } end

--- Evaluates a video of this world: options.video and .audio (paths), .syncnet, .faces (of frame i, from 0),
--- .longer_than, .device.
function M.run(options)
  local result
  cr.run(function()
    local judge = evaluate.open { syncnet = options.syncnet, finder = M.finder(options.faces or M.whole), device = options.device }
    local ok, value = pcall(judge.run, judge, options.video, { audio = options.audio, voices = options.voices,
      longer_than = options.longer_than })
    judge:free()
    mfcc.free()
    if not ok then error(value, 0) end
    result = value
  end)
  return result
end

return M
