--- The metric's networks on a GPU, and the crops for them: they agree with the CPU.

local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local help = require 'tests.support.networks'
local s3fd = require 'models.networks.s3fd'
local syncnet = require 'models.networks.syncnet'
local t = require 'tests.support.tap'
local tracks = require 'models.laboratory.tracks'

local function frame_of(height, width) return ((cuda.randn({ height, width, 3 }) + 3) * 40):clamp(0, 255):to 'u8' end

cuda.test('SyncNet gives the CPU\'s embeddings, of either size', function()
  local small = { sound = { 4, 6, 8, 6, 6, 10 }, mouth = { 6, 5, 7, 6, 6, 9 }, picture = { 1, 3 }, sound_hidden = 11,
    mouth_hidden = 12, embedding = 16 }
  local seen = { crop = 'aligned', size = 128, rows = { 64, 128 }, channels = 'rgb', scale = 1 / 127.5, shift = -1, normalize = true }
  for name, case in pairs { full = {}, small = { small, seen } } do
    local expected = syncnet.expected(case[1])
    local function net(device)
      return syncnet.new(help.tree(expected, { buffers = help.variances(expected) }), { settings = case[2], device = device })
    end
    local host, there = net 'cpu', net(cuda.device)
    local s = host.settings
    local pictures = ((cuda.randn { 7, s.height, s.width, 3 } + 3) * 40):clamp(0, 255):to 'u8'
    local rows = cuda.randn({ 28, 13 }, 'f32', 8)
    cuda.near(there:mouth(pictures), host:mouth(pictures), { message = name, limit = 1e-4 })
    cuda.near(there:mouth(pictures:to(cuda.device)), host:mouth(pictures), { message = name, limit = 1e-4 })
    cuda.near(there:sound(rows), host:sound(rows), { message = name, limit = 1e-4 })
    host:free()
    there:free()
  end
end)

cuda.library_test('S3FD gives the CPU\'s maps, and takes frames of any size', function()
  local function net(device)
    local tree = help.tree(s3fd.expected())
    if device == 'cpu' then return s3fd.new(tree) end
    local function up(node)
      for key, value in pairs(node) do
        if cr.is_tensor(value) then node[key] = value:to(device) else up(value) end
      end
    end
    up(tree)
    return s3fd.new(tree, device)
  end
  local host, there = net 'cpu', net(cuda.device)
  local x = cuda.randn({ 1, 96, 136, 3 }, 'f32', 50)
  local boxes, scores = host:maps(x)
  local boxes2, scores2 = there:maps(x:to(cuda.device))
  for i = 1, 6 do
    cuda.near(boxes2[i], boxes[i], { message = 'boxes ' .. i, limit = 1e-4 })
    cuda.near(scores2[i], scores[i], { message = 'scores ' .. i, limit = 1e-4 })
  end
  for _, n in ipairs { host, there } do n.w.conf[1].bias:copy_(cr.tensor { -4, 4 }) end
  for _, size in ipairs { { 192, 256 }, { 194, 253 } } do
    local frame = frame_of(size[1], size[2])
    local want, found = host:find(frame), there:find(frame:to(cuda.device))
    t.ok(#want > 0, 'faces')
    t.equal(#found, #want, 'faces')
    for i, face in ipairs(want) do
      for k = 1, 4 do t.near(found[i] and found[i].box[k] or -1, face.box[k], 0.1, 'box') end
    end
  end
end)

cuda.test('pictures around a track are the CPU\'s', function()
  local frame = frame_of(200, 240)
  local there = frame:to(cuda.device)
  for _, place in ipairs { { 100.6, 80.4, 40 }, { 10, 20, 40 }, { 230, 190, 55.5 } } do
    local x, y, half = unpack(place)
    local want, got = tracks.cut_box(frame, x, y, half, 96, 112), tracks.cut_box(there, x, y, half, 96, 112)
    t.equal(got.device, cuda.device)
    t.ok((want:to 'f32' - got:to 'cpu':to 'f32'):abs():max():item() <= 1, 'off by 1 at most')
  end
  local host, card = tracks.scenes(), tracks.scenes()
  local cuts = 0
  for i = 1, 40 do
    cr.scope(function()
      local shown = cr.full({ 120, 520, 3 }, i <= 20 and 30 or 220, { dtype = 'u8' })
      local a, b = host:push(shown), card:push(shown:to(cuda.device))
      t.equal(b, a)
      if a then cuts = cuts + 1 end
    end)
  end
  t.equal(cuts, 1)
end)

cuda.library_test('a video is evaluated as on the CPU, with its frames on the GPU', function()
  local ok, bright = pcall(require, 'tests.support.audiovisual')
  if not ok then t.skip(tostring(bright)) end -- no media library
  for name, case in pairs {
    box = { { height = 96, width = 96 }, { 2, 2 } },
    aligned = { { crop = 'aligned', size = 128, rows = { 64, 128 }, channels = 'rgb' }, { 1, 3 } },
  } do
    local options
    cr.run(function()
      cr.scope(function()
        options = { syncnet = bright.write_network(name, unpack(case)), video = bright.write_video('v.mkv', 80),
          audio = bright.write_sound('s.wav', 80, 4) }
      end)
    end)
    local want = bright.run(options)
    options.device = cuda.device
    local got = bright.run(options)
    t.equal(got.offset, 4, name)
    t.equal(got.tracks[1].windows, want.tracks[1].windows)
    t.near(cr.tensor(got.distances), cr.tensor(want.distances), 1e-2, name .. ' distances')
  end
end)

t.done()
