--- The reference's whole pipeline through the command line, on a device: from frames and samples to
--- latents and pasted frames.

local t = require 'tests.support.tap'
local media = require 'cr.media'
local weights = require 'cr.weights'
local scratch = require 'tests.support.scratch'
local smooth = require 'tests.support.smooth'
local cjson = require 'cjson'

local program = require 'luv'.exepath()

local function write_file(path, text)
  local f = assert(io.open(path, 'wb'))
  f:write(text)
  f:close()
end

--- A temporary folder, gone after fn.
local function with_folder(fn)
  local dir = os.tmpname()
  os.remove(dir)
  require 'lfs'.mkdir(dir)
  local ok, err = pcall(fn, dir)
  os.execute("rm -rf '" .. dir .. "'")
  if not ok then error(err, 0) end
end

--- The body of a test: runs lipsync in f32 on `device` and compares. Skipped where the golden values
--- are absent.
--- @param device string
return function(device)
  local golden_path = t.shared 'golden/golden_pipeline.safetensors'
  local whisper = t.shared 'golden/whisper_nano.pt'
  local voice = t.shared 'demo/demo1_audio.wav'
  with_folder(function(dir)
    require 'tests.support.nano'.write(dir .. '/checkpoint', { audio_width = 64, whisper = whisper })
    local golden = weights.open(golden_path)
    write_file(dir .. '/points.json', cjson.encode(golden:get 'pipeline.points':tolist()))

    local sink = media.writer(dir .. '/face.mkv', { lossless = true, fps = 25 })
    for k = 0, 13 do sink:write(smooth.image('frame' .. k, 270, 481)) end
    sink:close()
    -- The first 0.8 s of the voice, as a WAV file of its own.
    local sound = scratch.read(voice)
    local data = sound:find('data', 1, true)
    write_file(dir .. '/voice.wav', scratch.wav(sound:sub(data + 8, data + 7 + 12800 * 2)))

    local command = ("%s lipsync --video %s/face.mkv --audio %s/voice.wav --out %s/out.mkv --checkpoint %s/checkpoint " ..
      "--points %s/points.json --lossless --paste reference --dump-latents %s/latents.safetensors --rng torch-cpu " ..
      "--steps 4 --guidance 1.5 --seed 1247 --size 256 --dtype f32 --quiet --device "):gsub('%%s', dir)
    command = command:gsub('^%S+', program, 1) .. device
    t.equal(os.execute(command), 0, 'exit status')

    local dumped = weights.open(dir .. '/latents.safetensors')
    local latents = dumped:get 'latents'
    t.near(latents, golden:get 'pipeline.latents', 1e-4, 'latents')
    local reader = media.reader(dir .. '/out.mkv', { fps = 25 })
    local frames = reader:read(100)
    reader:close()
    t.equal(#frames, 22, 'frames')
    local index, expected = golden:get 'pipeline.frames_index':tolist(), golden:get 'pipeline.frames'
    for i, k in ipairs(index) do
      local off, most = smooth.compare(frames[k + 1], expected:select(1, i), 1)
      t.ok(off <= 1e-3 and most <= 3, ('frame %d: %.4f %% differ by more than 1, by up to %d'):format(k, off * 100, most))
    end
    print(('# latents: relative error %.3g'):format(t.relative_error(latents, golden:get 'pipeline.latents')))
    if os.getenv 'CR_VERBOSE' then
      for i, k in ipairs(index) do
        print(('# frame %d: %.5f %% unequal, largest difference %d'):format(k, 100 * smooth.compare(frames[k + 1], expected:select(1, i)),
          select(2, smooth.compare(frames[k + 1], expected:select(1, i)))))
      end
    end
    dumped:close()
    golden:close()
  end)
end
