--- Makes a checkpoint smaller and faster: quantizes weights to 8 or 4 bits, calibrated on the networks' inputs.
--
-- models/README.md describes the recipes and which GPU benefits; the engine is models/laboratory/quantizer.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local settings = require 'models.latentsync.settings'

local args = cli.parse(arg, {
  name = 'quantize', summary = "Quantizes a checkpoint's layers to 8 or 4 bits; lipsync --checkpoint takes the result.",
  options = cli.join(settings.schema:only { 'checkpoint' }:options(), {
    { '--out', 'file', required = true, metavar = 'DIR', help = 'output folder' },
    { '--recipe', 'string', default = '8bit', metavar = 'NAME|FILE', help = 'as --quant of lipsync: 8bit, int8, fp8, int4, FILE.lua' },
    { '--calibrate', 'flag', help = 'calibrate with the given clips; otherwise ranges come from the norms, and the VAE is unchanged' },
    { '--windows', 'int', default = 32, min = 1, help = 'number of windows for the calibration, in total' },
    { '--bound', 'number', above = 0, help = "maximum relative error of a network's output; the worst layers stay in 16 bits",
      default_text = '0.03; 0.1 of int4' },
  }, settings.schema:only { 'vae', 'device', 'dtype', 'quiet' }:options()),
  positional = { { 'clip', 'file', optional = true, many = true, help = 'VIDEO AUDIO ...: pairs, for --calibrate' } },
})

local files = require 'cr.files'

local function clips()
  local words, list = args.clip or {}, {}
  if args.calibrate and #words == 0 then cli.fail '--calibrate needs a video and a sound after it' end
  if #words > 0 and not args.calibrate then cli.fail(("'%s': clips are for --calibrate"):format(words[1])) end
  if #words % 2 == 1 then cli.fail(('--calibrate: %s has no sound after it: give pairs VIDEO AUDIO'):format(words[#words])) end
  for i = 1, #words, 2 do
    for k = i, i + 1 do files.check_readable('--calibrate', words[k]) end
    list[#list + 1] = { video = words[i], audio = words[i + 1] }
  end
  return list
end

-- An existing folder belongs to something else, unless it is empty.
local function check_out(path)
  local lfs = require 'lfs'
  if not lfs.attributes(path) then return end
  if lfs.attributes(path, 'mode') ~= 'directory' then cli.fail(('--out: %s is not a folder'):format(path)) end
  for name in lfs.dir(path) do
    if name ~= '.' and name ~= '..' then cli.fail(('--out: %s already contains %s: choose another folder'):format(path, name)) end
  end
end

local function trimmed(path) return (path:gsub('(.)/+$', '%1')) end

cr.run(function()
  local list = clips()
  local out, checkpoint = trimmed(args.out), trimmed(args.checkpoint)
  check_out(out)
  local device = cli.device(args.device or 'auto')
  local progress = require 'cr.tools.progress'.new { quiet = args.quiet }
  local ok, problem = pcall(require 'models.laboratory.quantizer'.run, {
    checkpoint = checkpoint, out = out, recipe = args.recipe, clips = list, windows = args.windows, bound = args.bound, vae = args.vae,
    device = device, dtype = args.dtype or (device == 'cpu' and 'f32' or 'f16'),
    progress = function(text) progress:draw(text) end,
    tell = function(line)
      progress:clear()
      print(line)
      io.stdout:flush() -- beside the progress on stderr
    end,
  })
  progress:clear()
  if not ok then error(problem, 0) end
  local bytes = 0
  for _, path in ipairs(require 'models.latentsync.checkpoint'.files(out)) do bytes = bytes + require 'lfs'.attributes(path, 'size') end
  print(('%s: %.1f MB'):format(out, bytes / 1e6))
end)
