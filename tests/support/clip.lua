--- Inputs for lip-sync, in the folder of tests/support/child.lua: clips of images by formula, the face points in
--- them, a hum as the voice, and a tiny checkpoint.

local cr = require 'cr'
local child = require 'tests.support.child'
local cjson = require 'cjson'
local media = require 'cr.media'
local scratch = require 'tests.support.scratch'
local smooth = require 'tests.support.formula_image'

local M = {}

function M.path(name) return child.folder .. '/' .. name end

--- Writes a WAV file with a hum, 16 kHz mono; returns its path.
function M.voice(name, seconds)
  local samples = {}
  for i = 0, seconds * 16000 - 1 do
    local v = math.floor(9000 * math.sin(i * 0.05) * math.sin(i * 0.0007) + 0.5) % 65536
    samples[#samples + 1] = scratch.le(v, 2)
  end
  return child.file(name, scratch.wav(table.concat(samples)))
end

--- Writes a video of the images 'frame0', 'frame1', ..., at 25 per second; returns its path.
--- @param lossless boolean? true
function M.video(name, frames, height, width, lossless)
  local sink = media.writer(M.path(name), { lossless = lossless ~= false, fps = 25 })
  for k = 0, frames - 1 do cr.scope(function() sink:write(smooth.image('frame' .. k, height, width)) end) end
  sink:close()
  return M.path(name)
end

--- Points of faces that move right by one pixel per frame.
--- @param first number[][] the points of the frame before the first
--- @param missing function? whether frame i (from 1) has no face; default: never
function M.moving(frames, first, missing)
  local list = {}
  for i = 1, frames do
    list[i] = {}
    for k, p in ipairs(first) do list[i][k] = { p[1] + i, p[2] } end
    if missing and missing(i) then list[i] = false end
  end
  return list
end

--- Writes points in the format of `--points`; returns their path.
function M.points(name, list)
  local all = {}
  for i, p in ipairs(list) do all[i] = p or cjson.null end
  return child.file(name, cjson.encode(all))
end

--- Writes the checkpoint; returns its path.
function M.checkpoint(name)
  require 'tests.support.checkpoint'.write(M.path(name))
  return M.path(name)
end

--- The frames of a video in the folder, at 25 per second.
function M.frames(name)
  local reader = media.reader(M.path(name), { fps = 25 })
  local list = reader:read(1000)
  reader:close()
  return list
end

--- Ends a test file with one skipped test if the weights that all its tests need are not fetched.
function M.needs_whisper(t, what)
  if t.has_fetched 'whisper/tiny.en.safetensors' then return end
  t.test(what, function() t.skip 'Whisper tiny.en is not fetched: run `make models`' end)
  child.clean()
  t.done()
end

return M
