--- Runs the reference's whole pipeline through the command line on a device, from frames and samples to latents and
--- pasted frames.

local t = require 'tests.support.tap'
local media = require 'cr.media'
local weights = require 'cr.weights'
local cr = require 'cr'
local references = require 'tests.support.golden'
local scratch = require 'tests.support.scratch'
local smooth = require 'tests.support.formula_image'
local cjson = require 'cjson'

local program = require 'luv'.exepath()

local function write_file(path, text)
  local f = assert(io.open(path, 'wb'))
  f:write(text)
  f:close()
end

--- Creates a temporary folder and removes it after fn.
local function with_folder(fn)
  local dir = os.tmpname()
  os.remove(dir)
  require 'lfs'.mkdir(dir)
  local ok, err = pcall(fn, dir)
  os.execute("rm -rf '" .. dir .. "'")
  if not ok then error(err, 0) end
end

--- The body of a test: runs lipsync in f32 on `device` and compares the results.
--- @param device string
--- @param voice string? the sound of the golden values; without it, its stored spectrogram is used
return function(device, voice)
  with_folder(function(dir)
    require 'tests.support.checkpoint'.write(dir .. '/checkpoint', { audio_width = 64, whisper = references.folder .. 'whisper_nano.pt' })
    local golden = references.open 'pipeline'
    write_file(dir .. '/points.json', cjson.encode(golden:get 'pipeline.points':tolist()))

    local sink = media.writer(dir .. '/face.mkv', { lossless = true, fps = 25 })
    for k = 0, 13 do sink:write(smooth.image('frame' .. k, 270, 481)) end
    sink:close()
    -- The first 0.8 s of the voice as a WAV file, or silence of that length.
    local samples = ('\0\0'):rep(12800)
    if voice then
      local sound = scratch.read(voice)
      local data = sound:find('data', 1, true)
      samples = sound:sub(data + 8, data + 7 + 12800 * 2)
    end
    write_file(dir .. '/voice.wav', scratch.wav(samples))

    local command = ("%s lipsync --video %s/face.mkv --audio %s/voice.wav --out %s/out.mkv --checkpoint %s/checkpoint " ..
      "--points %s/points.json --lossless --length reference --paste reference --dump-latents %s/latents.safetensors --rng torch-cpu " ..
      "--steps 4 --guidance 1.5 --seed 1247 --size 256 --dtype f32 --audio-overlap 0 --quiet --device "):gsub('%%s', dir)
    local start = voice and program or program .. ' ' .. cr.root .. '/tests/support/given_mel.lua pipeline.mel'
    command = command:gsub('^%S+', start, 1) .. device
    t.equal(os.execute(command), 0, 'exit status')

    local dumped = weights.open(dir .. '/latents.safetensors')
    local latents = dumped:get 'latents'
    golden:near(latents, 'pipeline.latents', 1e-4)
    local reader = media.reader(dir .. '/out.mkv', { fps = 25 })
    local frames = reader:read(100)
    reader:close()
    t.equal(#frames, 22, 'frames')
    local picked = {}
    for i, k in ipairs(golden:get('pipeline.frames_index'):tolist()) do picked[i] = frames[k + 1]:unsqueeze(1) end
    local all = cr.cat(picked, 1)
    local off, most = smooth.compare(golden:cut(all, 'pipeline.frames'), golden:get 'pipeline.frames', 1)
    t.ok(off <= 1e-3 and most <= 3, ('frames: %.4f %% differ by more than 1, by up to %d'):format(off * 100, most))
    print(('# latents: relative error %.3g'):format(golden:error(latents, 'pipeline.latents')))
    dumped:close()
    golden:close()
  end)
end
