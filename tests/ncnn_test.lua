--- The reader of ncnn's files: small networks that are written here, and damaged files or other networks.

local cr = require 'cr'
local ncnn = require 'models.networks.ncnn'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'

local LINES = {
  'Input in 0 1 data',
  'Split s 1 2 data a b',
  'Convolution c0 1 1 b x0 0=4 1=3 4=1 5=1 6=108',
  'PReLU p0 1 1 x0 x1 0=4',
  'Convolution c1 1 1 x1 x2 0=12 1=3 4=1 5=1 6=432',
  'PixelShuffle ps 1 1 x2 x3 0=2',
  'Interp i 1 1 a x4 0=1 1=2.0 2=2.0',
  'BinaryOp add 2 1 x3 x4 output',
}

local function graph(name, change)
  local lines = {}
  for i, line in ipairs(LINES) do lines[i] = line end
  if change then change(lines) end
  return scratch.write(name .. '.param', ('7767517\n%d 9\n%s\n'):format(#lines, table.concat(lines, '\n')))
end

local function ramp(n, at)
  local list = {}
  for i = 1, n do list[i] = at + i end
  return scratch.floats(unpack(list))
end

local function numbers()
  return scratch.le(0, 4) .. ramp(108, 0) .. ramp(4, 1000) .. ramp(4, 2000) .. scratch.le(0, 4) .. ramp(432, 3000) .. ramp(12, 4000)
end

local function refuse(name, change, bytes, pattern)
  local param = graph(name, change)
  scratch.write(name .. '.bin', bytes or numbers())
  t.raises(function() ncnn.open(param) end, pattern)
end

t.test("weights get the authors' names, in the order of the file", function()
  local param = graph 'good'
  scratch.write('good.bin', numbers())
  local file = ncnn.open(param)
  t.equal(table.concat(file.names, ' '), 'body.0.bias body.0.weight body.1.weight body.2.bias body.2.weight')
  t.equal(table.concat(file:info 'body.2.weight'.shape, ' '), '12 4 3 3')
  cr.scope(function()
    t.equal(file:get 'body.0.weight':select(1, 2):select(1, 1):select(1, 1):select(1, 1):item(), 28)
    t.equal(file:get 'body.0.bias':select(1, 1):item(), 1001)
    t.equal(file:get 'body.1.weight':select(1, 4):item(), 2004)
    t.equal(file:get 'body.2.bias':select(1, 12):item(), 4012)
  end)
  file:close()
end)

t.test('float16 weights are padded to four bytes', function()
  local param = graph('half', function(lines)
    lines[3] = 'Convolution c0 1 1 b x0 0=1 1=3 4=1 5=1 6=27'
    lines[4] = 'PReLU p0 1 1 x0 x1 0=1'
    lines[5] = 'Convolution c1 1 1 x1 x2 0=12 1=3 4=1 5=1 6=108'
  end)
  local one = scratch.le(0x3C00, 2)
  scratch.write('half.bin', scratch.le(0x01306B47, 4) .. one:rep(27) .. '\0\0' .. ramp(1, 6) .. ramp(1, 7) .. scratch.le(0x01306B47, 4) ..
    one:rep(108) .. ramp(12, 0))
  local file = ncnn.open(param)
  cr.scope(function()
    t.equal(file:get 'body.0.weight'.dtype, 'f16')
    t.equal(file:get 'body.0.weight':to 'f32':sum():item(), 27)
    t.equal(file:get 'body.0.bias':item(), 7)
    t.equal(file:get 'body.1.weight':item(), 8)
  end)
  file:close()
end)

t.test('a graph of another network is refused with its line', function()
  local function line(k, text) return function(lines) lines[k] = text end end
  refuse('other', line(4, 'Sigmoid p0 1 1 x0 x1'), nil, 'line 6: neither RRDBNet nor SRVGGNetCompact has a layer Sigmoid')
  refuse('inputs', line(8, 'BinaryOp add 2 1 x3 x3 output'), nil, 'line 10: its inputs differ')
  refuse('times', line(8, 'BinaryOp add 2 1 x3 x4 output 0=2'), nil, 'line 10: its parameter 0 differs')
  refuse('stride', line(3, 'Convolution c0 1 1 b x0 0=4 1=3 3=2 4=1 5=1 6=108'), nil, 'strides or is dilated')
  refuse('channels', line(5, 'Convolution c1 1 1 x1 x2 0=12 1=3 4=1 5=1 6=433'), nil, 'line 7: it does not take 4 channels')
  refuse('early', line(3, 'Convolution c0 1 1 nowhere x0 0=4 1=3 4=1 5=1 6=108'), nil, 'line 5: nowhere is used before it is defined')
  refuse('more', function(lines) lines[9] = 'Interp z 1 1 output last 0=1 1=2.0 2=2.0' end, nil, 'parameter 0 differs')
  refuse('count', line(3, 'Convolution c0 1e9 1 b x0 0=4'), nil, 'line 5 is not a layer')
end)

t.test('missing, surplus or quantized weights are refused', function()
  refuse('short', nil, numbers():sub(1, -5), 'truncated')
  refuse('long', nil, numbers() .. '1234', 'it has 2252 bytes, but the graph needs only 2248')
  refuse('int8', nil, scratch.le(0x000D4B38, 4) .. numbers():sub(5), 'body%.0 are quantized %(0x000D4B38%)')
  refuse('empty', nil, '', 'truncated')
  t.raises(function() ncnn.open(scratch.write('text.param', 'hello\n1 1\n')) end, 'does not begin like a %.param')
  t.raises(function() ncnn.open(scratch.write('cut.param', '7767517\n9 9\nInput in 0 1 data\n')) end, 'truncated: expected 9 layers')
  t.raises(function() ncnn.open(graph 'alone') end, 'alone%.bin')
end)

t.done()
