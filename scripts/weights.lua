-- Lists what a weights file holds.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local json = require 'cr.json'
local weights = require 'cr.weights'

local args = cli.parse(arg, {
  name = 'weights',
  summary = 'Lists the tensors of a safetensors, PyTorch, .npy or CTranslate2 file.',
  options = {
    { '--json', 'flag', help = 'as JSON, with mean, standard deviation, minimum and maximum of each tensor' },
  },
  positional = { { 'file', 'file', help = 'the file to look into' } },
})

local file = weights.open(args.file)

--- Mean, population standard deviation, minimum and maximum in float64; nothing for empty tensors
--- and for dtypes that Crescent lacks.
local function statistics(name, info)
  if info.dtype == 'other' then return {} end
  return cr.scope(function()
    local t = file:get(name)
    if t:numel() == 0 then return {} end
    t = t:to 'f64'
    return { mean = t:mean():item(), std = t:std():item(), min = t:min():item(), max = t:max():item() }
  end)
end

local function print_json()
  local rows = {}
  for i, name in ipairs(file.names) do
    local info = file:info(name)
    local s = statistics(name, info)
    rows[i] = ('%s: {"dtype": "%s", "shape": [%s], "mean": %s, "std": %s, "min": %s, "max": %s}'):format(
      json.encode(name), info.dtype, table.concat(info.shape, ', '), json.number(s.mean), json.number(s.std), json.number(s.min),
      json.number(s.max))
  end
  io.write('{"tensors": {', #rows > 0 and '\n' or '', table.concat(rows, ',\n'), '}}\n')
end

local function amount(n, unit)
  if n < 1e6 then return ('%d %s'):format(n, unit) end
  local gap = #unit > 1 and ' ' or ''
  if n < 1e9 then return ('%.1f M%s%s'):format(n / 1e6, gap, unit) end
  return ('%.2f G%s%s'):format(n / 1e9, gap, unit)
end

local function print_table()
  local widest, parameters, bytes = 0, 0, 0
  for _, name in ipairs(file.names) do widest = math.max(widest, #name) end
  for _, name in ipairs(file.names) do
    local info = file:info(name)
    local n = 1
    for _, size in ipairs(info.shape) do n = n * size end
    parameters, bytes = parameters + n, bytes + info.bytes
    -- (format pads to 99 columns at most.)
    local shown = name:gsub('%c', '?') .. (' '):rep(widest - #name)
    print(('%s  %-5s [%s]'):format(shown, info.dtype, table.concat(info.shape, ' ')))
  end
  print(('%d tensors, %s, %s, %s'):format(#file.names, amount(parameters, 'parameters'), amount(bytes, 'B'), file.format))
end

if args.json then print_json() else print_table() end
