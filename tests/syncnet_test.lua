-- SyncNet, its audio features, and S3FD: compared with the reference's values, and with their own documentation.

local cr = require 'cr'
local t = require 'tests.support.tap'
local formula = require 'tests.support.formula'
local help = require 'tests.support.networks'
local mfcc = require 'models.networks.mfcc'
local s3fd = require 'models.networks.s3fd'
local scratch = require 'tests.support.scratch'
local syncnet = require 'models.networks.syncnet'
local golden = require 'tests.golden.syncnet'

local function raw(name, shape) return formula.tensor('input:' .. name, shape, { kind = 'raw' }) end

local function net_of(sizes, settings)
  local expected = syncnet.expected(sizes)
  return syncnet.new(help.tree(expected, { buffers = help.variances(expected) }), { settings = settings, where = 'test' })
end

local SMALL = { sound = { 4, 6, 8, 6, 6, 10 }, mouth = { 6, 5, 7, 6, 6, 9 }, picture = { 1, 3 }, sound_hidden = 11,
  mouth_hidden = 12, embedding = 16 }
local SMALL_SETTINGS = { crop = 'aligned', size = 128, rows = { 64, 128 }, channels = 'rgb', scale = 1 / 127.5,
  shift = -1, normalize = true }

--- Every n-th number of a tensor, in order.
local function thinned(x, step)
  local all, list = x:reshape(x:numel()):tolist(), {}
  for i = 1, #all, step do list[#list + 1] = all[i] end
  return cr.tensor(list)
end

-- ---- sound -------------------------------------------------------------------------------------

t.test('the MFCCs are python_speech_features\'', function()
  local samples = (raw('sound', { 4321 }) * 9000):floor()
  samples:narrow(1, 1, 1000):fill_(0)
  local rows = mfcc.compute(samples)
  t.equal(table.concat(rows.shape, ' '), '26 13')
  for r, want in pairs(golden.mfcc) do t.near(rows:select(1, r), cr.tensor(want), 1e-6, 'row ' .. r) end
  mfcc.free()
end)

t.with_shared('the MFCCs of a real voice are python_speech_features\'', function(shared)
  local gold = cr.weights.open(shared 'golden/golden_image.safetensors')
  local samples = require 'cr.media'.load_audio(shared 'demo/demo1_audio.wav', { rate = 16000, channels = 1, s16 = true })
  t.near(mfcc.compute(samples:narrow(1, 1, 32000) * 32768), gold:get 'mfcc.demo1', 1e-6)
  gold:close()
  mfcc.free()
end)

t.test('a piece of a sound gives the same rows as the whole; short and invalid sounds', function()
  local samples = (raw('sound', { 8000 }) * 9000):floor()
  local whole = mfcc.compute(samples)
  local piece = mfcc.compute(samples:narrow(1, 1601, 160 * 9 + 400), samples:narrow(1, 1600, 1):item())
  t.near(piece, whole:narrow(1, 11, 10), 0)
  t.equal(mfcc.compute(samples:narrow(1, 1, 1)):size(1), 1)
  t.equal(mfcc.compute(samples:narrow(1, 1, 400)):size(1), 1)
  t.equal(mfcc.compute(samples:narrow(1, 1, 401)):size(1), 2)
  t.raises(function() mfcc.compute(cr.zeros(2, 100)) end, 'samples %[n%]')
  t.raises(function() mfcc.compute 'sound.wav' end, 'samples %[n%]')
  mfcc.free()
end)

-- ---- SyncNet -------------------------------------------------------------------------------------

t.test('the list of tensors is syncnet_v2.model\'s', function()
  t.equal(help.difference(syncnet.expected(), help.read_keys(cr.root .. '/tests/golden/syncnet_keys.txt')), nil)
end)

t.test('the full network gives the reference\'s embeddings', function()
  local net = net_of()
  local lip = raw('lip', { 2, 3, 5, 224, 224 }) * 127.5 + 127.5
  local sound = raw('mfcc', { 2, 1, 13, 20 }) * 20
  local mouths, sounds = {}, {}
  for i = 1, 2 do
    local bgr = lip:select(1, i):permute(2, 3, 4, 1)
    mouths[i] = net:mouth(cr.cat({ bgr:narrow(4, 3, 1), bgr:narrow(4, 2, 1), bgr:narrow(4, 1, 1) }, 4))
    sounds[i] = net:sound(sound:select(1, i):select(1, 1):t())
  end
  t.near(thinned(cr.cat(mouths, 1), 64), cr.tensor(golden.lip), 1e-5)
  t.near(thinned(cr.cat(sounds, 1), 64), cr.tensor(golden.audio), 1e-5)
end)

