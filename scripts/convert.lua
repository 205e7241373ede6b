-- Converts any readable weights file to safetensors.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local weights = require 'cr.weights'

local args = cli.parse(arg, {
  name = 'convert',
  summary = 'Writes the tensors of a safetensors, PyTorch, .npy or CTranslate2 file as safetensors.',
  options = {
    { '--dtype', 'choice', choices = { 'f32', 'f16', 'bf16', 'f64' }, default_text = "the file's own",
      help = 'of the floating-point tensors' },
  },
  positional = {
    { 'in', 'file', help = 'the file to read' },
    { 'out', 'file', help = 'the file to write; ends in .safetensors' },
  },
  epilog = "A Whisper model of CTranslate2 gets OpenAI's names; of it only the encoder is written.",
})

if not args.out:find '%.safetensors$' then
  cli.fail(('%s: the name of the file to write must end in .safetensors'):format(args.out))
end

local floats = { f32 = true, f16 = true, bf16 = true, f64 = true }
local json = require 'cr.json'

local file = weights.open(args['in'])
local tensors, metadata = {}, {}
for key, value in pairs(file.metadata) do
  metadata[tostring(key)] = type(value) == 'string' and value or json.encode(value)
end
if file.format == 'ctranslate2' and file:has 'encoder/conv1/weight' then
  local dims
  tensors, dims = require 'models.networks.whisper'.from_ctranslate2(file)
  metadata = { dims = json.encode(dims) }
else
  for _, name in ipairs(file.names) do tensors[name] = file:get(name) end
end
if args.dtype then
  for name, tensor in pairs(tensors) do
    if floats[tensor.dtype] then tensors[name] = tensor:to(args.dtype) end
  end
end
cr.save(args.out, tensors, next(metadata) and metadata or nil)
