--- Creates the safetensors files of tests/golden from the reference programs' full outputs:
--
--     build/crescent tests/golden/cut.lua FOLDER
--
-- FOLDER holds golden.safetensors and related files, which the developers have in ../shared/golden. Only numbers are
-- stored: no image or sound that belongs to somebody else.

local cr = require 'cr'
local audio = require 'models.latentsync.audio'
local media = require 'cr.media'
local golden = require 'tests.support.golden'

-- Larger tensors are thinned out, except inputs.
local WHOLE, STEP = 20000, 7
local INPUTS = { ['whisper.mel'] = true }

local FILES = {
  networks = { from = 'golden', drop = { '^sched%.' }, keep = { '^sched%.ddim' } },
  image = { from = 'golden_image', drop = { '' }, keep = { '^align', '^mask' } },
  pipeline = { from = 'golden_pipeline' },
  upscale = {
    from = 'golden_upscale', whole = { '%.odd%.u8$' },
    drop = { '%.face%.', '^face', '^tiles%.binary', 'v3%-x[23]%.%w+%.u8$', 'x4plus%.even', 'ncnn_alpha' },
  },
  -- Its u8 image does not belong to its own rows.
  upscale_formula = { from = 'golden_upscale_formula', drop = { '%.u8$' } },
  mediapipe = { from = 'golden_real', drop = { '' }, keep = { '^mediapipe' } },
}

local function matches(key, patterns)
  for _, pattern in ipairs(patterns or {}) do
    if key:find(pattern) then return true end
  end
  return false
end

local M = {}

--- The tensors of a file of tests/golden, by their stored names.
function M.cut(folder, name)
  local rule, all = FILES[name], {}
  local whole = cr.weights.open(('%s/%s.safetensors'):format(folder, rule.from))
  for _, key in ipairs(whole.names) do
    if not matches(key, rule.drop) or matches(key, rule.keep) then
      local x = whole:get(key)
      if x:numel() > WHOLE and not INPUTS[key] and not matches(key, rule.whole) then
        all[golden.key(key, STEP, x.shape)] = golden.thin(x, STEP):clone()
      else
        all[key] = x
      end
    end
  end
  whole:close()
  if name == 'pipeline' then
    -- The sound of that run is a real voice, so its spectrogram, computed by our code, is stored instead.
    local voice = media.load_audio(folder .. '/../demo/demo1_audio.wav', { rate = 16000, channels = 1, s16 = true })
    all['pipeline.mel'] = audio.log_mel_spectrogram(voice:narrow(1, 1, 12800)):t():to 'f32':contiguous()
  end
  return all
end

M.names = {}
for name in pairs(FILES) do M.names[#M.names + 1] = name end
table.sort(M.names)

if arg and arg[0] and arg[0]:find 'golden/cut%.lua$' then
  local folder = arg[1]
  if not folder then
    io.stderr:write 'cut.lua: name the folder of golden.safetensors\n'
    os.exit(1)
  end
  for _, name in ipairs(M.names) do
    cr.scope(function() cr.save(golden.folder .. name .. '.safetensors', M.cut(folder, name)) end)
  end
end

return M