t.test('consecutive windows equal single ones', function()
  local net = net_of(SMALL, SMALL_SETTINGS)
  local pictures = ((raw('pictures', { 8, 64, 128, 3 }) + 1) * 127.4):to 'u8'
  local rows = raw('rows', { 4 * 3 + 20, 13 }) * 20
  local mouths, sounds = net:mouth(pictures), net:sound(rows)
  t.equal(table.concat(mouths.shape, ' '), '4 16')
  t.equal(table.concat(sounds.shape, ' '), '4 16')
  for i = 1, 4 do
    t.near(net:mouth(pictures:narrow(1, i, 5)), mouths:narrow(1, i, 1), 1e-5)
    t.near(net:sound(rows:narrow(1, 4 * i - 3, 20)), sounds:narrow(1, i, 1), 1e-5)
  end
  t.near(mouths:square():sum(2), cr.ones(4), 1e-5, 'length 1')
  local last = net:mouth(cr.cat({ pictures:narrow(1, 1, 4), pictures:narrow(1, 6, 1) }, 1))
  t.ok(t.relative_error(last, mouths:narrow(1, 1, 1)) > 1e-4, 'the fifth frame counts')
end)

t.test('colours, scale and shift follow the settings', function()
  local function plain(more)
    local s = { crop = 'aligned', size = 128, rows = { 0, 64 }, channels = 'rgb' }
    for key, value in pairs(more) do s[key] = value end
    return net_of(SMALL, s)
  end
  local x = ((raw('pictures', { 5, 64, 128, 3 }) + 1) * 127.4):to 'u8'
  local turned = cr.cat({ x:narrow(4, 3, 1), x:narrow(4, 2, 1), x:narrow(4, 1, 1) }, 4)
  t.near(plain { channels = 'bgr' }:mouth(turned), plain({}):mouth(x), 0)
  t.near(plain { scale = 0.5, shift = 3 }:mouth(x), plain({}):mouth(x:to 'f32' * 0.5 + 3), 1e-6)
  local long = plain({}):mouth(x)
  t.near(plain { normalize = true }:mouth(x), long / long:square():sum():sqrt(), 1e-5)
end)

t.test('a weights file: sizes are derived from it, settings are beside it', function()
  local expected = syncnet.expected(SMALL)
  local all = formula.weights(expected)
  for name, x in pairs(help.variances(expected)) do all[name] = x end
  for _, e in ipairs(expected) do
    if e.optional then all[e.name] = nil else all[e.name] = all[e.name]:to 'f16' end
  end
  local path = scratch.path 'small.safetensors'
  cr.save(path, all)
  scratch.write('small.json', require 'cjson'.encode(SMALL_SETTINGS))
  local net, same = syncnet.load(path), net_of(SMALL, SMALL_SETTINGS)
  t.equal(net.full, false)
  t.equal(net.embedding, 16)
  local pictures = ((raw('pictures', { 6, 64, 128, 3 }) + 1) * 127.4):to 'u8'
  t.near(net:mouth(pictures), same:mouth(pictures), 5e-3)
  net:free()
  net:free()

  local function refused(settings, pattern)
    scratch.write('small.json', settings)
    t.raises(function() syncnet.load(path) end, pattern)
  end
  refused('{"crop": "aligned", "size": 128, "rows": [0, 96]}', 'last convolution is 1 x 3, but an image of 96 x 128 leaves 2 x 3')
  refused('{"crop": "mouth"}', 'small.json: "crop" has an invalid value')
  refused('{"crop": "aligned", "rows": [64, 300]}', '"rows" has an invalid value')
  refused('{"scale": "2"}', '"scale" has an invalid value')
  refused('{', 'small.json cannot be read')
  os.remove(scratch.path 'small.json')
  t.raises(function() syncnet.load(path) end, 'an image of 224 x 224 leaves 6 x 6')
  cr.save(path, { ['netcnnaud.0.weight'] = cr.zeros(4, 1, 3, 3) })
  t.raises(function() syncnet.load(path) end, 'is not a SyncNet: tensor netcnnaud.4.weight is missing')
  all['netcnnaud.8.bias'] = cr.zeros(3)
  cr.save(path, all)
  t.raises(function() syncnet.load(path) end, 'netcnnaud.8.bias has shape %[3%], expected %[8%]')
  all['netcnnaud.8.bias'] = cr.tensor { 0, 0, 0, 0 / 0, 0, 0, 0, 0 }
  cr.save(path, all)
  t.raises(function() syncnet.load(path) end, 'small.safetensors: tensor netcnnaud.8.bias is not finite: its weights are damaged')
end)

