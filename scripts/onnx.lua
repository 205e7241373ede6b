-- Describes an ONNX file, or runs it on arrays.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local lfs = require 'lfs'

local args = cli.parse(arg, {
  name = 'onnx',
  summary = "Lists a network's inputs, outputs, operators and what is not supported; with --in, runs it.",
  options = {
    { '--in', 'string', many = true, metavar = 'NAME=FILE.npy', help = 'an input and its file, once for each input' },
    { '--out', 'string', default_text = 'the folder one is in', metavar = 'FOLDER',
      help = 'folder for the outputs, NAME.npy each; it is created if necessary' },
    { '--device', 'string', default = 'cpu', metavar = 'NAME', help = 'auto, cpu, cuda or cuda:N' },
    { '--dtype', 'choice', choices = { 'f32', 'f16', 'bf16' }, default = 'f32', help = "data type of the network's f32 tensors" },
  },
  positional = { { 'model', 'file', help = 'the ONNX file' } },
})

local function fail(...) cli.fail((string.format(...))) end

--- Returns the results of a call; if it fails, its message ends the program.
local function checked(fn, ...)
  local results = { pcall(fn, ...) }
  if not results[1] then cli.fail((tostring(results[2]):gsub('^[^\n]-%.lua:%d+: ', ''))) end
  return unpack(results, 2)
end

local net = checked(cr.onnx.open, args.model,
  { device = checked(cli.device, args.device), dtype = args.dtype })

local function printable(name) return cr.weights.printable(name) end

-- ---- description --------------------------------------------------------------------------------

local function print_values(title, list)
  print(title)
  for _, v in ipairs(list) do
    local sizes = {}
    for i, size in ipairs(v.shape or {}) do sizes[i] = printable(tostring(size)) end
    print(('  %s  %s %s'):format(printable(v.name), v.dtype, v.shape and '[' .. table.concat(sizes, ' ') .. ']' or '(no shape)'))
  end
  if #list == 0 then print '  none' end
end

local function print_network()
  print(('%s: ONNX, operator set %d, %d nodes%s'):format(args.model, net.opset, net.count,
    net.producer ~= '' and ', made by ' .. printable(net.producer) or ''))
  print_values('inputs, as the file declares them:', net.inputs)
  print_values('outputs, as the file declares them:', net.outputs)
  local names, bytes, numbers = {}, 0, 0
  for op in pairs(net.operators) do names[#names + 1] = op end
  table.sort(names)
  print 'operators:'
  for _, op in ipairs(names) do print(('  %-20s %d'):format(printable(op), net.operators[op])) end
  for _, name in ipairs(net.file.names) do
    local info, count = net.file:info(name), 1
    for _, size in ipairs(info.shape) do count = count * size end
    bytes, numbers = bytes + info.bytes, numbers + count
  end
  print(('constants: %d tensors, %d numbers, %d bytes'):format(#net.file.names, numbers, bytes))
  for _, m in ipairs(net.missing) do print(('not supported: %s of %s'):format(printable(m.op), m.what)) end
  local ok, problem = pcall(net.expect_handled, net)
  if ok then
    print 'everything is supported'
  elseif #net.missing == 0 then
    print('not handled: ' .. problem)
  end
end

-- ---- running ------------------------------------------------------------------------------------------

local folder = (args.out or '.'):gsub('(.)/+$', '%1')

--- The input tensors by name, and their files.
local function read_inputs()
  local inputs, paths = {}, {}
  for _, text in ipairs(args['in']) do
    local name, path
    for _, v in ipairs(net.inputs) do
      -- If one name is a prefix of another, the longest match counts.
      if text:sub(1, #v.name + 1) == v.name .. '=' and #v.name >= #(name or '') then name, path = v.name, text:sub(#v.name + 2) end
    end
    if not name then
      local names = {}
      for i, v in ipairs(net.inputs) do names[i] = printable(v.name) end
      if not text:find '=' then fail("--in: '%s' is not NAME=FILE.npy", printable(text)) end
      fail("--in: there is no input '%s': the inputs are %s", printable(text:match '^(.*)='), table.concat(names, ', '))
    end
    if inputs[name] then fail("--in: the input '%s' is given twice", printable(name)) end
    cli.check_readable('--in', path)
    local file = checked(cr.weights.open, path)
    if #file.names ~= 1 then fail('--in: %s holds %d tensors, not one', path, #file.names) end
    inputs[name] = checked(file.get, file, file.names[1])
    paths[#paths + 1] = path
  end
  return inputs, paths
end

--- The output files, in order.
local function output_paths(inputs)
  local taken, list = {}, {}
  for i, v in ipairs(net.outputs) do
    local name = v.name:gsub('[/%z\1-\31\127]', '_')
    while taken[name] do name = name .. '_' end
    taken[name] = true
    list[i] = ('%s/%s.npy'):format(folder, name)
    require 'cr.files'.check_output(list[i], { ['--in'] = inputs, MODEL = args.model }, '--out')
  end
  return list
end

if #args['in'] == 0 and not args.out then
  print_network()
else
  local inputs, sources = read_inputs()
  local paths = output_paths(sources)
  if lfs.attributes(folder, 'mode') and lfs.attributes(folder, 'mode') ~= 'directory' then fail('--out: %s is not a folder', folder) end
  cr.scope(function()
    local results = { checked(net.run, net, inputs) }
    for i, y in ipairs(results) do
      results[i] = y:to 'cpu'
      if y.dtype == 'bf16' then results[i] = y:to 'f32' end -- .npy has no bf16
    end
    if not lfs.attributes(folder, 'mode') then
      local ok, reason = lfs.mkdir(folder)
      if not ok then fail('--out: the folder %s cannot be created: %s', folder, reason) end
    end
    for i, y in ipairs(results) do
      checked(cr.save, paths[i], y)
      print(('%s  %s [%s]'):format(paths[i], y.dtype, table.concat(y.shape, ' ')))
    end
  end)
end
