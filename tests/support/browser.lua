--- Chromium without a window, driven as a person would: real clicks, keys and files, by the DevTools protocol over two
--- pipes (no port, no WebSocket). Its microphone is Chromium's own, which beeps.
--
--     local browser = require 'tests.support.browser'
--     local page = browser.open(url, { width = 1280, height = 900 })
--     page:click '#go'; page:wait "document.title == 'Done'"; browser.close()

local cjson = require 'cjson'
local cr = require 'cr'
local uv = require 'cr.loop'.uv
local patience = require 'tests.support.patience'
local scratch = require 'tests.support.scratch'

local M = {}

local Page = {}
Page.__index = Page

local running -- the browser: {process, to, from, ended}
local last, answers, listeners = 0, {}, {}

--- Path of Chromium, nil where there is none.
function M.program()
  for _, name in ipairs { 'chromium', 'chromium-browser', 'google-chrome' } do
    for folder in (os.getenv 'PATH' or ''):gmatch '[^:]+' do
      if uv.fs_access(folder .. '/' .. name, 'X') then return folder .. '/' .. name end
    end
  end
end

local function receive(message)
  if message.id then
    answers[message.id] = message
  elseif listeners[message.sessionId] then
    listeners[message.sessionId](message.method, message.params)
  end
end

