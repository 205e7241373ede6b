--- The page of live sessions in Chromium: it starts, speaks typed text, listens, and stops.

local t = require 'tests.support.tap'
local browser = require 'tests.support.browser'
local child = require 'tests.support.child'
local clip = require 'tests.support.clip'
local cr = require 'cr'
local media = require 'cr.media'
local service = require 'tests.support.service'
local uv = require 'cr.loop'.uv

clip.needs_whisper(t, 'the live page')

local function voice()
  for folder in (os.getenv 'PATH' or ''):gmatch '[^:]+' do
    for _, name in ipairs { 'espeak-ng', 'flite' } do
      if uv.fs_access(folder .. '/' .. name, 'X') then return name end
    end
  end
end

-- A few frames of the demonstration: to prepare all of it would take longer than the rest of the test.
local function short_clip()
  local path, left = child.folder .. '/idle.mp4', 8
  local sink = media.writer(path, { fps = 25 })
  for frame in media.frames(service.video) do
    if left > 0 then sink:write(frame) end
    frame:free()
    left = left - 1
  end
  sink:close()
  return path
end

t.test('the face appears, speaks typed text and microphone input, and stops', function()
  if not browser.program() then t.skip 'Chromium is not installed' end
  local speaker = voice()
  if not speaker then t.skip 'neither espeak-ng nor flite is installed' end
  local server = service.start { '--idle', short_clip(), '--say', speaker }
  local ok, problem = pcall(cr.run, function()
    local page = browser.open(('http://127.0.0.1:%d/live.html'):format(server.port), { width = 1280, height = 900 })
    page:wait "document.querySelector('#clip').length === 1"
    t.ok(page:sees '#form' and not page:sees '#untyped' and not page:sees '#problem', page:text '#problem')
    page:click '#begin'
    page:wait "document.querySelector('#state').textContent === 'Live'"
    page:wait "document.querySelector('#video').currentTime > 0.5 && document.querySelector('#video').videoWidth === 400"
    page:eval "document.querySelector('#text').value = 'Good morning.'"
    page:click '#speak'
    page:wait "/[1-9][0-9]* speaking/.test(document.querySelector('#figures').innerText)"
    page:wait "/Sound in to frame out/.test(document.querySelector('#figures').innerText)"
    page:click '#mic' -- Chromium's fake microphone beeps
    page:wait "document.querySelector('#mic').getAttribute('aria-pressed') === 'true'"
    page:click '#stop'
    page:wait "document.querySelector('#mic').getAttribute('aria-pressed') === 'false'"
    page:wait "/Stop/.test(document.querySelector('#figures').innerText)"
    t.ok(not page:sees '#problem', page:text '#problem')
    if os.getenv 'CR_SHOT' then page:picture(os.getenv 'CR_SHOT', true) end
    page:click '#end'
    page:wait "document.querySelector('#state').textContent === 'Ended'"
    t.equal(#page.wrong, 0, page.wrong[1])
  end)
  cr.run(browser.close)
  server:stop()
  if not ok then error(problem, 0) end
end)

child.clean()
t.done()
