--- Fault injection: an allocation at any place in our libraries or FFmpeg's fails, or a write, or a read, or a signal
--- arrives at any moment. In every case existing files stay, nothing half-written remains, and exit status 0 means a
--- correct file. tests/support/faults.c injects the faults; CR_SLOW=1 tries hundreds of them, `make test` a few.

local t = require 'tests.support.tap'
local cr = require 'cr'
local lfs = require 'lfs'
local media = require 'cr.media'
local child = require 'tests.support.child'
local pty = require 'tests.support.pty'
local scratch = require 'tests.support.scratch'

local SLOW = os.getenv 'CR_SLOW' == '1'
local SEED = tonumber(os.getenv 'CR_SEED') or os.time()
math.randomseed(SEED)
print('# CR_SEED=' .. SEED)

local MINI = cr.root .. '/models/mini'
local SIGNALS = { sighup = 1, sigint = 2, sigterm = 15 }
local EIO, ENOSPC, SHORT = 5, 28, 0

-- ---- what is run --------------------------------------------------------------------------------

local folder = child.folder .. '/outputs'
assert(lfs.mkdir(folder))
local film, sound = child.folder .. '/film.mp4', child.file('voice.wav', scratch.wav(('\0\1'):rep(3200)))
do
  local writer, count = media.writer(film, { like = MINI .. '/demo.mp4' }), 0
  for frame in media.frames(MINI .. '/demo.mp4', { batch = 1 }) do
    writer:write(frame)
    count = count + 1
    if count == 6 then break end
  end
  writer:close()
end

