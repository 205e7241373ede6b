--- Runs the node tests of the `onnx` package whose operators cr.onnx supports.
--
--     pip install onnx==1.20.1 (newer wheels leave them out)
--     build/crescent tests/golden/onnx_nodes.lua .../onnx/backend/test/data/node [PATTERN]
--
-- Prints each failure with its reason, then the totals; the exit status is 1 if a test failed that no pattern of
-- EXCUSED matches. The tolerances are the package's own: |x - y| <= 1e-7 + 1e-3 |y|.

local cr = require 'cr'
local luv = require 'luv'
local onnx = require 'cr.graphs.onnx'
local format = require 'tests.support.onnx'
local weights = require 'cr.weights'

-- Tests that are known to fail, as patterns of their names, with the reasons.
local EXCUSED = {
  { 'FLOAT[48]', 'floats of 8 and 4 bits' }, { '_e8m0_', 'floats of 8 bits' }, { 'float8', 'floats of 8 bits' },
  { 'U?INT[24]', 'integers of 4 and 2 bits' }, { '_u?int[24]_', 'integers of 4 and 2 bits' }, { '_string', 'texts' },
  { '^test_identity_opt$', 'values that are no tensors' }, { '^test_identity_sequence$', 'values that are no tensors' },
  { 'training', 'training' }, { '^test_maxpool_with_argmax', "the maxima's places" },
  { '^test_not_%dd$', 'operator set 1' },
}

local function excuse(name)
  for _, e in ipairs(EXCUSED) do
    if name:find(e[1]) then return e[2] end
  end
end

local folder, pattern = arg[1], arg[2]
if not folder then
  io.stderr:write('the folder of the node tests is missing\n')
  os.exit(2)
end

local scratch = os.tmpname()

local function read(path)
  local f = io.open(path, 'rb')
  if not f then return nil end
  local bytes = f:read '*a'
  f:close()
  return bytes
end

--- The tensor of a .pb file, read as an initializer of a model.
local function tensor_of(path)
  local bytes = read(path)
  if not bytes then return nil end
  local f = assert(io.open(scratch, 'wb'))
  f:write(format.int(1, 8) .. format.bytes(2, 'test') .. format.bytes(7, format.bytes(5, bytes)) .. format.bytes(8, format.int(2, 13)))
  f:close()
  local file = weights.open(scratch)
  local t = file:get(file.names[1]):clone()
  file:close()
  return t
end

local function close_enough(a, b)
  if table.concat(a.shape, ' ') ~= table.concat(b.shape, ' ') then
    return ('the shape is [%s], not [%s]'):format(table.concat(a.shape, ' '), table.concat(b.shape, ' '))
  end
  if a.dtype ~= b.dtype then return ('the type is %s, not %s'):format(a.dtype, b.dtype) end
  if a:numel() == 0 then return nil end
  local x, y = a:reshape(-1):tolist(), b:reshape(-1):tolist()
  for i = 1, #x do
    local same = x[i] == y[i] or (x[i] ~= x[i] and y[i] ~= y[i]) or math.abs(x[i] - y[i]) <= 1e-7 + 1e-3 * math.abs(y[i])
    if not same then
      return ('element %d is %.9g, not %.9g'):format(i, x[i], y[i])
    end
  end
end

--- nil if a test passes, else the reason.
local function try(path)
  local net = onnx.open(path .. '/model.onnx')
  local ok, problem = pcall(cr.scope, function()
    local set = path .. '/test_data_set_0/'
    local inputs = {}
    for i, v in ipairs(net.inputs) do inputs[v.name] = tensor_of(set .. 'input_' .. (i - 1) .. '.pb') end
    local results = { net:run(inputs) }
    local again = { net:run(inputs) } -- the second run uses the recorded plan
    for i, v in ipairs(net.outputs) do
      local want = tensor_of(set .. 'output_' .. (i - 1) .. '.pb')
      local wrong = close_enough(results[i], want) or close_enough(again[i], want)
      if wrong then error(v.name .. ': ' .. wrong, 0) end
    end
  end)
  net:free()
  return not ok and tostring(problem) or nil
end

local names = {}
local handle = luv.fs_scandir(folder) or error('there is no folder ' .. folder, 0)
while true do
  local name = luv.fs_scandir_next(handle)
  if not name then break end
  names[#names + 1] = name
end
table.sort(names)

local passed, failed, excused, left, operators, reasons = 0, 0, 0, 0, {}, {}
for _, name in ipairs(names) do
  if not pattern or name:find(pattern) then
    local path = folder .. '/' .. name
    local opened, net = pcall(onnx.open, path .. '/model.onnx')
    if not opened then
      print(name, 'cannot be opened: ' .. tostring(net))
      failed = failed + 1
    elseif #net.missing > 0 then
      left = left + 1
      net:free()
    else
      for op in pairs(net.operators) do operators[op] = true end
      net:free()
      local problem = try(path)
      if not problem then
        passed = passed + 1
      elseif excuse(name) then
        excused = excused + 1
        reasons[excuse(name)] = (reasons[excuse(name)] or 0) + 1
      else
        failed = failed + 1
        print(name, problem)
      end
    end
  end
end
os.remove(scratch)
local list = {}
for op in pairs(operators) do list[#list + 1] = op end
table.sort(list)
print(('%d passed, %d failed, %d excused; %d use other operators'):format(passed, failed, excused, left))
for reason, count in pairs(reasons) do print(('  %d excused: %s are not handled'):format(count, reason)) end
print(#list .. ' operators: ' .. table.concat(list, ' '))
os.exit(failed == 0 and 0 or 1)
