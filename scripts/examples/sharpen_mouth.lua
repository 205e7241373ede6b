--- An example of a face restorer in the pipeline: an unsharp mask on the generated mouth before it is pasted.
---
---     build/crescent scripts/examples/sharpen_mouth.lua face.mp4 voice.wav out.mp4 CHECKPOINT [STRENGTH]
--
-- A stage takes a window's faces, f32 [F S S 3] about in [-1, 1], and returns those to paste, with the same or a
-- larger size. A restoration network would replace `sharpened`.

local cr = require 'cr'
local image = require 'cr.image'

local video, voice, out, checkpoint, strength = unpack(arg)
if not checkpoint then
  io.stderr:write 'usage: sharpen_mouth.lua VIDEO VOICE OUT CHECKPOINT [STRENGTH]\n'
  os.exit(2)
end

local function sharpened(face, amount)
  return face + (face - image.gaussian_blur(face, 5, 1)) * amount
end

local stage = {}

function stage:window(clip, faces)
  if not faces then return nil end
  return cr.scope(function()
    local inside = clip.source.mask:to(faces.device) * -1 + 1 -- 1 inside of the regenerated region
    local list = {}
    for i = 1, clip.n do list[i] = sharpened(faces:select(1, i):contiguous(), inside * self.strength) end
    return cr.stack(list, 1)
  end)
end

cr.run(function()
  local job = require 'models.latentsync.job'.new { video = video, audio = voice, out = out, checkpoint = checkpoint }
  stage.strength = tonumber(strength) or 0.8
  table.insert(job.stages, stage)
  job:run()
end)
