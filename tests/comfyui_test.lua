--- Crescent's nodes for ComfyUI. Their client is tested with any Python. All nodes are tested in a real ComfyUI
--- without a GPU: no frame is lost, the sound keeps its samples, cancelling and errors arrive, and nothing is left on
--- the server. The second part is skipped without a ComfyUI (tests/support/comfyui.lua).

local child = require 'tests.support.child'
local comfyui = require 'tests.support.comfyui'
local cr = require 'cr'
local json = require 'cr.json'
local service = require 'tests.support.service'
local t = require 'tests.support.tap'

local server = service.start(nil, { token = 'a-token-of-the-test' })
local url = 'http://127.0.0.1:' .. server.port

t.test("the nodes' client works, reports errors, and leaves nothing on the server", function()
  t.fetched 'upscale/animevideov3.safetensors'
  local picture, made = child.folder .. '/picture.png', child.folder .. '/made'
  cr.scope(function() require 'cr.media'.write_picture(picture, require 'tests.support.formula_image'.image('frame0', 16, 24)) end)
  assert(require 'lfs'.mkdir(made))
  local r = child.run({ cr.root .. '/tests/support/comfyui/client_try.py', cr.root .. '/scripts/comfyui', url, server.token, picture,
    made }, { program = comfyui.any_python })
  t.equal(r.code, 0, r.err)
  local found = json.decode(r.out)
  t.equal(table.concat(found.made, ' x '), '48 x 32')
  t.ok(#found.looks > 0, 'looks at the job')
  t.equal(found.left, 0, 'left on the server')
  t.equal(#found.interrupted, 3)
  for i, one in ipairs(found.interrupted) do
    t.equal(one[1], i, 'calls until it is interrupted')
    t.equal(one[2], 0, 'left on the server after it is interrupted')
  end
  t.ok(found.unknown:find("there is no field 'modl': did you mean 'model'?", 1, true), found.unknown)
  t.ok(found.no_token:find 'token is needed', found.no_token)
  t.ok(found.wrong_token:find 'token is not', found.wrong_token)
  t.ok(found.odd_token:find '^the token contains characters', found.odd_token)
  t.equal(#found.odd_url, 4)
  for _, sentence in ipairs(found.odd_url) do t.ok(sentence:find "is not a server's address: write it as", sentence) end
  t.ok(found.nobody:find '^no server answers at http://127%.0%.0%.1:9: start `crescent serve`', found.nobody)
  t.equal(found.ended, 'it fell')
  t.equal(found.junk[1], found.url .. ' answered, but not with JSON: is it a `crescent serve`?')
  t.equal(found.junk[2], found.url .. " answered 418 I'm a Teapot: is it a `crescent serve`?")
  t.equal(found.cut, found.url .. ': the connection broke during the answer')
  t.equal(table.concat(found.files, ' '), 'made.png', 'files')
end)

if comfyui.absent then
  server:stop()
  t.test("Crescent's nodes in ComfyUI", function() t.skip(comfyui.absent) end)
  child.clean()
  t.done()
end

local FRAMES, FPS, RATE, SAMPLES = 16, 30000 / 1001, 16000, 6400 -- samples of 0.4 s, which is 12 frames

-- ---- prompts -----------------------------------------------------------------------------------------

local function given(frames, people)
  return { class_type = 'TestGiven', inputs = { video = service.video, sound = service.sound, frames = frames or FRAMES,
    samples = SAMPLES, channels = 2, people = people or 1 } }
end

-- Nodes by number; 1 is the connection to the test's server, 2 the frames and the sound.
local function prompt(nodes, load, first)
  local all = { ['1'] = { class_type = 'CrescentLoad', inputs = { url = url, token = server.token, checkpoint = 'mini',
    device = 'cpu' } }, ['2'] = first or given() }
  for key, value in pairs(load or {}) do all['1'].inputs[key] = value end
  for key, node in pairs(nodes) do all[key] = node end
  return all
end

local function node(kind, inputs, more)
  local all = { crescent = { '1', 0 } }
  for _, list in ipairs { inputs, more or {} } do
    for key, value in pairs(list) do all[key] = value end
  end
  for key, value in pairs(all) do
    if type(value) == 'table' then all[key] = json.list(value) end
  end
  return { class_type = 'Crescent' .. kind, inputs = all }
end

local SAMPLING = { face = 'largest', steps = 2, guidance = 0, seed = 5, tail = 'keep' }
local function lipsync(more)
  local inputs = { images = { '2', 0 }, audio = { '2', 1 }, fps = FPS }
  for key, value in pairs(SAMPLING) do inputs[key] = value end
  return node('LipSync', inputs, more)
end
local function lipsync_video(more)
  local inputs = { fps = 'source', filename_prefix = 'test/made' }
  for key, value in pairs(SAMPLING) do inputs[key] = value end
  return node('LipSyncVideo', inputs, more)
end
local function look(inputs)
  for key, value in pairs(inputs) do inputs[key] = json.list(value) end
  return { class_type = 'TestLook', inputs = inputs }
end

local runs, numbers = {}, {}
local function plan(name, nodes, more)
  local job = { prompt = nodes }
  for key, value in pairs(more or {}) do job[key] = value end
  runs[#runs + 1], numbers[name] = job, #runs + 1
end

plan('images', prompt {
  ['3'] = lipsync(),
  ['4'] = look { images = { '3', 0 }, audio = { '3', 1 }, fps = { '3', 2 }, other_images = { '2', 0 }, other_audio = { '2', 1 } },
  ['5'] = { class_type = 'TestFilm', inputs = { images = json.list { '2', 0 }, fps = FPS } },
  ['6'] = lipsync_video { video = { '5', 0 }, audio = { '2', 1 }, options = '{"lossless": true}' },
  ['7'] = look { video = { '6', 0 }, text = { '6', 1 }, other_images = { '3', 0 } },
})
plan('long sound', prompt({
  ['3'] = lipsync { fps = 25, steps = 1 },
  ['4'] = look { images = { '3', 0 }, audio = { '3', 1 }, other_audio = { '2', 1 } },
}, nil, given(5)))
plan('cut', prompt {
  ['3'] = lipsync { fps = 25, steps = 1, tail = 'cut' }, ['4'] = look { images = { '3', 0 }, audio = { '3', 1 } },
})
plan('one image', prompt({
  ['3'] = lipsync { fps = 60, steps = 1 }, ['4'] = look { images = { '3', 0 }, audio = { '3', 1 }, fps = { '3', 2 } },
}, nil, given(1)))
plan('cancel', prompt { ['3'] = lipsync { steps = 500 }, ['4'] = look { images = { '3', 0 } } }, { interrupt = 'denoise' })
plan('faces', prompt {
  ['3'] = node('Faces', { images = { '2', 0 }, fps = 25, number = 1 }),
  ['4'] = look { images = { '3', 0 }, text = { '3', 1 }, count = { '3', 2 } },
  ['5'] = look { text = { '3', 3 } },
})
plan('two people', prompt({
  ['3'] = node('Faces', { images = { '2', 0 }, fps = 25, number = 2 }),
  ['4'] = look { images = { '3', 0 }, text = { '3', 1 }, count = { '3', 2 } },
  ['5'] = { class_type = 'CrescentVoice', inputs = { audio = json.list { '2', 1 }, face = json.list { '3', 1 } } },
  ['6'] = lipsync { fps = 25, steps = 1, face = '1', voices = { '5', 0 } },
  ['7'] = look { images = { '6', 0 }, audio = { '6', 1 }, other_images = { '2', 0 } },
  ['8'] = lipsync { fps = 25, steps = 1, face = { '3', 1 } },
  ['9'] = look { images = { '8', 0 }, other_images = { '2', 0 } },
}, nil, given(10, 2)))
plan('upscale', prompt({
  ['3'] = node('Upscale', { images = { '2', 0 }, model = 'animevideov3', scale = 2 }), ['4'] = look { images = { '3', 0 } },
}, nil, given(2)))

local refused = {
  { 'an unknown setting', lipsync { options = '{"stepz": 3}' }, "there is no field 'stepz': did you mean 'steps'" },
  { 'a wrong value', lipsync { face = 'nobody' }, "face: 'nobody' is not" },
  { 'options that are no JSON', lipsync { options = '{stepz' }, 'options: not valid JSON' },
  { 'options that are a list', lipsync { options = '[1]' }, 'options: not a JSON object' },
  { 'no such person', node('Faces', { images = { '2', 0 }, fps = 25, number = 7 }), 'number: there is no person 7 in the video, but 1' },
  { 'a sound that is none', lipsync { audio = { '6', 1 } }, 'audio: the input has no sound', nil, {
    ['5'] = { class_type = 'TestFilm', inputs = { images = json.list { '2', 0 }, fps = FPS } },
    ['6'] = { class_type = 'GetVideoComponents', inputs = { video = json.list { '5', 0 } } } } },
  { 'no video', lipsync_video { video_path = '' }, 'video and video_path: one of them is needed' },
  { 'a path outside', lipsync_video { video_path = '/etc/passwd', audio = { '2', 1 } }, 'is outside of ComfyUI' },
  { 'a path upwards', lipsync_video { video_path = '../../x.mp4', audio = { '2', 1 } }, 'is outside of ComfyUI' },
  { 'a path to nothing', lipsync_video { video_path = 'x.mp4', audio = { '2', 1 } }, 'x.mp4 does not exist' },
  { 'a wrong token', lipsync(), 'token', { token = 'another' } },
  { 'nobody there', lipsync(), 'no server answers at http://127.0.0.1:9', { url = 'http://127.0.0.1:9' } },
  { 'no address', lipsync(), "is no server's address", { url = 'ftp://x' } },
  { 'no such checkpoint', lipsync(), 'checkpoint: nothing was not found in', { url = '', checkpoint = 'nothing' } },
  { 'no such device', lipsync(), 'cuda:99', { url = '', device = 'cuda:99' } },
}
for _, case in ipairs(refused) do
  local nodes = { ['3'] = case[2], ['4'] = not case[2].class_type:find 'Video' and look { images = { '3', 0 } } or nil }
  for key, one in pairs(case[5] or {}) do nodes[key] = one end
  plan(case[1], prompt(nodes, case[4]))
end

-- Last case: a server that the node starts, with the small model; then ComfyUI is killed.
plan('own server', prompt({
  ['3'] = lipsync { fps = 25, steps = 1 },
  ['4'] = look { images = { '3', 0 }, audio = { '3', 1 }, other_images = { '2', 0 } },
}, { url = '', token = '' }, given(10)), { kill = true })

local ran = comfyui.drive(runs, { CRESCENT = child.program, CRESCENT_URL = '', CRESCENT_TOKEN = '' })
local left = { jobs = server:ask('GET', '/v1/jobs').json.jobs, files = server:ask('GET', '/v1/files').json.files }
server:stop()

local function result(name) return ran.runs[numbers[name]] end
local function seen(name, number) return result(name).outputs[number].seen[1] end

-- ---- results --------------------------------------------------------------------------------------

t.test('LipSync: every frame is returned, unchanged outside of the mouth', function()
  local r = result 'images'
  t.equal(r.status, 'success', r.error)
  local s = seen('images', '4')
  t.equal(s.frames, FRAMES)
  t.equal(s.height, 400)
  t.equal(s.width, 400)
  t.near(s.fps, FPS, 1e-9, 'frames a second')
  for i, share in ipairs(s.changed) do
    if i <= 12 then t.ok(share > 0.01 and share < 0.3, ('frame %d: %.3f of it changed'):format(i, share)) end
    if i > 12 then t.equal(share, 0, 'after the sound, frame ' .. i) end
  end
end)

t.test('LipSync: the sound keeps its samples and is padded to the length of the images', function()
  local s = seen('images', '4')
  t.equal(s.rate, RATE)
  t.equal(s.sound_channels, 2)
  t.equal(s.samples, math.floor(FRAMES / FPS * RATE + 0.5))
  t.equal(s.sound_differs, 0, 'difference of the samples')
  t.equal(s.sound_after, 0, 'after the sound')
end)

t.test('LipSync Video: sending the file gives identical frames', function()
  local s = seen('images', '7')
  t.equal(s.frames, FRAMES)
  t.near(s.fps, FPS, 1e-9, 'frames a second')
  for i, share in ipairs(s.changed) do t.equal(share, 0, 'frame ' .. i) end
  t.ok(s.text:find '/output/test/made_00001_%.mkv$', s.text)
  t.ok(result('images').outputs['6'].images[1].filename == 'made_00001_.mkv', 'the video is shown on the node')
end)

t.test('LipSync: a longer sound gives more frames, `cut` removes the frames after it', function()
  local long, cut = seen('long sound', '4'), seen('cut', '4')
  t.equal(long.frames, 10)
  t.equal(long.samples, SAMPLES)
  t.equal(long.sound_differs, 0)
  t.equal(cut.frames, 10)
  t.equal(cut.samples, SAMPLES)
end)

t.test('LipSync: a single image works, too', function()
  t.equal(result('one image').status, 'success', result('one image').error)
  local s = seen('one image', '4')
  t.equal(s.frames, 10)
  t.equal(s.fps, 25)
  t.equal(s.samples, SAMPLES)
end)

t.test('progress, status and previews arrive', function()
  local r = result 'images'
  local highest = 0
  for _, value in ipairs(r.progress) do highest = math.max(highest, value) end
  t.ok(#r.progress > 2, #r.progress .. ' of progress')
  t.equal(highest, 1, 'the highest of them')
  t.ok(r.previews > 0, 'previews')
  local text = table.concat(r.texts['3'], '\n')
  t.ok(text:find 'denoise, window 1 of 1', text)
  t.ok(table.concat(r.texts['1'], '\n'):find 'crescent %d', 'the version')
end)

t.test('cancelling in ComfyUI cancels the job', function()
  t.equal(result('cancel').status, 'interrupted')
  t.equal(#left.jobs, 0, 'jobs on the server')
  t.equal(#left.files, 0, 'files on the server')
end)

t.test('Faces: a portrait of each person, and the number of the chosen one', function()
  t.equal(result('faces').status, 'success', result('faces').error)
  local s = seen('faces', '4')
  t.equal(s.frames, 1)
  t.equal(s.height, 256)
  t.equal(s.width, 256)
  t.ok(s.spread > 0.05, 'the picture is not of one colour')
  t.equal(s.text, '1')
  t.equal(s.count, 1)
  t.ok(seen('faces', '5').text:find '^1: 0%.00 to 0%.64 s, in 100 %% of the frames$', seen('faces', '5').text)
  t.equal(#result('faces').outputs['3'].images, 1)
end)

t.test('two people: the chosen one speaks, or both with a voice each', function()
  t.equal(result('two people').status, 'success', result('two people').error)
  local found, both, chosen = seen('two people', '4'), seen('two people', '7'), seen('two people', '9')
  t.equal(found.count, 2)
  t.equal(found.frames, 2, 'pictures')
  t.equal(found.text, '2')
  t.ok(both.left > 0.01 and both.right > 0.01, ('%.3f and %.3f changed'):format(both.left, both.right))
  t.equal(both.samples, SAMPLES)
  t.equal(chosen.left, 0, 'of the other one')
  t.ok(chosen.right > 0.01, ('%.3f changed'):format(chosen.right))
end)

t.test('Upscale: as many images, twice the size', function()
  t.fetched 'upscale/animevideov3.safetensors'
  t.equal(result('upscale').status, 'success', result('upscale').error)
  local s = seen('upscale', '4')
  t.equal(s.frames, 2)
  t.equal(s.height, 800)
  t.equal(s.width, 800)
  t.ok(s.spread > 0.05, 'the picture is not of one colour')
end)

for _, case in ipairs(refused) do
  t.test(case[1] .. ' is refused with a sentence', function()
    local r = result(case[1])
    t.equal(r.status, 'error')
    t.ok(r.error:find(case[3], 1, true) and not r.error:find '\n', r.error)
  end)
end

t.test('a server that the node has started ends with ComfyUI, even if that is killed', function()
  local r = result 'own server'
  t.equal(r.status, 'success', r.error)
  t.equal(seen('own server', '4').frames, 10)
  t.ok(r.below >= 2, r.below .. ' processes')
  t.equal(r.left, 0, 'processes that are left')
end)

t.test('the example workflows use existing nodes and inputs', function()
  for _, name in ipairs { 'lipsync', 'lipsync_video' } do
    local folder = cr.root .. '/scripts/comfyui/example_workflows/'
    local read = function(path) return json.decode(require 'cr.files'.read(path)) end
    local api, drawn = read(folder .. 'api/' .. name .. '.json'), read(folder .. name .. '.json')
    local kinds = {}
    for _, one in ipairs(drawn.nodes) do kinds[tostring(one.id)] = one.type end
    for id, one in pairs(api) do
      t.equal(kinds[id], one.class_type, name .. ', node ' .. id)
      local known = ran.nodes[one.class_type]
      if known then
        for input in pairs(one.inputs) do
          t.ok(known.input.required[input] or known.input.optional[input], ('%s: %s has no input %s'):format(name, one.class_type, input))
        end
      end
    end
  end
end)

child.clean()
t.done()
