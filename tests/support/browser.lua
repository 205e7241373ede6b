--- Headless Chromium, driven like a person would, with real clicks, keys and files, by the DevTools protocol over two
--- pipes (no port, no WebSocket). Its microphone is Chromium's fake one, which beeps.
--
--     local browser = require 'tests.support.browser'
--     local page = browser.open(url, { width = 1280, height = 900 })
--     page:click '#go'; page:wait "document.title == 'Done'"; browser.close()

local cjson = require 'cjson'
local cr = require 'cr'
local ffi = require 'ffi'
local json = require 'cr.json'
local time_limit = require 'tests.support.time_limit'
local scratch = require 'tests.support.scratch'

ffi.cdef [[
int open(const char *path, int flags, ...);
long read(int fd, void *bytes, size_t n);
long write(int fd, const void *bytes, size_t n);
int close(int fd);
typedef struct { int fd; short events, got; } cr_test_poll;
int poll(cr_test_poll *list, unsigned long n, int milliseconds);
]]
local READ, WRITE, READABLE = 0, 1, 1

local M = {}

local Page = {}
Page.__index = Page

local running -- the browser process: {to, from (descriptors), pid}
local last, answers, listeners = 0, {}, {}

-- When the Lua state ends, the folder is removed and the pipes close, which ends the browser.
M.guard = scratch.guard

--- The path of Chromium; nil if it is missing.
function M.program()
  for _, name in ipairs { 'chromium', 'chromium-browser', 'google-chrome' } do
    local path = scratch.command('command -v ' .. name):match '^/[^\n]*'
    if path then return path end
  end
end

-- Named pipes, not luv's: a test must not leave a handle open, and a browser is shared by several tests.
local function start()
  local to, from, log = scratch.path 'chromium.to', scratch.path 'chromium.from', scratch.path 'chromium.log'
  local words = { M.program(), '--headless=new', '--remote-debugging-pipe', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
    '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-extensions', '--mute-audio',
    '--hide-scrollbars', '--force-color-profile=srgb', '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream',
    '--user-data-dir=' .. scratch.path 'chromium', 'about:blank' }
  scratch.command(("mkfifo '%s' '%s'"):format(to, from))
  os.execute(("'%s' 3<'%s' 4>'%s' </dev/null >'%s' 2>&1 &"):format(table.concat(words, "' '"), to, from, log))
  running = { to = ffi.C.open(to, WRITE), from = ffi.C.open(from, READ), log = log, parts = {} }
end

local function receive(message)
  if message.id then
    answers[message.id] = message
  elseif listeners[message.sessionId] then
    listeners[message.sessionId](message.method, message.params)
  end
end

local buffer = ffi.new('char[?]', 65536)

