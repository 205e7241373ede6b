--- Checks the layering of the source tree: `luajit tests/layers.lua [ROOT [BUILD]]`, run in the repository's root,
--- prints each violation as FILE:LINE: message; the exit status is 1 if there is any. `make lint` runs it. With
--- BUILD, the symbols of the objects in ROOT/BUILD/core are checked too, because a declaration needs no #include.
--
-- ROOMS defines the layers. A room's floors are listed from the top; a floor is one place (a folder or a file), or
-- several that may not use one another. A file belongs to the longest place that contains it. A file that belongs to
-- none is a violation: add new folders here. A file may use its own place, lower floors of its room, and what its
-- room `uses` of other rooms. Nobody may use a place that is `closed`. In addition, no two files may use each other,
-- directly or in a cycle; only lua/cr/ calls C; and an #include names its file relative to the room's root
-- ("base/internal.h").

package.path = './?.lua;' .. package.path
local sources = require 'tests.support.layers.sources'

local ROOMS = {
  { name = 'tests', uses = { 'models', 'lua' }, floors = {
    { 'tests' },
    { 'tests/bench', 'tests/golden' },
    { 'tests/support' },
  } },
  { name = 'scripts', uses = { 'models', 'lua' }, closed = { 'scripts' }, floors = {
    { 'scripts', 'scripts/examples' },
  } },
  { name = 'models', uses = { 'lua' }, closed = { 'models/mini/train' }, floors = {
    { 'models/third_party.lua', 'models/mini/train', 'models/service' },
    { 'models/laboratory' },
    { 'models/latentsync' }, -- the pipeline
    { 'models/upscale' },
    { 'models/cards' }, -- work on several GPUs
    { 'models/quantize' }, -- formats, recipes, rounding
    { 'models/networks' },
  } },
  { name = 'lua', uses = {}, floors = {
    { 'lua/types' }, -- annotations for lua-language-server, which no program requires
    { 'lua/cr/tools' }, -- command line, prompt, help, trace, plots
    { 'lua/cr/schedulers', 'lua/cr/guidance', 'lua/cr/cache' },
    { 'lua/cr/sampling' }, -- building blocks of schedulers
    { 'lua/cr/init.lua' }, -- require 'cr': exports what is below
    { 'lua/cr/serve', 'lua/cr/remote' }, -- servers, without lip-sync; clients of HTTP, S3, queues
    { 'lua/cr/graphs' }, -- networks from other programs' files
    { 'lua/cr/nn', 'lua/cr/weights', 'lua/cr/media', 'lua/cr/image.lua', 'lua/cr/graph.lua' },
    { 'lua/cr/quant.lua' }, -- quantized layers
    { 'lua/cr/cuda.lua' },
    { 'lua/cr/kernel' }, -- custom kernels
    { 'lua/cr/tensor' },
    { 'lua/cr/loop' },
    { 'lua/cr/arguments.lua' },
    { 'lua/cr/config.lua' },
    { 'lua/cr/files.lua', 'lua/cr/schema.lua', 'lua/cr/digest.lua' },
    { 'lua/cr/base64.lua' },
    { 'lua/cr/ffi.lua' },
    { 'lua/cr/errors.lua', 'lua/cr/clock.lua', 'lua/cr/json.lua', 'lua/cr/order.lua' },
  } },
  { name = 'core', uses = {}, floors = {
    { 'core/main.c', 'core/allocations.c' },
    { 'core/ops', 'core/weights', 'core/media', 'core/http', 'core/remote' }, -- the public functions
    { 'core/cpu' }, -- the CPU's table of operations
    { 'core/base' }, -- storage, tensors, dtypes, errors, the loop; the interface of a device
    { 'core/crescent.h' },
  } },
  -- The program runs scripts and loads modules by name for them, so it is above the models.
  { name = 'program', uses = { 'models', 'lua' }, closed = { 'lua/cr/tools/program.lua' }, floors = {
    { 'lua/cr/tools/program.lua' },
  } },
  -- core/ reaches the kernels only through the table of base/backend.h.
  { name = 'kernels', uses = { 'core/base', 'core/crescent.h' }, floors = {
    { 'kernels/table.cu' },
    { 'kernels/attention', 'kernels/conv', 'kernels/image', 'kernels/linear', 'kernels/move', 'kernels/norm',
      'kernels/reduce' },
    { 'kernels/elementwise' }, -- maps over tensors, whose conversions other families use
    { 'kernels/memory' },
    { 'kernels/device' },
  } },
}

