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
    doc = "`x4plus` keeps photographs realistic; `x4plus-anime`, 3 times cheaper, and `animevideov3`, 29 times, are for drawings; or a " ..
      "file: the authors' `.pth`, safetensors, or ncnn's `.param` beside its `.bin`" },
  { 'scale', 'number', client = 'simple', min = 0.1, max = 16, metavar = '2|3|4|X', default_text = "the network's",
    help = 'scale factor; scales that the network does not have are resized by Lanczos4' },
  { 'tile', tile, client = 'advanced', default = 'auto',
    help = 'side of tiles; auto: the whole image if memory allows',
    doc = 'side of tiles (pixels); `auto`: the whole image if memory allows' },
  { 'denoise', 'number', min = 0, max = 1, metavar = 'S',
    help = 'for realesr-general-x4v3: strength of noise removal; blends its weights with those of the wdn file beside it',
    doc = 'strength of noise removal of `realesr-general-x4v3`, 0 to 1: its weights are blended with those of the `wdn` file beside it' },
  { 'device', 'string', default = 'auto', metavar = 'NAME', help = 'auto, cpu, cuda or cuda:N; several GPUs: cuda:0,cuda:1 or cuda:all',
    doc = '`auto`, `cpu`, `cuda` or `cuda:N`; frames of a video on several GPUs: `cuda:0,cuda:1` or `cuda:all`' },
  { 'dtype', 'choice', choices = { 'f32', 'f16', 'bf16' }, help = 'data type of weights and activations',
    default = function(s) return s.device == 'cpu' and 'f32' or 'f16' end, default_text = 'f16 on a GPU, f32 on a CPU' },
  { 'codec', 'string', metavar = 'NAME', help = "FFmpeg's video encoder", default_text = 'libx264' },
  { 'crf', 'int', client = 'advanced', default = 18, min = 0, max = 63, help = "encoder's quality, lower is better" },
  { 'lossless', 'flag', client = 'advanced', default = false,
    help = "FFV1 in RGB, in Matroska; above 8 bits in the video's own pixel format" },
  { 'pix_fmt', 'string', metavar = 'NAME', help = "FFmpeg's name of the result's pixel format, as in yuv422p10le",
    default_text = "yuv420p; above 8 bits the video's own, if the encoder supports it" },
  { 'report', 'output', report = false, help = 'JSON file with the seconds of each stage, settings, versions' },
  { 'quiet', 'flag', default = false, report = false, help = 'no progress' },
}