-- Reads what the browser sends within a tenth of a second.
local function listen()
  local wanted = ffi.new('cr_test_poll[1]', { { running.from, READABLE, 0 } })
  if ffi.C.poll(wanted, 1, 100) == 0 then return end
  local n = tonumber(ffi.C.read(running.from, buffer, 65536))
  if n <= 0 then error('the browser has ended: ' .. scratch.read(running.log):sub(-600), 0) end
  local data, from = ffi.string(buffer, n), 1
  for at in data:gmatch '()%z' do
    running.parts[#running.parts + 1] = data:sub(from, at - 1)
    receive(cjson.decode(table.concat(running.parts)))
    running.parts, from = {}, at + 1
  end
  running.parts[#running.parts + 1] = data:sub(from)
end

local clock = require 'cr.clock'

-- Waits until `ready` returns a value.
local function until_ready(what, ready, idle, wrong)
  local limit = clock() + time_limit
  while true do
    local value = ready()
    if value then return value end
    if clock() > limit then error(('the browser did not come to this: %s\n%s'):format(what, table.concat(wrong or {}, '\n')), 0) end
    idle()
  end
end

local function send(session, method, params)
  last = last + 1
  local id = last
  local text = json.encode { id = id, method = method, sessionId = session, params = params or {} } .. '\0'
  local sent = 0
  while sent < #text do sent = sent + tonumber(ffi.C.write(running.to, text:sub(sent + 1), #text - sent)) end
  local answer = until_ready(method, function() return answers[id] end, listen)
  answers[id] = nil
  if answer.error then error(method .. ': ' .. answer.error.message, 0) end
  return answer.result
end

local function nap() cr.sleep(0.02) end

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
  pcall(send, nil, 'Browser.close')
  while pcall(listen) do end -- to the pipe's end
  ffi.C.close(running.to)
  ffi.C.close(running.from)
  running = nil
end

--- Sends a command of the protocol and returns its result.
function Page:send(method, params) return send(self.session, method, params) end

--- Sets width, height, colour scheme, touch and reduced motion, as in open.
function Page:look(look)
  self:send('Emulation.setDeviceMetricsOverride', { width = look.width or 1280, height = look.height or 900,
    deviceScaleFactor = 1, mobile = look.phone or false })
  self:send('Emulation.setTouchEmulationEnabled', { enabled = look.phone or false })
  self:send('Emulation.setEmulatedMedia', { features = {
    { name = 'prefers-color-scheme', value = look.dark and 'dark' or 'light' },
    { name = 'prefers-reduced-motion', value = look.still and 'reduce' or 'no-preference' },
  } })
end

--- Opens an address and waits until it is loaded.
function Page:visit(url)
  self:send('Page.navigate', { url = url })
  self:wait "document.readyState === 'complete' && location.href !== 'about:blank'"
end

--- The value of a JavaScript expression; promises are awaited.
function Page:eval(expression)
  local answer = self:send('Runtime.evaluate', { expression = expression, awaitPromise = true, returnByValue = true, userGesture = true })
  local details = answer.exceptionDetails
  if details then error(expression .. ': ' .. (details.exception and details.exception.description or details.text), 0) end
  local value = answer.result.value
  if value == cjson.null then return nil end
  return value
end

--- Waits until an expression is true; returns its value.
function Page:wait(expression)
  return until_ready(expression, function()
    local ok, value = pcall(self.eval, self, expression)
    if not ok and not tostring(value):find 'context' and not tostring(value):find 'null' then error(value, 0) end
    return ok and value
  end, nap, self.wrong)
end

local function quoted(text) return cjson.encode(text) end

--- Whether the node of a selector is visible.
function Page:sees(selector)
  return self:eval(('(() => { const n = document.querySelector(%s); return !!n && n.checkVisibility({ visibilityProperty: true }); })()')
    :format(quoted(selector)))
end

--- The visible text of a selector's node, with non-breaking spaces as plain ones.
function Page:text(selector)
  return self:eval(('document.querySelector(%s)?.innerText.trim().replaceAll("\\u00a0", " ") ?? ""'):format(quoted(selector)))
end

-- The centre of a node on the screen, after scrolling, once it is there and does not move.
local function middle(self, selector)
  local find = ([[(async () => {
    const n = document.querySelector(%s);
    if (!n || !n.checkVisibility()) return null;
    n.scrollIntoView({ block: 'center', behavior: 'instant' });
    const place = () => { const r = n.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; };
    const before = place();
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    const now = place(), hit = document.elementFromPoint(...now);
    const there = hit && (n.contains(hit) || hit.contains(n) || hit.closest('label')?.contains(n));
    return String(before) === String(now) && there ? now : null;
  })()]]):format(quoted(selector))
  return until_ready(selector, function() return self:eval(find) end, nap, self.wrong)
end

local function mouse(self, kind, x, y, buttons)
  self:send('Input.dispatchMouseEvent', { type = kind, x = x, y = y, button = buttons ~= 0 and 'left' or 'none',
    buttons = buttons or 1, clickCount = 1 })
end

--- Clicks the node of a selector.
function Page:click(selector)
  local at = middle(self, selector)
  mouse(self, 'mouseMoved', at[1], at[2], 0)
  mouse(self, 'mousePressed', at[1], at[2])
  mouse(self, 'mouseReleased', at[1], at[2])
end

--- Drags the node of a selector by a distance in pixels.
function Page:drag(selector, dx, dy)
  local at = middle(self, selector)
  mouse(self, 'mousePressed', at[1], at[2])
  for k = 1, 4 do mouse(self, 'mouseMoved', at[1] + dx * k / 4, at[2] + dy * k / 4) end
  mouse(self, 'mouseReleased', at[1] + dx, at[2] + dy)
end

--- Drops a file on the node of a selector.
function Page:drop(selector, path)
  local at = middle(self, selector)
  for _, kind in ipairs { 'dragEnter', 'dragOver', 'drop' } do
    local data = { items = json.list {}, files = { path }, dragOperationsMask = 1 }
    self:send('Input.dispatchDragEvent', { type = kind, x = at[1], y = at[2], data = data })
  end
end

local KEYS = { Tab = 9, Enter = 13, Escape = 27, [' '] = 32, End = 35, Home = 36, ArrowLeft = 37, ArrowUp = 38, ArrowRight = 39,
  ArrowDown = 40 }

--- Presses a key by its JavaScript name, optionally with shift.
function Page:press(key, shift)
  local text = key == 'Enter' and '\r' or #key == 1 and key or nil
  local event = { type = text and 'keyDown' or 'rawKeyDown', key = key, code = KEYS[key] and (key == ' ' and 'Space' or key) or nil,
    windowsVirtualKeyCode = KEYS[key] or key:upper():byte(), modifiers = shift and 8 or 0, text = text }
  self:send('Input.dispatchKeyEvent', event)
  event.type, event.text = 'keyUp', nil
  self:send('Input.dispatchKeyEvent', event)
end

--- Types into the focused element.
function Page:type(text) self:send('Input.insertText', { text = text }) end

--- Chooses files in an input.
function Page:choose(selector, ...)
  local root = self:send('DOM.getDocument').root.nodeId
  local node = until_ready(selector, function()
    local found = self:send('DOM.querySelector', { nodeId = root, selector = selector }).nodeId
    return found ~= 0 and found
  end, nap, self.wrong)
  self:send('DOM.setFileInputFiles', { nodeId = node, files = { ... } })
end

--- Writes a screenshot as PNG.
--- @param path string
--- @param whole boolean? of the whole page
function Page:picture(path, whole)
  local shot = self:send('Page.captureScreenshot', { format = 'png', captureBeyondViewport = whole or false })
  local out = assert(io.popen(("base64 -d >'%s'"):format(path), 'w'))
  out:write(shot.data)
  out:close()
end

return M
