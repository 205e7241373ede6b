-- The page of `crescent serve` in Chromium, used like a person would, with files, clicks and keys, on a desktop and
-- on a phone. CR_SLOW=1 adds slower tests, and examines every state in five appearances instead of two.
-- CR_PICTURES=DIR writes screenshots.

local t = require 'tests.support.tap'
local browser = require 'tests.support.browser'
local child = require 'tests.support.child'
local clip = require 'tests.support.clip'
local cr = require 'cr'
local film = require 'tests.support.film'
local files = require 'cr.files'
local media = require 'cr.media'
local service = require 'tests.support.service'

clip.needs_whisper(t, 'page')

local has_browser = browser.program() ~= nil
local checks = files.read(cr.root .. '/tests/support/page_checks.js')
local focus = files.read(cr.root .. '/tests/support/page_focus.js')
local pictures, slow = os.getenv 'CR_PICTURES', os.getenv 'CR_SLOW' == '1'

local LOOKS = {
  { 'desk', width = 1280, height = 900 }, { 'desk-dark', width = 1280, height = 900, dark = true },
  { 'phone', width = 390, height = 844, phone = true }, { 'phone-dark', width = 390, height = 844, phone = true, dark = true },
  { 'narrow', width = 320, height = 640, phone = true, dark = true },
}
local SHOWN = slow and LOOKS or { LOOKS[1], LOOKS[5] }

local server

