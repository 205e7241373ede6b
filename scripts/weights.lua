-- Lists the tensors of a weights file.

local cr = require 'cr'
local json = require 'cr.json'

local args = require 'cr.tools.cli'.parse(arg, {
  name = 'weights',
  summary = 'Lists the tensors of a safetensors, PyTorch, .npy, CTranslate2 or ONNX file, and counts values that are not finite.',
  options = {
    { '--json', 'flag', help = 'print JSON, with mean, standard deviation, minimum and maximum of each tensor' },
  },
  positional = { { 'file', 'file', help = 'the file to list' } },
})

local file = cr.weights.open(args.file)

--- The numbers of NaN and of infinite values in a tensor.
local function not_finite(t)
  if t.dtype:find '^[iub]' and t.dtype ~= 'bf16' or t:numel() == 0 then return 0, 0 end
  local sum = t:sum():item()
  if sum - sum == 0 then return 0, 0 end -- one pass suffices if all values are finite
  return t:ne(t):to('i64'):sum():item(), t:to('f64'):abs():eq(math.huge):to('i64'):sum():item()
end

--- Mean, population standard deviation, minimum and maximum in float64; nil for empty tensors and for dtypes that
--- Crescent does not support.
local function statistics(name, info)
  if info.dtype == 'other' then return {} end
  return cr.scope(function()
    local t = file:get(name)
    if t:numel() == 0 then return {} end
    local nan, inf = not_finite(t)
    t = t:to 'f64'
    return { mean = t:mean():item(), std = t:std():item(), min = t:min():item(), max = t:max():item(), nan = nan, inf = inf }
  end)
end

local function print_json()
  local rows = {}
  for i, name in ipairs(file.names) do
    local info = file:info(name)
    local s = statistics(name, info)
    rows[i] = ('%s: {"dtype": "%s", "shape": [%s], "mean": %s, "std": %s, "min": %s, "max": %s, "nan": %s, "inf": %s}'):format(
      json.encode(name), info.dtype, table.concat(info.shape, ', '), json.number(s.mean), json.number(s.std), json.number(s.min),
      json.number(s.max), json.number(s.nan), json.number(s.inf))
  end
  io.write('{"tensors": {', #rows > 0 and '\n' or '', table.concat(rows, ',\n'), '}}\n')
end

local function amount(n, unit)
  if n < 1e6 then return ('%d %s'):format(n, unit) end
  local gap = #unit > 1 and ' ' or ''
  if n < 1e9 then return ('%.1f M%s%s'):format(n / 1e6, gap, unit) end
  return ('%.2f G%s%s'):format(n / 1e9, gap, unit)
end

--- The remark after a row: why the tensor cannot be read, or which values are not finite; and their count.
local function remark(name, info)
  if info.trouble then return '  ' .. info.trouble, 0 end
  local nan, inf = 0, 0
  cr.scope(function() nan, inf = not_finite(file:get(name)) end)
  local parts = {}
  if nan > 0 then parts[#parts + 1] = nan .. ' nan' end
  if inf > 0 then parts[#parts + 1] = inf .. ' inf' end
  return parts[1] and '  ' .. table.concat(parts, ', ') or '', nan + inf
end

local function print_table()
  local widest, parameters, bytes, bad = 0, 0, 0, 0
  local shown = {}
  for i, name in ipairs(file.names) do
    shown[i] = cr.weights.printable(name)
    widest = math.max(widest, #shown[i])
  end
  for i, name in ipairs(file.names) do
    local info = file:info(name)
    local n = 1
    for _, size in ipairs(info.shape) do n = n * size end
    local text, count = remark(name, info)
    parameters, bytes, bad = parameters + n, bytes + info.bytes, bad + count
    -- string.format pads to at most 99 columns.
    print(('%s  %-5s [%s]%s'):format(shown[i] .. (' '):rep(widest - #shown[i]), info.dtype, table.concat(info.shape, ' '), text))
  end
  print(('%d tensors, %s, %s, %s%s'):format(#file.names, amount(parameters, 'parameters'), amount(bytes, 'B'), file.format,
    bad > 0 and (', %d values not finite'):format(bad) or ''))
end

if args.json then print_json() else print_table() end
