--- crescent onnx: its listing, its output files, its refusals.

local cr = require 'cr'
local format = require 'tests.support.onnx'
local scratch = require 'tests.support.scratch'
local t = require 'tests.support.tap'

local program = scratch.program .. ' onnx '

local function model(name, spec) return scratch.write(name, format.model(spec)) end

--- Two inputs whose names contain characters that are special in shells and file names; outputs of three types.
local path = model('two.onnx', {
  inputs = { { 'in (8, 8)=a', { 1, 'N' } }, { 'in (8, 8)', { 2 }, type = format.INT64 } },
  outputs = { { 'a/b' }, { 'a_b', {}, type = format.INT64 }, { 'stride.(8, 8)', {}, type = format.BOOL } },
  tensors = { { { 3 }, { 1, 2, 3 }, name = 'c' } },
  nodes = { { 'Add', { 'in (8, 8)=a', 'c' }, { 'a/b' } }, { 'Neg', { 'in (8, 8)' }, { 'a_b' } },
    { 'Less', { 'in (8, 8)=a', 'c' }, { 'stride.(8, 8)' } } },
})
local floats, whole = scratch.path 'floats.npy', scratch.path 'whole.npy'
cr.save(floats, cr.tensor { { 1, 5, 0 } })
cr.save(whole, cr.tensor({ 7, -2 }, { dtype = 'i32' }))

local function flat(file)
  return cr.scope(function()
    local x = cr.load(file)
    return x.dtype .. ' [' .. table.concat(x.shape, ' ') .. '] ' .. table.concat(x:reshape(-1):tolist(), ' ')
  end)
end

t.test('without inputs it describes the network', function()
  local text, status = scratch.command(program .. path)
  t.equal(status, 0, text)
  t.ok(text:find('two.onnx: ONNX, operator set 13, 3 nodes, made by test\n', 1, true), text)
  t.ok(text:find('  in (8, 8)=a  f32 [1 N]\n  in (8, 8)  i64 [2]\n', 1, true), text)
  t.ok(text:find('  stride.(8, 8)  bool []\n', 1, true), text)
  t.ok(text:find '\n  Add +1\n  Less +1\n  Neg +1\n', text)
  t.ok(text:find('constants: 1 tensors, 3 numbers, 12 bytes\neverything is supported\n', 1, true), text)
  text, status = scratch.command(program .. model('missing.onnx', {
    inputs = { { 'x' } }, outputs = { { 'y' } }, nodes = { { 'Relu', { 'x' }, { 'h' } }, { 'LSTM', { 'h' }, { 'y' }, name = 'rnn' } },
  }))
  t.equal(status, 0, text)
  t.ok(text:find("not supported: LSTM of node 1 'rnn' (LSTM)", 1, true), text)
end)

t.test('with inputs it writes each output, whatever its name', function()
  local out = scratch.path 'results'
  local command = ("%s%s --in 'in (8, 8)=a=%s' --in 'in (8, 8)=%s' --out %s"):format(program, path, floats, whole, out)
  local text, status = scratch.command(command)
  t.equal(status, 0, text)
  t.equal(flat(out .. '/a_b.npy'), 'f32 [1 3] 2 7 3', 'a/b')
  t.equal(flat(out .. '/a_b_.npy'), 'i64 [2] -7 2', 'a_b')
  t.equal(flat(out .. '/stride.(8, 8).npy'), 'bool [1 3] 0 0 1', 'stride.(8, 8)')
  t.ok(text:find('results/a_b.npy  f32 [1 3]\n', 1, true), text)
  text, status = scratch.command(command) -- into the existing folder
  t.equal(status, 0, text)
end)

t.test('errors are one sentence, and nothing is written', function()
  local function refused(arguments, pattern, code)
    local out = scratch.path 'nothing'
    local text, status = scratch.command(('%s%s --out %s'):format(program, arguments, out))
    t.equal(status, code or 1, text)
    t.ok(text:find '^crescent: [^\n]*\n$' and text:find(pattern), text)
    t.ok(not require 'lfs'.attributes(out), 'no folder is made')
  end
  local whole_in = ("--in 'in (8, 8)=%s'"):format(whole)
  refused(path .. ' ' .. whole_in, "input 'in %(8, 8%)=a' is missing: the inputs are ")
  refused(("%s --in x=%s"):format(path, floats), "there is no input 'x': the inputs are in %(8, 8%)=a, in %(8, 8%)")
  refused(path .. ' --in ' .. floats, 'is not NAME=FILE%.npy')
  refused(("%s %s %s"):format(path, whole_in, whole_in), "the input 'in %(8, 8%)' is given twice")
  refused(("%s --in 'in (8, 8)=%s' --in 'in (8, 8)=a=%s'"):format(path, floats, floats), 'is i64, and a tensor of f32 was given')
  refused(path .. " --in 'in (8, 8)=nowhere.npy'", 'nowhere%.npy')
  refused(floats, 'not an ONNX file, but npy')
  refused(scratch.path 'missing.onnx', 'the operator LSTM of node 1 .* operator set 13, is not handled')
  refused(path .. ' --devise cpu', "unknown option '%-%-devise'", 2)
  refused(path .. ' --dtype f8', '%-%-dtype', 2)
  refused(path .. ' --device tpu', '%-%-device')
  local text, status = scratch.command(("%s%s %s --out %s"):format(program, path, whole_in, floats))
  t.ok(status == 1 and text:find 'floats%.npy is not a folder', text)
  local one = model('one.onnx', { inputs = { { 'x' } }, outputs = { { 'x2' } }, nodes = { { 'Relu', { 'x' }, { 'x2' } } } })
  local source = scratch.path 'x2.npy'
  cr.save(source, cr.tensor { -1, 2 })
  text, status = scratch.command(("%s%s --in x=%s --out %s"):format(program, one, source, source:match '^(.*)/'))
  t.ok(status == 1 and text:find 'x2%.npy is also the input of %-%-in', text)
  t.equal(flat(source), 'f32 [2] -1 2', 'the input is as it was')
end)

t.done()
