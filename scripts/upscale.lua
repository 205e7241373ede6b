--- Upscales an image or a video with Real-ESRGAN's networks.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local settings = require 'models.upscale.settings'

local args = cli.parse(arg, {
  name = 'upscale', summary = "Upscales an image or a video with Real-ESRGAN's networks.", options = settings:options(),
  positional = { { 'in', 'file', help = 'image or video' }, { 'out', 'file', help = 'PNG for a picture, else a video' } },
})

local input, output = args['in'], args.out
args['in'], args.out = nil, nil
local result = cr.run(function() return require 'models.upscale.job'.run(input, output, args) end)
if not args.quiet then
  io.stderr:write(('%s: %d x %d, %d frame%s in %.1f s\n'):format(output, result.width, result.height, result.frames,
    result.frames == 1 and '' or 's', result.seconds))
end