local function start_server(args)
  local words = { '--size', '128' }
  for _, word in ipairs(args or {}) do words[#words + 1] = word end
  server = service.start(words, { checkpoint = cr.root .. '/models/mini', data = server and server.data })
end

local function test(name, fn)
  t.test(name, function()
    if not has_browser then t.skip 'Chromium is not installed' end
    if not server then start_server() end
    fn()
  end)
end

local function slow_test(name, fn)
  if slow then test(name, fn) end
end

local function address(of) return ('http://127.0.0.1:%d/'):format((of or server).port) end

-- The page, after it has received the server's settings.
local function open(look)
  local page = browser.open(address(), look or LOOKS[1])
  page:wait "document.querySelectorAll('#simple .row').length > 0"
  return page
end

local ROLES = {}
for role in ('button link textbox searchbox spinbutton checkbox switch radio combobox slider progressbar dialog radiogroup'):gmatch '%S+' do
  ROLES[role] = true
end

-- Checks the current state of the page in every appearance: contrast, sizes, structure, accessible names.
local function inspect(page, state)
  for _, look in ipairs(SHOWN) do
    page:look(look)
    if pictures then page:picture(('%s/%s-%s.png'):format(pictures, state, look[1])) end
    for _, text in ipairs(page:eval(checks)) do t.ok(false, ('%s, %s: %s'):format(state, look[1], text)) end
  end
  page:look(LOOKS[1])
  for _, node in ipairs(page:send 'Accessibility.getFullAXTree'.nodes) do
    local role = node.role and node.role.value
    if not node.ignored and ROLES[role] and (node.name == nil or node.name.value == '') then
      t.ok(false, ('%s: there is a %s without a name'):format(state, role))
    end
  end
  t.ok(true)
end

-- The browser reported no exception, policy violation or missing file.
local function content(page)
  for _, text in ipairs(page.wrong) do t.ok(text:find '404.*/preview', text) end -- a preview may be deleted as soon as it is announced
  page.wrong = {}
end

local function choose_video(page, path)
  page:choose(page:sees '#video-empty' and '#video-file' or '#video-other', path or service.video)
end

-- Chooses the demonstration's voice and waits for the upload; slot: the person.
local function choose_voice(page, slot)
  slot = slot or '#voice'
  page:choose(slot .. ' input[type=file]', service.sound)
  page:wait(("document.querySelector('%s [data-part=facts]').textContent.includes('s · ')"):format(slot))
end

local function found(page, count) page:wait(("document.querySelectorAll('#people .person').length === %d"):format(count)) end

-- Types a value into a setting's field.
local function set(page, name, value)
  page:click('#set-' .. name)
  page:eval(("document.querySelector('#set-%s').select()"):format(name))
  page:type(value)
  page:press 'Tab'
end

local function state_of(page) return page:text '#job-state' end
local function wait_state(page, state) page:wait(("document.querySelector('#job-state').textContent === '%s'"):format(state)) end
local function value_of(page, expression) return page:eval("document." .. expression) end

-- A film of two people with twelve frames; returns its path.
local function two_people()
  local path = child.folder .. '/two.mp4'
  if not child.exists(path) then
    local anna, bert, sink = film.person 'anna', film.person 'bert', media.writer(path, { fps = 25 })
    for i = 0, 11 do
      cr.scope(function() sink:write(film.frame(240, 480, { { anna, x = 20, y = 20 }, { bert, x = 260, y = 20 } }, i)) end)
    end
    sink:close()
    film.free()
  end
  return path
end

-- ---- making a video -----------------------------------------------------------

local page

test('making a video: files, person, settings, progress', function()
  page = open()
  inspect(page, 'empty')
  t.equal(page:text '#summary', 'Still missing: a video and a voice.')
  choose_video(page)
  choose_voice(page)
  found(page, 1)
  t.ok(page:text '#video-facts':find '400 × 400 · 25 frames a second · 5 s', page:text '#video-facts')
  t.equal(page:text '#who-word', 'One person was found.')
  t.ok(page:wait "document.querySelector('#people img').naturalWidth > 20", 'the picture of the person')
  page:wait "document.querySelector('#boxes .box')"
  page:click '#presets label:nth-child(2) input'
  t.equal(value_of(page, "querySelector('#set-steps').placeholder"), '5', "the preset's steps")
  set(page, 'steps', '1')
  set(page, 'duration', '0.4')
  found(page, 1)
  t.equal(server:ask('GET', '/v1/jobs?kind=faces').json.jobs[1].duration, 0.4, 'people are looked for in that piece of the video')
  inspect(page, 'ready')
  t.ok(page:text '#summary':find '· 0.4.s long$', page:text '#summary')
  t.equal(value_of(page, "querySelector('#set-upscale').list.options[0].value"), 'mouth', 'usual values are offered')
  page:click '#go'
  page:wait "location.hash.startsWith('#job/')"
  t.ok(page:wait "document.querySelector('#progress-stage').textContent !== ''")
  wait_state(page, 'Done')
  content(page)
  local job = server:ask('GET', '/v1/jobs/' .. value_of(page, 'location.hash.slice(5)')).json
  t.equal(job.preset, 'draft')
  t.equal(job.settings.steps, 1)
  t.equal(job.settings.duration, 0.4)
end)

test('the result is shown beside its source, and plays', function()
  page:wait "document.querySelector('#result').readyState > 2 && document.querySelector('#source').readyState > 2"
  inspect(page, 'done')
  t.equal(page:text '#time', '0:00.0 / 0:00.4')
  t.equal(value_of(page, "querySelector('#result').videoWidth"), 400)
  page:click '#play'
  page:wait "document.querySelector('#result').ended"
  t.equal(value_of(page, "querySelector('#play').ariaLabel"), 'Play')
  page:eval "(() => { const seek = document.querySelector('#seek'); seek.value = 0.2; seek.oninput(); })()"
  page:wait "!document.querySelector('#result').seeking && !document.querySelector('#source').seeking"
  t.near(value_of(page, "querySelector('#result').currentTime"), 0.2, 0.001)
  t.near(value_of(page, "querySelector('#source').currentTime"), 0.2, 0.001, 'the source is where the result is')
  page:eval "document.querySelector('#screen').focus()"
  page:press '.'
  page:wait "Math.abs(document.querySelector('#source').currentTime - 0.24) < 0.001"
  -- The divider: with the mouse and with keys.
  local box = server:ask('GET', '/v1/jobs?kind=faces').json.jobs[1].people[1].box
  t.near(tonumber(value_of(page, "querySelector('#divider').ariaValueNow")), 100 * (box[1] + box[3] / 2) / 400, 1, 'it begins on the face')
  page:drag('#divider', 150, 0)
  local at = tonumber(value_of(page, "querySelector('#divider').ariaValueNow"))
  t.ok(at > 60 and at < 90, 'dragged to ' .. at)
  page:press 'ArrowLeft'
  t.near(tonumber(value_of(page, "querySelector('#divider').ariaValueNow")), at - 2, 1)
  page:press 'End'
  t.equal(value_of(page, "querySelector('.pane.of-result').style.clipPath"), 'inset(0px 0px 0px 100%)')
  -- The sound of one of them, or none.
  local function muted() return page:eval "['result', 'source'].map(id => document.getElementById(id).muted).join(' ')" end
  t.equal(muted(), 'false true')
  page:click '#sounds button[value=source]'
  t.equal(muted(), 'true false')
  page:click '#sounds button[value=off]'
  t.equal(muted(), 'true true')
  page:click '#modes button[value=beside]'
  local widths = page:eval "['#source', '#result'].map(id => Math.round(document.querySelector(id).getBoundingClientRect().width))"
  t.equal(widths[1], widths[2])
  t.ok(not page:sees '#divider')
  inspect(page, 'beside')
  page:click '#modes button[value=divide]'
  page:click '#closeup'
  page:wait "/^scale\\(1.[4-9]/.test(document.querySelector('#result').style.transform)"
  t.equal(value_of(page, "querySelector('#source').style.transform"), value_of(page, "querySelector('#result').style.transform"))
  inspect(page, 'closeup')
  page:click '#closeup'
  t.ok(value_of(page, "querySelector('#result').style.transform"):find '^scale%(1%)')
  content(page)
end)

test('report, download, history, another one like it, delete', function()
  page:click '#report summary'
  page:wait "document.querySelectorAll('#report-stages tr').length > 5"
  inspect(page, 'report')
  local saved = page:eval [[fetch(document.querySelector('#download').href).then(async answer =>
    [answer.headers.get('content-disposition'), (await answer.blob()).size])]]
  t.ok(saved[1]:find 'attachment' and saved[1]:find 'demo', saved[1])
  t.ok(saved[2] > 1000)
  page:click '#change'
  page:wait "location.hash === ''"
  found(page, 1)
  t.equal(value_of(page, "querySelector('#set-steps').value"), '1')
  t.ok(page:text '#summary':find 'demo.mp4 · demo.flac', page:text '#summary')
  page:click "nav [data-page=history]"
  page:wait "document.querySelectorAll('.card').length === 1"
  page:wait "document.querySelector('.card img')?.naturalWidth > 100"
  inspect(page, 'history')
  page:click '.card .danger'
  t.ok(page:sees '#confirm')
  inspect(page, 'confirm')
  page:press 'Escape'
  page:wait "!document.querySelector('#confirm').open"
  t.equal(value_of(page, "querySelectorAll('.card').length"), 1)
  page:click '.card .danger'
  page:click '#confirm [value=yes]'
  page:wait "document.querySelector('#none').checkVisibility()"
  t.equal(#server:ask('GET', '/v1/jobs?kind=lipsync').json.jobs, 0)
  inspect(page, 'nothing')
  content(page)
end)

-- A video without a face.
local function grey_film(frames)
  local path = child.folder .. '/grey.mp4'
  local sink = media.writer(path, { fps = 25 })
  for _ = 1, frames do cr.scope(function() sink:write(cr.full({ 240, 320, 3 }, 90, { dtype = 'u8' })) end) end
  sink:close()
  return path
end

-- ---- errors ---------------------------------------------------------------------------------

test('missing and invalid input is reported beside its field', function()
  page = open()
  page:click '#go'
  t.equal(page:text '#video-problem-empty', 'Add a video.')
  t.equal(page:eval(focus).at, 'video-file')
  choose_video(page, service.sound)
  page:wait "document.querySelector('#video-problem').textContent !== ''"
  t.ok(page:text '#video-problem':find 'demo.flac has no picture', page:text '#video-problem')
  choose_video(page, child.file('words.mp4', ('no video at all\n'):rep(100)))
  page:wait "document.querySelector('#video-problem').textContent.startsWith('The file is not a video')"
  t.ok(not page:sees '#video-word' and not page:sees '#video-retry', 'a file that is no video is nothing to try again')
  t.equal(page:text '#summary', 'Still missing: a video and a voice.')
  t.equal(#page.wrong, 1, 'the refused upload') -- the browser logs each refusal itself
  page.wrong = {}
  page:drop('#video-stage', service.video)
  found(page, 1)
  t.ok(not page:sees '#video-problem')
  page:click '#go'
  t.equal(page:text '#voice [data-part=problem]', 'Add a voice.')
  page:drop('#voice .slot', service.sound)
  page:wait "document.querySelector('#voice [data-part=facts]').textContent.includes('s · ')"
  choose_video(page, grey_film(8)) -- a voice longer than the video is said before anything is made
  page:wait "document.querySelector('#summary').textContent.endsWith('longer than the video, which then runs backward and forward')"
  choose_video(page)
  page:wait "document.querySelector('#summary').textContent.endsWith(' long')"
  found(page, 1)
  set(page, 'steps', '0')
  t.equal(page:text '#problem-steps', 'Steps: 0 is less than 1.')
  page:click '#go'
  t.equal(page:eval(focus).at, 'set-steps')
  inspect(page, 'wrong')
  set(page, 'steps', '1')
  t.ok(not page:sees '#problem-steps')
  page:click '#set-steps'
  page:press 'Enter'
  t.ok(not page:eval "document.querySelector('#go').disabled || !!location.hash", 'Enter in a setting starts no job')
  -- A problem that only the server detects, in a setting that is not visible yet.
  page:click '#all summary'
  set(page, 'guidance_interval', '3')
  page:click '#all summary'
  page:click '#go'
  page:wait "document.querySelector('#problem-guidance_interval').checkVisibility()"
  t.ok(page:text '#problem-guidance_interval':find 'A:B', page:text '#problem-guidance_interval')
  t.equal(page:eval(focus).at, 'set-guidance_interval')
  inspect(page, 'settings')
  page:click '#find'
  page:type 'noise'
  t.ok(page:sees '#set-strength' and not page:sees '#set-crf')
  t.equal(#page.wrong, 1, 'the refused job')
end)

slow_test('a job is cancelled, and fails, and is tried again', function()
  page = open()
  choose_video(page, grey_film(10))
  choose_voice(page)
  page:wait "document.querySelector('#who-word').textContent.startsWith('No face was found')"
  page:click '#go'
  wait_state(page, 'Failed')
  t.ok(page:text '#failure':find 'face', page:text '#failure')
  inspect(page, 'failed')
  local first = value_of(page, 'location.hash')
  page:click '#again'
  page:wait(("location.hash !== '%s'"):format(first))
  wait_state(page, 'Failed')
  content(page)
  -- A long job is cancelled while it runs; another one waits behind it.
  page:click '#change'
  page:wait "location.hash === ''"
  choose_video(page)
  found(page, 1)
  set(page, 'steps', '1000')
  page:click '#go'
  page:wait "document.querySelector('#progress-stage').textContent === 'Making frames'"
  inspect(page, 'running')
  t.equal(state_of(page), 'Running')
  page:look { width = 1280, height = 900, still = true }
  t.equal(value_of(page, 'getAnimations().length'), 0, 'nothing moves where that is not wanted')
  local other = server:ask('POST', '/v1/jobs', { json = server:request() }).json.id
  local waiting = browser.open(address() .. '#job/' .. other, LOOKS[1])
  wait_state(waiting, 'Waiting')
  t.equal(waiting:text '#progress-stage', 'Waiting: next in the queue')
  inspect(waiting, 'queued')
  waiting:click '#cancel'
  wait_state(waiting, 'Cancelled')
  content(waiting)
  page:click '#cancel'
  wait_state(page, 'Cancelled')
  t.ok(page:sees '#again' and not page:sees '#cancel')
  inspect(page, 'cancelled')
  content(page)
end)

slow_test('the connection goes and comes back: the page goes on', function()
  page = open()
  choose_video(page)
  choose_voice(page)
  found(page, 1)
  set(page, 'steps', '1000')
  page:click '#go'
  page:wait "document.querySelector('#progress-stage').textContent === 'Making frames'"
  server:stop 'sigkill'
  page:wait "document.querySelector('#offline').checkVisibility()"
  inspect(page, 'offline')
  local job = value_of(page, 'location.hash')
  page:click "nav [data-page=make]"
  page:choose('#voice input[type=file]', service.sound)
  page:wait "document.querySelector('#voice [data-part=problem]').textContent === 'The connection broke while the file was sent.'"
  start_server { '--port', tostring(server.port) }
  page:wait "!document.querySelector('#offline').checkVisibility()"
  page:wait "document.querySelector('#voice [data-part=facts]').textContent.includes('s · ')" -- uploaded again automatically
  page:eval(("location.hash = '%s'"):format(job))
  wait_state(page, 'Running') -- again, from the beginning
  page:wait "document.querySelector('#progress-stage').textContent === 'Making frames'"
  page:click '#cancel'
  wait_state(page, 'Cancelled')
end)

slow_test('what a browser cannot play is made all the same', function()
  local path = child.folder .. '/turns.mkv'
  film.turns(path)
  page = open()
  choose_video(page, path)
  choose_voice(page)
  found(page, 2)
  t.ok(page:sees '#video-word')
  inspect(page, 'strange')
  set(page, 'steps', '1')
  set(page, 'duration', '0.2')
  found(page, 2)
  page:click '#all summary'
  page:click '#set-lossless'
  page:click '#go'
  wait_state(page, 'Done')
  page:wait "document.querySelector('#viewer-word').checkVisibility() && document.querySelector('#source-word').checkVisibility()"
  t.ok(page:sees '#download' and not page:sees '#divider')
  inspect(page, 'strange-done')
  content(page)
end)

-- ---- other ways of use --------------------------------------------------------------------------------

slow_test('a voice is recorded', function()
  page = open(LOOKS[3])
  page:click '#voice [data-part=record]'
  page:wait "parseFloat(document.querySelector('#voice [data-part=level]').style.width) > 0" -- Chromium's fake microphone beeps
  inspect(page, 'recording')
  page:wait "document.querySelector('#voice [data-part=elapsed]').textContent !== '0:00'"
  page:click '#voice [data-part=stop]'
  page:wait "document.querySelector('#voice [data-part=facts]').textContent.includes('s · ')"
  t.ok(page:text '#voice [data-part=name]':find '^Recording %d%d%.%d%d%.%d%d%.webm$', page:text '#voice [data-part=name]')
  inspect(page, 'recorded')
  page:click '#voice [data-part=play]'
  page:wait "document.querySelector('#voice audio').currentTime > 0"
  page:click '#voice [data-part=remove]'
  t.ok(page:sees '#voice [data-part=record]')
  content(page)
end)

test('two people, each with a voice, by keyboard only', function()
  page = open()
  choose_video(page, two_people())
  found(page, 2)
  choose_voice(page)
  inspect(page, 'people')
  -- Every tab stop is visible, and every control is one; of a group of radio buttons, one is.
  page:eval "document.querySelector('.brand').focus()"
  local stops, seen = {}, {}
  repeat
    page:press 'Tab'
    local here = page:eval(focus)
    t.ok(here.shown, 'the focus cannot be seen at ' .. here.at)
    stops[#stops + 1], seen[here.name ~= '' and here.name or here.at] = here.at, true
  until here.at == 'go' or #stops > 80
  for _, name in ipairs { 'video', 'video-other', 'video-remove', 'each', 'who', 'preset', 'set-steps', 'set-seed', 'all-title', 'go' } do
    t.ok(seen[name], name .. ' is not reached by Tab: ' .. table.concat(stops, ', '))
  end
  -- The person: arrow keys move between them.
  page:eval "document.querySelector('[name=who]:checked').focus()"
  page:press 'ArrowRight'
  t.equal(value_of(page, "querySelector('[name=who]:checked').value"), 'all')
  page:eval "document.querySelector('#people input').focus()"
  page:press ' '
  t.equal(value_of(page, "querySelector('[name=who]:checked').value"), '1')
  t.ok(page:text '#summary':find 'person 1', page:text '#summary')
  page:eval "document.querySelector('#each').focus()"
  page:press ' '
  page:wait "document.querySelectorAll('#voices .slot').length === 2"
  t.ok(not page:sees '#who')
  inspect(page, 'voices')
  page:eval "document.querySelector('#go').focus()"
  page:press 'Enter'
  t.equal(page:text '#voices-problem', 'Add a voice for at least one person.')
  choose_voice(page, '#voices .own:nth-child(2)')
  t.ok(page:text '#summary':find 'person 2: demo.flac', page:text '#summary')
  content(page)
end)

slow_test('the voice of one of two people is made', function()
  set(page, 'steps', '1')
  set(page, 'duration', '0.4')
  found(page, 2)
  page:eval "document.querySelector('#go').focus()"
  page:press 'Enter'
  page:wait "location.hash.startsWith('#job/')"
  wait_state(page, 'Done')
  local job = server:ask('GET', '/v1/jobs/' .. value_of(page, 'location.hash.slice(5)')).json
  t.equal(#job.voices, 1)
  t.equal(job.voices[1].face, '2')
  page:wait "document.querySelector('#facts').textContent.includes('Person 2: demo.flac')"
  content(page)
end)

slow_test('a server with a token: the page asks for it and keeps it', function()
  local guarded = service.start({ '--size', '128' }, { checkpoint = cr.root .. '/models/mini', token = 'secret.of-7+/~=' })
  page = browser.open(address(guarded), LOOKS[1])
  page:wait "document.querySelector('#token').open"
  inspect(page, 'token')
  page:type 'another'
  page:press 'Enter'
  page:wait "document.querySelector('#token-problem').textContent !== ''"
  page:type 'secret.of-7+/~='
  page:press 'Enter'
  page:wait "document.querySelectorAll('#simple .row').length > 0"
  choose_video(page)
  found(page, 1) -- through an upload, events and a preview
  page:wait "document.querySelector('#people img').naturalWidth > 20"
  page:visit(address(guarded))
  page:wait "document.querySelectorAll('#simple .row').length > 0"
  t.ok(not page:sees '#token')
  guarded:stop()
end)

t.test('the browser and the server end', function()
  if not has_browser then t.skip 'Chromium is not installed' end
  browser.close()
  server:stop()
  t.ok(server.code)
  child.clean()
end)

t.done()
