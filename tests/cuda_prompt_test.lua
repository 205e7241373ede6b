--- The prompt with a GPU: it does not start one by itself, measures and traces work on it, and continues after a
--- fault.

local t = require 'tests.support.tap'
local cr = require 'cr'
local child = require 'tests.support.child'
local cuda = require 'tests.support.cuda'

local function start(environment)
  local env = { TERM = 'dumb', XDG_STATE_HOME = child.folder }
  for name, value in pairs(environment or {}) do env[name] = value end
  local terminal = require 'tests.support.pty'.start(child.program, env)
  t.ok(terminal:wait 'crescent> ', terminal.text)
  return terminal
end

local function answers(terminal, line, wanted)
  terminal:line(line)
  t.ok(terminal:wait(wanted), ('%s: no "%s" in %s'):format(line, wanted, terminal.text))
end

cuda.test('commands on a card', function()
  local p = start()
  answers(p, 'print(package.loaded["cr.cuda"])', 'nil')
  answers(p, ':device', 'compute capability')
  answers(p, ':device cuda', '* cuda:0')
  answers(p, 'x = cr.randn(256, 256)', 'crescent> ')
  answers(p, 'x', 'f32 cuda:0 [256 256]')
  answers(p, 'cr.ones({ 2 }, { device = "cpu" })', 'f32 cpu [2]')
  answers(p, ':time x:matmul(x)', 'a run back to back; a run is queued after')
  answers(p, ':mem', 'cuda:0   tensors')
  t.ok(p:wait '[256 256]', p.text)
  answers(p, ':device cpu', '* cpu')
  answers(p, 'cr.ones(2)', 'f32 cpu [2]')
  t.equal(p:close(), 0)
end)

cuda.test('the prompt survives a fault', function()
  local p = start { CR_CUDA_BLOCKING = '1' }
  answers(p, 'kept = cr.ones(3) x = cr.empty(1000, { device = "cuda" }) x.c.offset = 2 ^ 41', 'crescent> ')
  answers(p, 'x:fill_(1)', 'error: fill: ')
  t.ok(p:wait 'illegal memory access', p.text)
  answers(p, 'cr.ones(2, { device = "cuda" })', 'the card failed')
  answers(p, '(kept + 1):sum():item()', '\n6')
  -- A driver may refuse the device to this process, but not to the next one.
  p:line ':device reset'
  t.ok(p:wait { ':restart', 'tensors on it are lost' }, p.text)
  answers(p, ':restart', '? for help')
  answers(p, 'cr.ones(20, { device = "cuda" }):sum():item()', '\n20')
  t.equal(p:close(), 0)
end)

cuda.test('a trace sees each operation of a recorded graph', function()
  local trace = require 'cr.tools.trace'
  cr.scope(function()
    local g = cr.graph(function(x) return x:matmul(x):silu() end)
    local x = cr.randn(64, 64, { device = cuda.device })
    local wanted
    for _ = 1, 3 do wanted = g(x) end
    local events, y = trace.run(g, x)
    t.near(y:to 'cpu', wanted:to 'cpu', 1e-6)
    local names = {}
    for _, e in ipairs(events) do
      names[e.name] = e
      t.ok(e.seconds > 0 and e.start >= 0, e.name)
    end
    t.ok(names.matmul and names.unary == nil and names.silu, trace.table(events))
    t.equal(names.matmul and names.matmul.device, cuda.device)
    t.near(g(x):to 'cpu', wanted:to 'cpu', 1e-6, 'replayed again afterwards')
    g:free()
  end)
end)

cuda.test('a session on a GPU agrees with one on the CPU', function()
  t.fetched 'whisper/tiny.en.safetensors'
  local clip = require 'tests.support.clip'
  local path = clip.path
  local points = clip.moving(9, { { 45, 32 }, { 80, 33 }, { 62, 54 } })
  cr.scope(function()
    clip.checkpoint 'checkpoint'
    clip.video('face.mkv', 9, 96, 128)
    clip.voice('voice.wav', 0.3)
  end)
  t.keeps_storages() -- recordings and caches of the card
  local function sampled(device)
    local run = require 'models.latentsync'.session {
      video = path 'face.mkv', audio = path 'voice.wav', checkpoint = path 'checkpoint', size = 64, points = points,
      frames = 4, device = device, dtype = 'f32', rng = 'torch-cpu', quiet = true,
    }
    local first = run:sample { scheduler = 'dpmpp_2m', steps = 4, quiet = true }
    local again = run:sample { scheduler = 'dpmpp_2m', steps = 4, quiet = true }
    t.near(again.latents[2]:to 'cpu', first.latents[2]:to 'cpu', 1e-6, 'again on ' .. device)
    t.equal(#again:pictures(3), 3)
    run:save(path('out-' .. device .. '.mp4'), { quiet = true })
    return first.latents[1]:to 'cpu'
  end
  t.near(sampled 'cuda', sampled 'cpu', 1e-3, 'latents')
end)

child.clean()
t.done()