local clip = { '--checkpoint', MINI, '--steps', '1', '--quiet', '--video', film, '--audio', sound }
local function with(command, more)
  local args = { command }
  for _, part in ipairs { clip, more } do
    for _, word in ipairs(part) do args[#args + 1] = word end
  end
  return args
end

local jobs = {
  copy = { out = 'o.mp4', args = { child.file('copy.lua', [[
    local media = require 'cr.media'
    local from, sound, to = ...
    local writer = media.writer(to, { like = from, audio = sound })
    for frame in media.frames(from) do writer:write(frame) end
    writer:close()
  ]]), film, sound, folder .. '/o.mp4' } },
  convert = { out = 'o.safetensors', args = { 'convert', MINI .. '/syncnet.safetensors', folder .. '/o.safetensors' } },
  lipsync = { out = 'o.mp4', args = with('lipsync', { '--scheduler', 'lcm', '--out', folder .. '/o.mp4' }) },
  compare = { -- its output contains times
    makes = '/clip%.mp4$',
    args = with('compare', { '--schedulers', 'lcm', '--no-syncnet', '--reference', 'none', '--out', folder .. '/all' }),
  },
  -- A server and its clients in one process: an upload in parts, and a WebSocket.
  serve = { args = { child.file('serve.lua', [[
    local cr, errors, http, uv = require 'cr', require 'cr.errors', require 'cr.serve.http', require 'cr.loop'.uv
    local HEAD = ' / HTTP/1.1\r\nHost: x\r\n'
    local function handler(request, response)
      if request.headers.upgrade then
        local ws = request:websocket()
        for data, kind in ws.read, ws do ws:write(data, kind) end
        return
      end
      local n = 0
      for part in request:multipart() do
        for piece in part.read do n = n + #piece end
      end
      response:send(200, {}, 'got ' .. n)
    end
    cr.run(function()
      local server = http.listen { handler = handler, report = function() end, limits = { idle = 2, request = 2 } }
      local function ask(text, answer)
        local tcp, ended, got = uv.new_tcp(), cr.channel(1), {}
        tcp:connect('127.0.0.1', server.port, function() tcp:write(text) end)
        tcp:read_start(function(_, data)
          if data then got[#got + 1] = data else ended:put(true) end
          if data and data:find 'hello$' then tcp:write '\136\128\0\0\0\0' end
        end)
        ended:get()
        tcp:close()
        return table.concat(got):match(answer) or errors.fail 'no answer'
      end
      local part = '--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n' .. ('x'):rep(200000) .. '\r\n--b--\r\n'
      print(ask('POST' .. HEAD .. 'Content-Type: multipart/form-data; boundary=b\r\nConnection: close\r\nContent-Length: ' ..
        #part .. '\r\n\r\n' .. part, '^HTTP/1.1 200 .*(got %d+)$'))
 -- a mask of zeros leaves the bytes unchanged
      print(ask('GET' .. HEAD .. 'Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n' ..
        'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\130\133\0\0\0\0hello',
        '^HTTP/1.1 101 .*\r\n\r\n\130\5(hello)\136%z$'))
      server:close()
    end)
  ]]) } },
  evaluate = { args = { 'evaluate', '--quiet', '--json', MINI .. '/demo.mp4', '--audio', MINI .. '/demo.flac' } },
}

local function names_in(place, list)
  list = list or {}
  for name in lfs.dir(place) do
    local path = place .. '/' .. name
    if name ~= '.' and name ~= '..' then
      if lfs.attributes(path, 'mode') == 'directory' then names_in(path, list) else list[#list + 1] = path:sub(#folder + 2) end
    end
  end
  table.sort(list)
  return list
end

local OLD = 'what was there before'

-- Runs a job, with an existing file under its output's name, and returns how it ended.
local function run(job, options)
  if job.out then
    os.execute(("rm -rf '%s'/* '%s'/.[!.]*"):format(folder, folder))
    scratch.write('old', OLD)
    os.execute(("cp '%s' '%s'"):format(scratch.path 'old', folder .. '/' .. job.out))
  end
  options.env = options.env or {}
  options.env.CR_THREADS, options.env.GOMP_SPINCOUNT = '1', '5000'
  return child.run(job.args, options)
end

local function output(job, r)
  if job.out then return scratch.read(folder .. '/' .. job.out) end
  if not job.makes then return r.out end
  for _, name in ipairs(names_in(folder)) do
    if name:find(job.makes) then return scratch.read(folder .. '/' .. name) end
  end
end

-- The correct result, from a run without faults.
local function good(job)
  if not job.good then
    local r = run(job, {})
    t.equal(r.code, 0, r.err)
    job.good, job.seconds = output(job, r), r.seconds
  end
  return job.good
end

-- A sentence if a run ended in a wrong way, otherwise nil.
local function fault(job, r)
  local left = table.concat(names_in(folder), ' ')
  if left:find('.tmp-', 1, true) or job.out and left ~= job.out then return 'left behind: ' .. left end
  local result = output(job, r)
  if r.code == 0 then return job.good and result ~= job.good and 'exit status 0 and another result' or nil end
  if job.out and result ~= OLD and result ~= job.good then return ('exit status %d, and the old file is lost'):format(r.code) end
  local early = r.signal ~= 0 and r.err == '' -- before the program has begun
  if not early and not r.err:find '^crescent: [^\n]+\n$' then return ('exit status %d: %s'):format(r.code, r.err) end
end

-- n random elements of a list.
local function some(list, n)
  for i = #list, 2, -1 do
    local k = math.random(i)
    list[i], list[k] = list[k], list[i]
  end
  local part = {}
  for i = 1, math.min(n, #list) do part[i] = list[i] end
  return part
end

-- ---- allocations, reads and writes --------------------------------------------------------------

local sanitized = child.program:find '/sanitize' ~= nil
local library = child.folder .. '/faults.so'
if not sanitized then
  assert(os.execute(("gcc -O1 -shared -fPIC -o '%s' '%s/tests/support/faults.c' -ldl"):format(library, cr.root)) == 0)
end

local function lines_of(path)
  local list = {}
  for line in io.lines(path) do list[#list + 1] = line end
  table.sort(list)
  return list
end

local function with_faults(name, fn)
  t.test(name, function()
    if sanitized then t.skip 'a sanitizer has an allocator of its own' end
    local trace = child.folder .. '/trace'
    local happened = 0
    fn(function(job, what, env)
      os.remove(trace)
      env.LD_PRELOAD, env.FAULT_DONE, env.FAULT_FOLDER = library, trace, child.folder
      local problem = fault(job, run(job, { env = env }))
      local done = io.open(trace, 'rb')
      if done then happened = happened + 1 end
      if problem then t.ok(false, ('%s: %s\n%s'):format(what, problem, done and done:read '*a' or 'nothing failed')) end
      if done then done:close() end
    end)
    t.ok(happened > 0, 'something failed')
  end)
end

for _, row in ipairs { { 'copy', 5, 200 }, { 'convert', 3, 30 }, { 'lipsync', 1, 70 }, { 'serve', 3, 100 } } do
  local name, count = row[1], SLOW and row[3] or row[2]
  with_faults(name .. ': an allocation fails', function(try)
    if name == 'serve' and not child.exists((child.program:gsub('crescent$', 'crescent_http.so'))) then t.skip 'no crescent_http.so' end
    local job = jobs[name]
    good(job)
    local list = child.folder .. '/places'
    t.equal(fault(job, run(job, { env = { LD_PRELOAD = library, FAULT_PLACES = list } })), nil)
    for _, place in ipairs(some(lines_of(list), count)) do try(job, 'place ' .. place, { FAULT_PLACE = place }) end
  end)
end

for _, row in ipairs(SLOW and { { 'copy', 60 }, { 'convert', 30 }, { 'lipsync', 20 } } or { { 'copy', 4 }, { 'convert', 3 } }) do
  local name, count = row[1], row[2]
  with_faults(name .. ': a disk fails', function(try)
    local job = jobs[name]
    good(job)
    local list, calls = child.folder .. '/counts', {}
    run(job, { env = { LD_PRELOAD = library, FAULT_COUNTS = list, FAULT_FOLDER = child.folder } })
    for _, line in ipairs(lines_of(list)) do
      local call, times = line:match '^(%a+) (%d+)$'
      for i = 1, tonumber(times) do
        local errors = call == 'write' and { ENOSPC, EIO, SHORT } or call == 'read' and { EIO, SHORT } or { EIO }
        for _, number in ipairs(errors) do calls[#calls + 1] = { call .. ':' .. i, number } end
      end
    end
    for _, call in ipairs(some(calls, count)) do
      try(job, ('%s error %d'):format(call[1], call[2]), { FAULT_CALL = call[1], FAULT_ERROR = tostring(call[2]) })
    end
  end)
end

-- ---- signals ------------------------------------------------------------------------------------

t.test('a signal while the program starts', function()
  if sanitized then t.skip 'its library has to be loaded before all others' end
  local function env(number, file)
    return { LD_PRELOAD = library, FAULT_SIGNAL = tostring(number), FAULT_LOADS = file, HOME = child.folder }
  end
  for _, number in pairs(SIGNALS) do
    for _, file in ipairs { '/program.lua', '/errors.lua', '/json.lua', '/argparse.lua' } do
      local r = child.run({ 'weights' }, { env = env(number, file) })
      t.equal(r.code, 128 + number, file)
      t.equal(r.err, 'crescent: interrupted\n')
    end
    local terminal = pty.start(child.program, env(number, '/prompt/init.lua'))
    t.ok(terminal:wait 'crescent: interrupted', terminal.text)
    t.equal(terminal:close(), 128 + number)
  end
end)

local names = { 'lipsync', 'compare', 'convert', 'evaluate' }
for _, name in ipairs(names) do
  t.test(name .. ': a signal at any moment', function()
    local job = jobs[name]
    if SLOW or name == 'convert' then good(job) end
    for _ = 1, SLOW and 50 or 2 do
      local signal = some({ 'sighup', 'sigint', 'sigterm' }, 1)[1]
      local delay = math.random() * (some({ job.seconds or 1, 0.02 }, 1)[1]) -- as often during the start as later
      if name == 'compare' then os.execute(("rm -rf '%s/all'"):format(folder)) end
      local r = run(job, { after = '', signal = signal, delay = delay })
      local problem = fault(job, r)
      if not problem and r.code ~= 0 and r.code ~= 128 + SIGNALS[signal] then problem = 'exit status ' .. r.code end
      t.ok(not problem, ('%s after %.3f s: %s'):format(signal, delay, problem or ''))
    end
    -- An interrupted job can be run again.
    if name == 'compare' then t.equal(fault(job, run(job, {})), nil) end
  end)
end

child.clean()
t.done()