local function start()
  local to, from, log = uv.new_pipe(false), uv.new_pipe(false), uv.new_pipe(false)
  running = { to = to, from = from, log = log, said = {} }
  local browser = running
  browser.process = assert(uv.spawn(M.program(), {
    args = { '--headless=new', '--remote-debugging-pipe', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
      '--disable-background-networking', '--disable-component-update', '--disable-extensions', '--mute-audio', '--hide-scrollbars',
      '--force-color-profile=srgb', '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream',
      '--user-data-dir=' .. scratch.path 'chromium', 'about:blank' },
    stdio = { nil, nil, log, to, from },
  }, function() browser.ended = true end))
  local parts = {} -- of a message whose end is still to come
  from:read_start(function(_, data)
    local from_here = 1
    for place in (data or ''):gmatch '()%z' do
      parts[#parts + 1] = data:sub(from_here, place - 1)
      receive(cjson.decode(table.concat(parts)))
      parts, from_here = {}, place + 1
    end
    parts[#parts + 1] = data and data:sub(from_here)
  end)
  log:read_start(function(_, data) browser.said[#browser.said + 1] = data end)
end

-- Lets the loop turn until `ready` gives something.
local function until_ready(what, ready, wrong)
  local limit = uv.hrtime() + math.min(patience, 60) * 1e9
  while true do
    local value = ready()
    if value then return value end
    if running.ended then error('the browser ended: ' .. table.concat(running.said):sub(-600), 0) end
    if uv.hrtime() > limit then error(('the browser did not come to this: %s\n%s'):format(what, table.concat(wrong or {}, '\n')), 0) end
    cr.sleep(0.01)
  end
end

local function send(session, method, params)
  last = last + 1
  local id = last
  local text = cjson.encode { id = id, method = method, sessionId = session, params = params or {} }
  running.to:write(text .. '\0')
  local answer = until_ready(method, function() return answers[id] end)
  answers[id] = nil
  if answer.error then error(method .. ': ' .. answer.error.message, 0) end
  return answer.result
end

--- Opens an address in a new tab with a profile of its own.
--- @param url string
--- @param look table? {width=, height=, phone = true, dark = true, still = true (reduced motion)}
--- @return table Page
function M.open(url, look)
  if not running then start() end
  local context = send(nil, 'Target.createBrowserContext').browserContextId
  local target = send(nil, 'Target.createTarget', { url = 'about:blank', browserContextId = context }).targetId
  local session = send(nil, 'Target.attachToTarget', { targetId = target, flatten = true }).sessionId
  local self = setmetatable({ session = session, context = context, wrong = {} }, Page)
  listeners[session] = function(method, params)
    if method == 'Runtime.exceptionThrown' then
      local details = params.exceptionDetails
      self.wrong[#self.wrong + 1] = details.exception and details.exception.description or details.text
    elseif method == 'Log.entryAdded' and params.entry.level == 'error' then
      self.wrong[#self.wrong + 1] = params.entry.text .. ' ' .. (params.entry.url or '')
    elseif method == 'Runtime.consoleAPICalled' and params.type == 'error' then
      self.wrong[#self.wrong + 1] = tostring(params.args[1] and (params.args[1].description or params.args[1].value))
    end
  end
  for _, domain in ipairs { 'Page', 'Runtime', 'Log', 'DOM' } do self:send(domain .. '.enable') end
  self:look(look or {})
  self:visit(url)
  return self
end

--- Closes the browser.
function M.close()
  if not running then return end
  local browser = running
  running = nil
  browser.process:kill 'sigterm'
  while not browser.ended do cr.sleep(0.005) end
  for _, handle in ipairs { browser.process, browser.to, browser.from, browser.log } do handle:close() end
  cr.sleep(0)
end

--- One command of the protocol; its result.
function Page:send(method, params) return send(self.session, method, params) end

--- Width, height, light or dark, a phone's touch, reduced motion: as in open.
function Page:look(look)
  self:send('Emulation.setDeviceMetricsOverride', { width = look.width or 1280, height = look.height or 900,
    deviceScaleFactor = 1, mobile = look.phone or false })
  self:send('Emulation.setTouchEmulationEnabled', { enabled = look.phone or false })
  self:send('Emulation.setEmulatedMedia', { features = {
    { name = 'prefers-color-scheme', value = look.dark and 'dark' or 'light' },
    { name = 'prefers-reduced-motion', value = look.still and 'reduce' or 'no-preference' },
  } })
end

--- Goes to an address and waits until it is loaded.
function Page:visit(url)
  self:send('Page.navigate', { url = url })
  self:wait "document.readyState === 'complete' && location.href !== 'about:blank'"
end

--- The value of an expression of JavaScript; a promise is waited for.
function Page:eval(expression)
  local answer = self:send('Runtime.evaluate', { expression = expression, awaitPromise = true, returnByValue = true, userGesture = true })
  local details = answer.exceptionDetails
  if details then error(expression .. ': ' .. (details.exception and details.exception.description or details.text), 0) end
  local value = answer.result.value
  if value == cjson.null then return nil end
  return value
end

--- Waits until an expression holds; its value.
function Page:wait(expression)
  return until_ready(expression, function()
    local ok, value = pcall(self.eval, self, expression)
    if not ok and not tostring(value):find 'context' and not tostring(value):find 'null' then error(value, 0) end
    return ok and value
  end, self.wrong)
end

local function quoted(text) return cjson.encode(text) end

--- Whether what a selector names can be seen.
function Page:sees(selector)
  return self:eval(('(() => { const n = document.querySelector(%s); return !!n && n.checkVisibility({ visibilityProperty: true }); })()')
    :format(quoted(selector)))
end

--- The text of what a selector names, as it is shown.
function Page:text(selector)
  return self:eval(('document.querySelector(%s)?.innerText.trim() ?? ""'):format(quoted(selector)))
end

-- Middle of a node on the screen, scrolled to, once it is there and stands still.
local function middle(self, selector)
  local find = ([[(async () => {
    const n = document.querySelector(%s);
    if (!n || !n.checkVisibility()) return null;
    n.scrollIntoView({ block: 'center', behavior: 'instant' });
    const r = n.getBoundingClientRect();
    return [r.x + r.width / 2, r.y + r.height / 2];
  })()]]):format(quoted(selector))
  return until_ready(selector, function() return self:eval(find) end)
end

local function mouse(self, kind, x, y, buttons)
  self:send('Input.dispatchMouseEvent', { type = kind, x = x, y = y, button = buttons ~= 0 and 'left' or 'none',
    buttons = buttons or 1, clickCount = 1 })
end

--- Clicks on what a selector names.
function Page:click(selector)
  local at = middle(self, selector)
  mouse(self, 'mouseMoved', at[1], at[2], 0)
  mouse(self, 'mousePressed', at[1], at[2])
  mouse(self, 'mouseReleased', at[1], at[2])
end

--- Drags what a selector names by so many pixels.
function Page:drag(selector, dx, dy)
  local at = middle(self, selector)
  mouse(self, 'mousePressed', at[1], at[2])
  for k = 1, 4 do mouse(self, 'mouseMoved', at[1] + dx * k / 4, at[2] + dy * k / 4) end
  mouse(self, 'mouseReleased', at[1] + dx, at[2] + dy)
end

local KEYS = { Tab = 9, Enter = 13, Escape = 27, [' '] = 32, End = 35, Home = 36, ArrowLeft = 37, ArrowUp = 38, ArrowRight = 39,
  ArrowDown = 40 }

--- Presses a key, by its name in JavaScript. shift: with it.
function Page:press(key, shift)
  local text = key == 'Enter' and '\r' or #key == 1 and key or nil
  local event = { type = text and 'keyDown' or 'rawKeyDown', key = key, code = KEYS[key] and (key == ' ' and 'Space' or key) or nil,
    windowsVirtualKeyCode = KEYS[key] or key:upper():byte(), modifiers = shift and 8 or 0, text = text }
  self:send('Input.dispatchKeyEvent', event)
  event.type, event.text = 'keyUp', nil
  self:send('Input.dispatchKeyEvent', event)
end

--- Types into what has the focus.
function Page:type(text) self:send('Input.insertText', { text = text }) end

--- Chooses files in an input.
function Page:choose(selector, ...)
  local root = self:send('DOM.getDocument').root.nodeId
  local node = until_ready(selector, function()
    local found = self:send('DOM.querySelector', { nodeId = root, selector = selector }).nodeId
    return found ~= 0 and found
  end)
  self:send('DOM.setFileInputFiles', { nodeId = node, files = { ... } })
end

--- Writes a PNG of what is to be seen.
--- @param path string
--- @param whole boolean? of the page to its end
function Page:picture(path, whole)
  local shot = self:send('Page.captureScreenshot', { format = 'png', captureBeyondViewport = whole or false })
  local out = assert(io.popen(("base64 -d >'%s'"):format(path), 'w'))
  out:write(shot.data)
  out:close()
end

return M
