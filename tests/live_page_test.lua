--- The page of live sessions in Chromium: it starts, speaks typed text, listens, and stops.

local t = require 'tests.support.tap'
local browser = require 'tests.support.browser'
local child = require 'tests.support.child'
local clip = require 'tests.support.clip'
local cr = require 'cr'
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

t.test('the face appears, speaks typed text and microphone input, and stops', function()
  if not browser.program() then t.skip 'Chromium is not installed' end
  local speaker = voice()
  if not speaker then t.skip 'neither espeak-ng nor flite is installed' end
  local server = service.start { '--idle', service.video, '--say', speaker }
  local ok, problem = pcall(cr.run, function()
    local page = browser.open(('http://127.0.0.1:%d/live.html'):format(server.port), { width = 1280, height = 900 })
    page:wait "document.querySelector('#clip').length === 1"
    t.ok(page:sees '#form' and not page:sees '#problem', page:text '#problem')
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
