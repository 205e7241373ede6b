--- Two GPUs at once: work on one does not affect the other, each records and replays while the other does, copies
--- between them, and a job on both. Skipped with fewer GPUs.

local child = require 'tests.support.child'
local cr = require 'cr'
local cuda = require 'tests.support.cuda'
local nn = require 'cr.nn'
local t = require 'tests.support.tap'

local A, B = 'cuda:0', 'cuda:1'

local function test(name, fn)
  cuda.test(name, function()
    if cr.cuda.count() < 2 then t.skip(('there %s'):format(cr.cuda.count() == 1 and 'is one card' or 'is no card')) end
    cr.scope(fn)
  end)
end

-- The same work with the CPU's numbers on a GPU: matrix products, a convolution, attention, a norm, random numbers.
local function work(device)
  local function drawn(seed, ...) return cr.randn(..., { generator = cr.generator(seed), device = device, dtype = 'f16' }) end
  local x = drawn(1, { 2, 32, 32, 64 })
  local y = nn.conv2d({ weight = drawn(2, { 64, 3, 3, 64 }) * 0.05, bias = drawn(3, { 64 }) }, x, { padding = 1 })
  y = nn.group_norm({ weight = drawn(4, { 64 }), bias = drawn(5, { 64 }) }, y, 32)
  local tokens = y:reshape(2, 1024, 64)
  tokens = nn.attention(tokens, tokens, tokens, { heads = 1 })
  return nn.linear({ weight = drawn(6, { 128, 64 }) }, tokens):to 'f32':to 'cpu'
end

test('the same work gives the same numbers on both, in turn and interleaved', function()
  local a = work(A)
  t.ok(a:abs():max():item() > 0)
  t.near(work(B), a, 0)
  t.near(work(A), a, 0)
  t.ok(cr.memory(B).peak > 0 and cr.memory(A).peak > 0)
end)

test('copies between cards, in both directions and of any form', function()
  local x = cr.randn(37, 65, { device = A, generator = cr.generator(3) })
  local host = x:to 'cpu'
  t.near(x:to(B):to 'cpu', host, 0)
  t.near(x:to(B):to(A):to 'cpu', host, 0)
  t.near(x:t():to(B):to 'cpu', host:t(), 0)
  t.near(((x:to(B) * 2):to(A) + x):to 'cpu', host * 3, 1e-6)
  t.raises(function() return x + x:to(B) end, 'device')
end)

test('a tree of weights is copied between GPUs while the first one works', function()
  local w = cr.randn(512, 512, { device = A, generator = cr.generator(7) })
  local tree = setmetatable({ a = { weight = w, bias = w:t() }, again = w, name = 'a' }, { __path = 'x' })
  local host = w:to 'cpu'
  local copy = cr.weights.on(tree, B)
  w:fill_(0) -- it waits for the copy
  t.ok(rawequal(copy.a.weight, copy.again), 'one stays one')
  t.equal(copy.name .. ' ' .. cr.weights.path(copy), 'a x')
  t.near(copy.a.weight:to 'cpu', host, 0)
  t.near(copy.a.bias:to 'cpu', host:t(), 0)
  cr.weights.free(copy)
end)

test('each GPU records and replays while the other does', function()
  local graphs, inputs = {}, {}
  for i, device in ipairs { A, B } do
    graphs[i] = cr.graph(function(x) return (x:matmul(x) * 0.5 + i):relu() end)
    inputs[i] = cr.randn(256, 256, { device = device, generator = cr.generator(5) })
  end
  local expected = {}
  for i = 1, 2 do expected[i] = ((inputs[i]:matmul(inputs[i]) * 0.5 + i):relu()):to 'cpu' end
  for _ = 1, 5 do
    local got = { graphs[1](inputs[1]), graphs[2](inputs[2]) }
    for i = 1, 2 do t.near(got[i]:to 'cpu', expected[i], 1e-4) end
  end
  for i = 1, 2 do
    t.equal(graphs[i]:why(), nil)
    t.equal(graphs[i]:count(), 1)
    graphs[i]:free()
  end
end)

test('tasks with streams of their own on both cards', function()
  local results = {}
  cr.run(function()
    local tasks = {}
    for i, device in ipairs { A, B, A, B } do
      tasks[i] = function()
        cr.cuda.stream(i > 2 and 1 or 0)
        local x = cr.keep(cr.ones(64, 64, { device = device }))
        for _ = 1, 20 do
          cr.scope(function() x:copy_(x:matmul(x) / 64 + 1) end)
          cr.yield()
        end
        cr.cuda.synchronize(device)
        results[i] = cr.scope(function() return x:sum():item() end)
        x:free()
      end
    end
    cr.all(tasks)
  end)
  for i = 2, 4 do t.equal(results[i], results[1]) end
end)

-- ---- a job ---------------------------------------------------------------------------------------

local MINI = cr.root .. '/models/mini'

-- A part of the demonstration on some devices: latents, report, output. Options are lipsync's.
local function lipsync(name, device, words, env)
  local out = child.folder .. '/' .. name
  local args = { 'lipsync', '--video', MINI .. '/demo.mp4', '--audio', MINI .. '/demo.flac', '--checkpoint', MINI, '--steps', '6',
    '--duration', '3.2', '--device', device, '--out', out .. '.mkv', '--lossless', '--dump-latents', out .. '.safetensors', '--report',
    out .. '.json' }
  for _, word in ipairs(words or {}) do args[#args + 1] = word end
  local r = child.run(args, { env = env })
  t.equal(r.code, 0, r.err)
  return cr.load(out .. '.safetensors').latents, require 'cr.json'.decode(require 'cr.files'.read(out .. '.json')), r.err, out .. '.mkv'
end

local function same_film(a, b)
  local one, other = require 'cr.media'.frames(a), require 'cr.media'.frames(b)
  local n = 0
  for frame in one do
    n = n + 1
    local its = other()
    t.ok(its and frame:equal(its), 'frame ' .. n)
    frame:free()
    if its then its:free() end
  end
  t.equal(n, 80)
  t.equal(other(), nil)
end

test('a job on both has the latents and frames of a job on one', function()
  t.fetched 'face/face_landmark.tflite'
  for name, words in pairs {
    plain = {}, drawn = { '--scheduler', 'euler_ancestral', '--rng', 'torch-cpu', '--match-colour' },
    philox = { '--scheduler', 'lcm', '--rng', 'philox' },
  } do
    local latents, _, _, film = lipsync(name .. '1', A, words)
    local both, report, _, other = lipsync(name .. '2', 'cuda:all', words)
    t.near(both, latents, 0, name)
    same_film(film, other)
    t.ok(#report.cards >= 2, 'cards in the report')
    local sum = 0
    for _, card in ipairs(report.cards) do sum = sum + card.windows end
    t.equal(sum, 5)
    t.ok(report.cards[2].windows > 0, 'the second made some')
  end
end)

child.clean()
t.done()
