--- Live sessions over WebSockets. scripts/README.md describes the protocol.
--
--     local lives = require 'models.latentsync.live.server'.open { settings = { checkpoint = DIR }, devices = { 'cuda' }, sessions = 1 }
--     lives:handle(request:websocket { max = lives.max })     -- returns when the socket is closed
--
-- Each session runs in a process of its own (worker.lua), so that the server answers while a GPU or CPU is busy, and
-- a fault ends only that session. The process is kept for the next session on its device. A session gets the device with the
-- fewest sessions, of several one that runs no job.
--
-- Invariants: there are never more sessions than allowed. A client that reads slowly, sends more than the queue
-- holds, or goes away, ends only its own session. Of a client's settings only those in CLIENT are accepted.

local base64 = require 'cr.base64'
local clock = require 'cr.clock'
local cr = require 'cr'
local errors = require 'cr.errors'
local json = require 'cr.json'
local process = require 'cr.serve.process'
local settings = require 'models.latentsync.live.settings'
local voices = require 'models.latentsync.live.say'

local M = {}

local MAX = 2 ^ 20 -- maximum bytes of a message
local PATIENCE = 5 -- seconds that a session gets to end before its process is killed
local CLOSE = { done = 1000, wrong = 1008, fault = 1011, busy = 1013 }

-- Settings that a client may choose: none that names a local file or the device.
local CLIENT = { 'frames_per_window', 'steps', 'guidance', 'seed', 'face', 'start', 'duration', 'crf', 'channels', 'look_ahead', 'span',
  'run_in', 'every', 'least_steps', 'silence', 'gap', 'margin', 'queue' }
local client_rows = settings.schema:only(CLIENT)

--- @class LiveServer
--- @field max integer maximum size of a client's message in bytes
local Server = {}
Server.__index = Server

