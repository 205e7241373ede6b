-- Converts any readable weights file to safetensors.

local cr = require 'cr'
local cli = require 'cr.tools.cli'

local args = cli.parse(arg, {
  name = 'convert',
  summary = 'Writes the tensors of a safetensors, PyTorch, .npy or CTranslate2 file as safetensors.',
  options = {
    { '--dtype', 'choice', choices = { 'f32', 'f16', 'bf16', 'f64' }, default_text = "the file's own",
      help = 'data type of the floating-point tensors' },
  },
  positional = {
    { 'in', 'file', help = 'the file to read' },
    { 'out', 'file', help = 'the file to write; ends in .safetensors' },
  },
  epilog = "A CTranslate2 Whisper model gets OpenAI's names; only its encoder is written.",
})

if not args.out:find '%.safetensors$' then
  cli.fail(('%s: the name of the file to write must end in .safetensors'):format(args.out))
end
require 'cr.files'.check_output(args.out, { IN = args['in'] })

local floats = { f32 = true, f16 = true, bf16 = true, f64 = true }
local json = require 'cr.json'

local file = cr.weights.open(args['in'])
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

--- The number of values that a conversion turned into infinity.
local function overflows(before, after)
  local function infinities(t) return t:to('f64'):abs():eq(math.huge):to('i64'):sum():item() end
  return cr.scope(function() return infinities(after) - infinities(before) end)
end

if args.dtype then
  local names, total, touched, first = {}, 0, 0, nil
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local before = tensors[name]
    if floats[before.dtype] and before.dtype ~= args.dtype then
      tensors[name] = before:to(args.dtype)
      local n = before:numel() > 0 and overflows(before, tensors[name]) or 0
      if n > 0 then total, touched, first = total + n, touched + 1, first or name end
    end
  end
  if total > 0 then
    io.stderr:write(('crescent: %s: %d values in %d tensor%s exceed the range of %s and became infinite (%s%s)\n'):format(args['in'],
      total, touched, touched == 1 and '' or 's', args.dtype, cr.weights.printable(first), touched == 1 and '' or ', ...'))
  end
end
cr.save(args.out, tensors, next(metadata) and metadata or nil)