-- The result of a script in a separate process that loads files with two unknown tensors, and its message about them.
local function with_strangers(name, expected, code)
  local all = formula.weights(expected)
  for key, x in pairs(help.variances(expected)) do all[key] = x end
  all['netcnnaud.99.weight'], all.epoch = cr.zeros(2), cr.zeros(1)
  local path = scratch.path(name)
  cr.save(path, all)
  local text, status = scratch.command(('%s %s %s'):format(scratch.program, scratch.write('load.lua', code), path))
  t.equal(status, 0, text)
  local line = 'crescent: ' .. path .. ': 2 tensors that this network does not have: ignored (epoch, ...)\n'
  t.equal(text:sub(1, #line), line)
  return text:sub(#line + 1)
end

t.test('tensors that SyncNet and S3FD do not use are ignored and counted', function()
  scratch.write('strange.json', require 'cjson'.encode(SMALL_SETTINGS))
  t.equal(with_strangers('strange.safetensors', syncnet.expected(SMALL), [[
    local net = require 'models.networks.syncnet'.load(arg[1])
    print(net.embedding)]]), '16\n')
  t.equal(with_strangers('faces.safetensors', s3fd.expected(), [[
    local net = require 'models.networks.s3fd'.load(arg[1])
    print(net.w.epoch, net.w.netcnnaud, net.w.vgg[0].bias:size(1))]]), 'nil\tnil\t64\n')
end)

t.test('the project\'s own network has this layout', function()
  local path = require 'models.laboratory.evaluate'.own_syncnet()
  local f = io.open(path, 'rb')
  if not f then t.skip 'models/mini has no syncnet.safetensors yet' end
  f:close()
  local net = syncnet.load(path)
  t.equal(net.full, false)
  local s = net.settings
  local mouths = net:mouth(((raw('pictures', { 6, s.height, s.width, 3 }) + 1) * 127.4):to 'u8')
  local sounds = net:sound(raw('rows', { 24, 13 }) * 20)
  t.equal(mouths:size(2), sounds:size(2))
  for name, x in pairs { pictures = mouths, sound = sounds } do
    local length = x:square():sum(2):sqrt()
    t.ok(length:min():item() > 1e-3 and length:max():item() < 1e6, 'embeddings of ' .. name)
  end
  net:free()
end)

t.test('wrong inputs get one sentence', function()
  local net = net_of(SMALL, SMALL_SETTINGS)
  t.raises(function() net:mouth(cr.zeros(5, 64, 64, 3)) end, 'images %[5 or more, 64 128 3%]')
  t.raises(function() net:mouth(cr.zeros(4, 64, 128, 3)) end, 'not %[4 64 128 3%]')
  t.raises(function() net:sound(cr.zeros(19, 13)) end, 'rows %[20 or more, 13%]')
  t.raises(function() net:sound(cr.zeros(20, 12)) end, '%[20 12%]')
  t.raises(function() syncnet.metric():add(cr.zeros(2, 4), cr.zeros(3, 4)) end, '%[2 4%] and %[3 4%]')
end)

-- ---- the metric ------------------------------------------------------------------------------

t.test('distances, offset and confidence equal the reference\'s, for every chunking of windows', function()
  local all = raw('track', { 70, 64 })
  local mouth, sound = all:narrow(1, 1, 60), all:narrow(1, 4, 60) + raw('track.noise', { 60, 64 }) * 0.3
  for _, step in ipairs { 60, 16, 1 } do
    local metric = syncnet.metric()
    for i = 1, 60, step do
      local n = math.min(step, 61 - i)
      metric:add(mouth:narrow(1, i, n), sound:narrow(1, i, n))
      t.ok(not metric.sound or metric.sound:size(1) <= 30 + step, 'few windows wait')
    end
    local result = metric:result()
    t.near(cr.tensor(result.distances), cr.tensor(golden.distances), 1e-6)
    t.equal(result.offset, golden.offset)
    t.near(result.confidence, golden.confidence, 1e-5)
    t.equal(result.windows, 60)
  end
end)

t.test('a sound that is late by k frames has offset -k; none, few windows', function()
  local all = raw('track', { 100, 32 })
  for _, k in ipairs { -15, -4, 0, 1, 15 } do
    local metric = syncnet.metric()
    metric:add(all:narrow(1, 21, 60), all:narrow(1, 21 - k, 60)) -- sound i belongs to image i - k
    local result = metric:result()
    t.equal(result.offset, -k)
    t.ok(result.confidence > 1, 'confidence')
  end
  t.equal(syncnet.metric():result(), nil)
  local metric = syncnet.metric()
  metric:add(all:narrow(1, 1, 1), all:narrow(1, 1, 1))
  t.equal(metric:result().offset, 0)
  local unfinished = syncnet.metric()
  unfinished:add(all:narrow(1, 1, 40), all:narrow(1, 1, 40))
  unfinished:free()
end)

-- ---- S3FD --------------------------------------------------------------------------------------

local function s3fd_input() return help.channels_last(raw('s3fd', { 1, 3, 128, 160 })) * 100 end

t.test('S3FD\'s tensors are sfd_face.pth\'s', function()
  t.equal(help.difference(s3fd.expected(), help.read_keys(cr.root .. '/tests/golden/s3fd_keys.txt')), nil)
end)

t.test('S3FD gives the reference\'s maps and detections', function()
  local net = s3fd.new(help.tree(s3fd.expected()))
  local boxes, scores = net:maps(s3fd_input())
  for i = 1, 6 do
    for name, pair in pairs { boxes = { boxes[i], golden.boxes[i] }, scores = { scores[i], golden.scores[i] } } do
      local first = pair[1]:permute(1, 4, 2, 3)
      t.near(thinned(first, math.ceil(first:numel() / 16)), cr.tensor(pair[2]), 1e-4, name .. ' ' .. i)
    end
  end
  local found = net:detect(s3fd_input())
  for i, want in ipairs(golden.detections) do
    t.near(cr.tensor { found[i].score, unpack(found[i].box) }, cr.tensor(want), 1e-5, 'detection ' .. i)
  end
  t.equal(#net:detect(s3fd_input(), 0.56), 2)
end)

t.test('S3FD averages the central four of 4 x 4 pixels, and its boxes are in frame pixels', function()
  local net = s3fd.new(help.tree(s3fd.expected()))
  local sure = net.w.conf[1].bias -- so that some places are detected as faces
  sure:copy_(cr.tensor { -4, 4 })
  local frame = ((raw('frame', { 192, 256, 3 }) + 1) * 127.4):to 'u8'
  local middle = frame:to 'f32':view(48, 4, 64, 4, 3):narrow(2, 2, 2):narrow(4, 2, 2):mean { 2, 4 }
  local want = net:detect((middle:round() - cr.tensor { 123, 117, 104 }):unsqueeze(1), 0.9)
  local found = net:find(frame)
  t.ok(#found >= 2 and #found < #want, ('%d of %d boxes'):format(#found, #want))
  local function far(box, other)
    local most = 0
    for k = 1, 4 do most = math.max(most, math.abs(box[k] - other[k] * (k % 2 == 1 and 256 or 192))) end
    return most
  end
  for i, face in ipairs(found) do
    local nearest = math.huge
    for _, d in ipairs(want) do nearest = math.min(nearest, far(face.box, d.box)) end
    t.near(nearest, 0, 0.1, ('pixels from a box of the network, face %d'):format(i))
  end
  t.near(far(found[1].box, want[1].box), 0, 0.1, 'the best is the first')
end)

t.test('S3FD accepts frames whose sides are not divisible by 4, and refuses small ones', function()
  local net = s3fd.new(help.tree(s3fd.expected()))
  for _, size in ipairs { { 128, 160 }, { 130, 163 }, { 133, 113 } } do
    local frame = cr.full({ size[1], size[2], 3 }, 90, { dtype = 'u8' })
    t.equal(#net:find(frame), 0)
  end
  t.raises(function() net:find(cr.zeros(100, 200, 3, { dtype = 'u8' })) end, '200 x 100 pixels is too small for S3FD')
  t.raises(function() net:find(cr.zeros(128, 160, 3)) end, 'u8 %[H W 3%], not f32')
end)

t.done()