--- @param o table {settings: of all sessions, by the rows of live/settings.lua, devices: string[], busy = fun(device): boolean?
---   whether a job runs there, sessions = maximum number at once (one for each device), idle =
---   fun(id): string? the file of an idle clip that a client names; without it all sessions use settings.idle, say = the program
---   that speaks texts ('espeak-ng', 'flite')}
--- @return LiveServer
function M.open(o)
  return setmetatable({ o = o, max = MAX, free = {}, running = 0, sessions = o.sessions or #o.devices, figures = {} }, Server)
end

-- ---- processes -----------------------------------------------------------------------------------

local function spawn(device)
  local child = { device = device }
  child.process = process.spawn('models.latentsync.live.worker', {
    name = 'live',
    on_message = function(message)
      if child.take then child.take(message) end
    end,
    on_end = function(why)
      child.gone = true
      if child.take then child.take { event = 'failed', detail = 'the process of this session ' .. tostring(why), gone = true } end
    end,
  })
  return child
end

-- The device for another session.
local function choose_device(self)
  local best, least
  for _, device in ipairs(self.o.devices) do
    local used = self.o.busy and self.o.busy(device) and 0.5 or 0
    for session in pairs(self.figures) do used = used + (session.device == device and 1 or 0) end
    if not least or used < least then best, least = device, used end
  end
  return best
end

local function take_child(self, device)
  for i = #self.free, 1, -1 do
    local child = self.free[i]
    if child.gone or child.device == device then table.remove(self.free, i) end
    if not child.gone and child.device == device then return child end
  end
  return spawn(device)
end

-- ---- one session ---------------------------------------------------------------------------------

local Session = {}
Session.__index = Session

local count = 0 -- number of sessions so far

local function send(self, op, more)
  more = more or {}
  more.op, more.session = op, self.number
  if self.child then self.child.process:send(more) end
end

local function tell(self, message) return self.socket:try_write(json.encode(message), 'text') end

-- Ends the session in its process, which is then free for another session; or ends the process.
local function put_back(self)
  local child, server = self.child, self.server
  if not child then return end
  self.child = nil
  if not self.ended and not child.gone then
    child.process:send { op = 'stop', session = self.number }
    local limit = clock() + PATIENCE
    while not self.ended and not child.gone and clock() < limit do cr.sleep(0.02) end
  end
  child.take = nil
  if self.ended and not child.gone then server.free[#server.free + 1] = child else child.process:kill() end
  server.running, server.figures[self] = server.running - 1, nil
end

-- Ends the session, once, with a last message to the client. The process is free before the client has answered.
local function finish(self, code, message)
  if self.over then return end
  self.over = true
  if message then tell(self, message) end
  put_back(self)
  self.socket:close(code, message and message.detail and message.detail:sub(1, 120))
end

local function refuse(self, code, sentence) finish(self, code, { type = 'error', detail = sentence }) end

-- The MIME type of an MP4's codecs, from its header.
local function mime_of(header)
  local at = header:find('avcC', 1, true)
  if not at then return 'video/mp4' end
  local profile, compatible, level = header:byte(at + 5, at + 7)
  return ('video/mp4; codecs="avc1.%02x%02x%02x, mp4a.40.2"'):format(profile, compatible, level)
end

local events = {}

function events.ready(self, message)
  self.width, self.height = message.width, message.height
  send(self, 'run')
end

function events.video(self, message)
  local bytes = base64.decode(message.data)
  if not self.begun then
    self.begun = true
    tell(self, { type = 'ready', mime = mime_of(bytes), width = self.width, height = self.height, frames_per_second = 25 })
  end
  if not self.socket:try_write(bytes) then
    refuse(self, CLOSE.wrong, 'the client reads the video too slowly')
  end
end

function events.metrics(self, message)
  self.metrics = message.metrics
  tell(self, { type = 'metrics', metrics = message.metrics })
end

function events.flushed(self, message) tell(self, { type = 'flushed', seconds = message.seconds }) end

function events.full(self) refuse(self, CLOSE.wrong, 'the queue of sound is full: send more slowly, or ask for a larger queue') end

function events.ended(self, message)
  self.ended = true
  finish(self, CLOSE.done, { type = 'ended', metrics = message.metrics })
end

function events.failed(self, message)
  self.ended = true
  refuse(self, CLOSE.fault, message.detail)
end

-- Messages that a client sends as JSON, by type.
local says = {}

local function form_of(message)
  return { rate = message.rate or 16000, channels = message.channels or 1, format = message.format or 's16' }
end

local function check_form(form)
  local rows = settings.schema:only { 'rate', 'channels', 'format' }
  rows:check('sound', form)
  return form
end

function says.start(self, message)
  if self.form then errors.fail 'start: the session has already begun' end
  self.form = check_form(form_of(message))
  local given = client_rows:check('settings', message.settings or {})
  for key, value in pairs(self.server.o.settings) do
    if given[key] == nil then given[key] = value end
  end
  if message.idle ~= nil then
    local find = self.server.o.idle
    given.idle = find and find(message.idle)
    if not given.idle then errors.fail(('start: there is no file %s'):format(tostring(message.idle))) end
  end
  if not given.idle then errors.fail 'start: idle is missing: the file of a clip of a listening person' end
  given.quiet, given.device = true, self.device
  send(self, 'open', { settings = given })
end

function says.sound(self, message) self.form = check_form(form_of(message)) end
function says.finish(self) send(self, 'finish') end
function says.flush(self) send(self, 'flush') end
function says.metrics(self) send(self, 'metrics') end

says['end'] = function(self) send(self, 'end') end

function says.say(self, message)
  local speaker = self.server.o.say
  if not speaker then errors.fail 'say: this server has no text to speech: send sound' end
  voices.say(speaker, message.text, function(data, rate)
    send(self, 'sound', { data = base64.encode(data), form = { rate = rate } })
  end)
  send(self, 'finish')
end

local FIELDS = { start = { idle = true, settings = true, rate = true, channels = true, format = true },
  sound = { rate = true, channels = true, format = true }, say = { text = true } }

local function hear_text(self, text)
  local ok, message = pcall(json.decode, text)
  if not ok or type(message) ~= 'table' then errors.fail 'a text message must be a JSON object' end
  local act = says[message.type]
  if not act then errors.fail(("there is no message of the type '%s'"):format(tostring(message.type))) end
  for name in pairs(message) do
    if name ~= 'type' and not (FIELDS[message.type] or {})[name] then
      errors.fail(("%s: there is no field '%s'"):format(message.type, tostring(name)))
    end
  end
  if not self.form and message.type ~= 'start' then errors.fail(message.type .. ': the session has not begun: send start first') end
  act(self, message)
end

local function hear_binary(self, bytes)
  local form = self.form
  if not form then errors.fail 'sound arrived before the message start' end
  local size = (form.format == 'f32' and 4 or 2) * form.channels
  if #bytes % size ~= 0 then
    errors.fail(('%d bytes are not a whole number of samples of %d channel%s of %s'):format(#bytes, form.channels,
      form.channels == 1 and '' or 's', form.format))
  end
  if #bytes == 0 then return end
  send(self, 'sound', { data = base64.encode(bytes), form = form })
end

--- Serves a client until the WebSocket is closed. Must be called in a task.
--- @param socket WebSocket
function Server:handle(socket)
  local session = setmetatable({ socket = socket, server = self }, Session)
  if self.running >= self.sessions then
    return refuse(session, CLOSE.busy, ('all live sessions (%d) are in use: try again later'):format(self.sessions))
  end
  self.running, count = self.running + 1, count + 1
  session.number, session.device = count, choose_device(self)
  self.figures[session] = true
  local ok, problem = pcall(function()
    local child = take_child(self, session.device)
    session.child = child
    child.take = function(message)
      local act = (message.gone or message.session == session.number) and events[message.event]
      if not act then return end
      -- In a task of its own, because closing a socket waits for the other side.
      cr.go(function() act(session, message) end)
    end
    for data, kind in socket.read, socket do
      if session.over then break end
      local fine, why = pcall(kind == 'text' and hear_text or hear_binary, session, data)
      if not fine then
        if not errors.is_failure(why) then error(why, 0) end
        refuse(session, CLOSE.wrong, why.message)
        break
      end
    end
  end)
  finish(session, ok and CLOSE.done or CLOSE.fault)
  if not ok then error(problem, 0) end
end

--- The server's live features, for the page.
--- @return {sessions: integer, idle: boolean, say: string?}
function Server:describe() return { sessions = self.sessions, idle = self.o.settings.idle ~= nil, say = self.o.say } end

--- The metrics of all running sessions: LiveMetrics:report() of each.
--- @return table[]
function Server:metrics()
  local list = {}
  for session in pairs(self.figures) do list[#list + 1] = session.metrics end
  return list
end

--- Ends all processes.
function Server:close()
  for _, child in ipairs(self.free) do child.process:kill() end
  for session in pairs(self.figures) do
    if session.child then session.child.process:kill() end
  end
  self.free = {}
end

return M