local root = arg[1] or '.'
local breaches = {}
local function breach(file, line, format, ...)
  breaches[#breaches + 1] = ('%s:%d: %s'):format(file, line, format:format(...))
end

-- The room and place of a file, and the number of its floor, counted from the top.
local function inside(file, place) return file == place or file:sub(1, #place + 1) == place .. '/' end
local function where(file)
  local best
  for _, room in ipairs(ROOMS) do
    for number, floor in ipairs(room.floors) do
      for _, place in ipairs(floor) do
        if inside(file, place) and #place > #(best and best.place or '') then
          best = { room = room, place = place, floor = number }
        end
      end
    end
  end
  return best
end

local function within_any(file, places)
  for _, place in ipairs(places or {}) do
    if inside(file, place) then return place end
  end
end

-- The reason why `from` may not use `to`; nil if it may. Their positions are `a` and `b`.
local function forbidden(from, to, a, b)
  local closed = within_any(to, b.room.closed)
  if closed and not inside(from, closed) then return ('nobody may use %s/'):format(closed) end
  if a.room ~= b.room then
    if within_any(to, a.room.uses) then return nil end
    local allowed = #a.room.uses > 0 and table.concat(a.room.uses, ', ') or 'no other room'
    return ('%s/ may use %s'):format(a.room.name, allowed)
  end
  if a.place == b.place or b.floor > a.floor then return nil end
  if a.floor == b.floor then return ('%s and %s are on the same floor'):format(a.place, b.place) end
  return ('%s is above %s'):format(b.place, a.place)
end

local files, known = {}, {}
local SEARCH = "cd '%s' && find core kernels lua models scripts tests -name '*.lua' -o -name '*.[ch]' -o -name '*.cu' " ..
  "-o -name '*.cuh' 2>/dev/null | sort"
local list = io.popen(SEARCH:format(root))
for file in list:lines() do
  files[#files + 1] = file
  known[file] = true
end
list:close()

-- The file of a module; nil if it is not one of ours.
local function module_file(name)
  local path = name:gsub('%.', '/')
  if name == 'cr' or name:find '^cr%.' then path = 'lua/' .. path end
  for _, file in ipairs { path .. '.lua', path .. '/init.lua' } do
    if known[file] then return file end
  end
end

local OWN = { cr = true, models = true, scripts = true, tests = true }
local function is_own(name) return OWN[name:match '^(%w+)%.' or name:match '^cr$'] end

-- Files that run user code or load modules by name; all others must use a plain require.
local DETOURS = {
  ['lua/cr/arguments.lua'] = true, ['lua/cr/init.lua'] = true, ['lua/cr/loop/luv.lua'] = true,
  ['lua/cr/sampling/user_file.lua'] = true, ['lua/cr/tools/program.lua'] = true,
  ['lua/cr/tools/prompt/complete.lua'] = true, ['lua/cr/tools/prompt/general.lua'] = true,
  ['lua/cr/tools/prompt/init.lua'] = true, ['lua/cr/tools/prompt/run.lua'] = true,
  ['models/quantize/recipe.lua'] = true, ['scripts/doctor.lua'] = true, ['scripts/help.lua'] = true,
}

local graph = {} -- uses between units: a Lua module, or a .c or .cu file with its header
local function unit(file) return (file:gsub('%.[ch]u?h?$', '')) end
local function use(from, to, line)
  local a, b = where(from), where(to)
  local why = a and b and forbidden(from, to, a, b)
  if why then breach(from, line, 'may not use %s: %s', to, why) end
  local x, y = unit(from), unit(to)
  if x == y then return end
  graph[x] = graph[x] or {}
  graph[x][y] = graph[x][y] or { file = from, line = line }
end

local function check_lua(file, text)
  local tokens = sources.lua_tokens(text)
  local uses, aliases = sources.requires(tokens)
  for _, line in ipairs(aliases) do
    breach(file, line, "`require` is called by its own name only, so that what a file uses can be seen")
  end
  for _, this in ipairs(uses) do
    if this.prefix then
      local folder = this.name:gsub('%.$', ''):gsub('%.', '/')
      if folder:find '^cr' then folder = 'lua/' .. folder end
      local found = not is_own(this.name)
      for _, other in ipairs(files) do
        if other:match '^(.*)/[^/]+%.lua$' == folder and other ~= file then
          found = true
          use(file, other, this.line)
        end
      end
      if not found then breach(file, this.line, "no module begins with '%s'", this.name) end
    else
      local other = module_file(this.name)
      if other and other ~= file then use(file, other, this.line) end
      if not other and not this.guess and is_own(this.name) then
        breach(file, this.line, "there is no module '%s'", this.name)
      end
      if other == 'lua/cr/ffi.lua' and not file:find '^lua/' and not file:find '^tests/' then
        breach(file, this.line, 'raw C calls belong in lua/cr/')
      end
    end
  end
  if not DETOURS[file] and not file:find '^tests/' then
    for _, this in ipairs(sources.detours(tokens)) do
      breach(file, this.line, '%s hides what a file uses: write a require of its name', this.what)
    end
  end
  if file:find '^lua/' or file:find '^tests/' then return end
  for _, line in ipairs(sources.raw_calls(tokens)) do breach(file, line, 'raw C calls belong in lua/cr/') end
end

-- The file of an #include, found as the compiler does; second: how the #include should be written.
local function include_file(file, name)
  local parts = {}
  for part in (file:match '^(.*/)' .. name):gmatch '[^/]+' do
    if part == '..' then
      table.remove(parts)
    elseif part ~= '.' then
      parts[#parts + 1] = part
    end
  end
  local beside = table.concat(parts, '/')
  for _, path in ipairs { beside, 'core/' .. name, file:find '^kernels/' and 'kernels/' .. name or nil } do
    if known[path] then return path, path:match '^%w+/(.*)$' end
  end
end

local function check_c(file, text)
  for _, this in ipairs(sources.includes(text)) do
    if not this.name then
      breach(file, this.line, 'an #include of a macro cannot be checked')
    else
      local other, name = include_file(file, this.name)
      if other then
        use(file, other, this.line)
        if name ~= this.name then breach(file, this.line, 'write #include "%s": names begin at the room\'s root', name) end
      elseif this.quoted then
        breach(file, this.line, 'there is no file "%s"', this.name)
      end
    end
  end
end

for _, file in ipairs(files) do
  if not where(file) then breach(file, 1, 'belongs to no floor: add its folder to tests/layers.lua') end
  local handle = assert(io.open(root .. '/' .. file))
  local text = handle:read '*a'
  handle:close()
  if file:find '%.lua$' then check_lua(file, text) else check_c(file, text) end
end
for _, circle in ipairs(sources.circles(graph)) do
  -- Reported at one use in the cycle.
  local members = {}
  for _, node in ipairs(circle) do members[node] = true end
  for _, node in ipairs(circle) do
    local told
    for other, at in pairs(graph[node]) do
      if members[other] and (not told or at.line < told.line) then told = at end
    end
    breach(told.file, told.line, 'is part of a cycle of uses: %s', table.concat(circle, ', '))
  end
end

-- The symbols that an object uses and defines, by nm.
local function check_objects(build)
  local defined, wanted = {}, {}
  for _, file in ipairs(files) do
    local object = file:match '^(core/.*)%.c$'
    if object and where(file) then
      local symbols = io.popen(("nm -P '%s/%s/%s.o' 2>/dev/null"):format(root, build, object))
      for line in symbols:lines() do
        local symbol, kind = line:match '^(%S+) (%a)'
        if kind == 'U' then
          wanted[#wanted + 1] = { symbol = symbol, file = file }
        elseif kind and kind:find '%u' and file ~= 'core/allocations.c' then -- which replaces functions of the C library
          defined[symbol] = file
        end
      end
      symbols:close()
    end
  end
  for _, this in ipairs(wanted) do
    local other = defined[this.symbol]
    local why = other and forbidden(this.file, other, where(this.file), where(other))
    if why then breach(this.file, 1, 'may not use %s of %s: %s', this.symbol, other, why) end
  end
  if next(defined) == nil then breach(build .. '/core', 0, 'holds no objects: run make first') end
end
if arg[2] then check_objects(arg[2]) end

if #files == 0 then breach(root, 0, 'no source file was found: run it in the root of the tree') end
table.sort(breaches)
for _, text in ipairs(breaches) do print(text) end
os.exit(#breaches == 0 and 0 or 1)
