--- Checks the house's rule that uses point only downward: scripts -> models -> lua -> core ->
--- kernels, and that raw C calls stay inside lua/cr/. Prints each breach; exit status 1 if any.

local ROOMS = { scripts = 5, models = 4, lua = 3, core = 2, kernels = 1 }

local breaches = 0
local function breach(file, line, text)
  breaches = breaches + 1
  print(('%s:%d: %s'):format(file, line, text))
end

local function room_of_module(name)
  if name == 'cr' or name:find '^cr%.' then return 'lua' end
  return name:match '^(%a+)%.' and ROOMS[name:match '^(%a+)%.'] and name:match '^(%a+)%.' or nil
end

local files = io.popen "find core kernels lua models scripts -name '*.lua' -o -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null"
local checked = 0
for file in files:lines() do
  checked = checked + 1
  local room = file:match '^(%a+)/'
  local number = 0
  for line in io.lines(file) do
    number = number + 1
    if file:find '%.lua$' then
      local code = line:gsub('%-%-.*$', '')
      for name in code:gmatch [=[require%s*%(?%s*['"]([%w_.]+)['"]]=] do
        local other = room_of_module(name)
        if other and ROOMS[other] > ROOMS[room] then
          breach(file, number, ("%s/ may not use '%s' of %s/"):format(room, name, other))
        end
        if name == 'cr.ffi' and room ~= 'lua' then
          breach(file, number, 'raw C calls belong in lua/cr/')
        end
      end
      if room ~= 'lua' and code:find '%f[%w_]cr%.C%f[^%w_]' then
        breach(file, number, 'raw C calls belong in lua/cr/')
      end
    else
      local other = line:match '^%s*#%s*include%s*"([^"]+)"'
      local target = other and other:match '^%.%./(%a+)/'
      if target and ROOMS[target] and ROOMS[target] > ROOMS[room] then
        breach(file, number, ('%s/ may not include %s'):format(room, other))
      end
    end
  end
end
files:close()
if checked == 0 then
  print 'layers: no source file was found: run it in the root of the tree'
  breaches = 1
end
os.exit(breaches == 0 and 0 or 1)
