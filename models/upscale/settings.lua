--- The settings of an upscaling job, declared once: the command line, reports and the documentation read these rows.

local schema = require 'cr.schema'

local tile = {
  metavar = 'auto|N', wanted = 'auto or a side in pixels from 16', code = 1,
  read = function(text) return text == 'auto' and text or tonumber(text) end,
  holds = function(value) return value == 'auto' or type(value) == 'number' and value >= 16 and value % 1 == 0 end,
}

return schema.new {
  { 'model', 'string', client = 'simple', default = 'x4plus', metavar = 'NAME|FILE',
    help = 'x4plus, x4plus-anime, animevideov3, or a file of weights',
    doc = "`x4plus` keeps a photograph a photograph; `x4plus-anime`, 3 times cheaper, and `animevideov3`, 29 times, draw; or a " ..
      "file: the authors' `.pth`, safetensors, or ncnn's `.param` beside its `.bin`" },
  { 'scale', 'number', client = 'simple', min = 0.1, max = 16, metavar = '2|3|4|X', default_text = "the network's",
    help = 'how many times larger; what the network has not is resized by Lanczos4' },
  { 'tile', tile, client = 'advanced', default = 'auto',
    help = 'side of the pieces that a picture goes through in; auto: as large as memory allows',
    doc = 'side of the pieces that a picture goes through the network in (pixels); `auto`: whole where memory allows' },
  { 'denoise', 'number', min = 0, max = 1, metavar = 'S',
    help = 'of realesr-general-x4v3: how much noise it removes; mixes it with the wdn file beside it',
    doc = 'how much noise `realesr-general-x4v3` removes, 0 to 1: its weights are mixed with those of the `wdn` file beside it' },
  { 'device', 'string', default = 'auto', metavar = 'NAME', help = 'auto, cpu, cuda or cuda:N; several cards: cuda:0,cuda:1 or cuda:all',
    doc = '`auto`, `cpu`, `cuda` or `cuda:N`; frames of a video on several cards: `cuda:0,cuda:1`, or `cuda:all`' },
  { 'dtype', 'choice', choices = { 'f32', 'f16', 'bf16' }, help = 'of the weights',
    default = function(s) return s.device == 'cpu' and 'f32' or 'f16' end, default_text = 'f16 on a GPU, f32 on a CPU' },
  { 'codec', 'string', metavar = 'NAME', help = "FFmpeg's video encoder", default_text = 'libx264' },
  { 'crf', 'int', client = 'advanced', default = 18, min = 0, max = 63, help = "encoder's quality, less is better" },
  { 'lossless', 'flag', client = 'advanced', default = false,
    help = "FFV1 in RGB, in Matroska; of more than 8 bits in the video's own form" },
  { 'pix_fmt', 'string', metavar = 'NAME', help = "FFmpeg's name of the result's pixels, as in yuv422p10le",
    default_text = "yuv420p; of a video of more than 8 bits its own, where the encoder can" },
  { 'report', 'output', report = false, help = 'JSON with the seconds of each stage, settings, versions' },
  { 'quiet', 'flag', default = false, report = false, help = 'no progress' },
}
