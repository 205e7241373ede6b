--- Runs a Dockerfile's steps in folders that debootstrap creates, on machines without Docker.
--
-- It supports the instructions that our Dockerfile uses: FROM of debian:12, with a name for a stage; ARG, ENV,
-- WORKDIR, USER, COPY (from the checkout and from a stage), RUN with a shell command. It stores HEALTHCHECK and
-- ENTRYPOINT for the caller. Anything else is an error. Each step has its own mounts, which end with it. The host's
-- network configuration (names, proxies, certificates, mirrors) is available during the steps.

local cjson = require 'cjson'
local files = require 'cr.files'

local M = {}

local PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' -- the default of an image that sets none

--- @class DockerStep
--- @field word string 'RUN'
--- @field text string with lines that go on joined

--- Parses a Dockerfile into steps.
--- @param text string
--- @return DockerStep[]
function M.read(text)
  local steps = {}
  text = ('\n' .. text):gsub('\n[ \t]*#[^\n]*', ''):gsub('\\\n', ' ')
  for line in text:gmatch '[^\n]+' do
    local word, rest = line:match '^(%u+)%s+(.-)%s*$'
    if word then
      steps[#steps + 1] = { word = word, text = rest }
    elseif line:find '%S' then
      error('Dockerfile: ' .. line, 0)
    end
  end
  return steps
end

-- Substitutes the values of $NAME and ${NAME} in a text.
local function filled(text, values)
  return (text:gsub('%${?([%a_][%w_]*)}?', function(name) return values[name] or '' end))
end

-- Adds NAME=VALUE and NAME="VALUE" of a line to a table.
local function assign(text, values)
  for name, quoted, plain in (text .. ' '):gmatch '([%w_]+)=("?)([^"]-)%2%s' do
    values[name] = filled(plain ~= '' and plain or quoted == '"' and '' or plain, values)
  end
end

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

-- Runs shell commands on this machine.
local function shell(self, lines)
  if self.made then return end
  local log = io.open(self.log, 'a')
  log:write('+ ', lines, '\n')
  log:close()
  local ok = os.execute(('unshare --mount sh -euc %s >>%s 2>&1 </dev/null'):format(quote(lines), quote(self.log)))
  if ok ~= 0 and ok ~= true then error(('a step failed; the end of %s:\n%s'):format(self.log, files.read(self.log):sub(-3000)), 0) end
end

--- @class DockerStage
--- @field root string its folder
--- @field env table<string, string>
--- @field user string?
--- @field workdir string
--- @field healthcheck string[]?
--- @field entrypoint string[]?

--- A shell command that runs another one in a stage, as the stage's user.
--- @param stage DockerStage
--- @param command string a shell command
--- @param more table<string, string>? further variables
--- @return string
function M.inside(stage, command, more)
  local words = {}
  for _, values in ipairs { stage.args, stage.env, more or {} } do
    for name, value in pairs(values) do words[#words + 1] = quote(name .. '=' .. value) end
  end
  local user = stage.user and ('--userspec=%s:%s '):format(stage.user, stage.user) or ''
  return ('mount -t proc proc %s/proc; mount --rbind /dev %s/dev; chroot %s%s /usr/bin/env -i %s sh -c %s'):format(stage.root, stage.root,
    user, stage.root, table.concat(words, ' '), quote(('cd %s && %s'):format(stage.workdir, command)))
end

-- Copies this machine's network configuration: names, mirrors, certificates.
local NETWORK = [[
for f in /etc/resolv.conf /etc/hosts /etc/pip.conf; do [ ! -e $f ] || cp -L $f ROOT$f; done
for d in apt/apt.conf.d apt/sources.list.d apt/keyrings apt/trusted.gpg.d ssl/certs; do
  [ ! -d /etc/$d ] || { mkdir -p ROOT/etc/$d; cp -rL /etc/$d/. ROOT/etc/$d/ || true; }
done
cp -rL /usr/share/keyrings/. ROOT/usr/share/keyrings/ || true
rm -f ROOT/etc/apt/sources.list
[ ! -e /etc/apt/sources.list ] || cp /etc/apt/sources.list ROOT/etc/apt/]]

local function proxies()
  local values = {}
  for line in io.popen 'env':lines() do
    local name, value = line:match '^([%w_]+)=(.*)$'
    if name and (name:lower():find '^https?_proxy$' or name:lower() == 'no_proxy' or name:find '^PIP_' or name:find '^SSL_CERT' or
      name:find 'CA_BUNDLE$') then
      values[name] = value
    end
  end
  return values
end

local words = {}

function words.ENV(_, stage, text) assign(text, stage.env) end
function words.ARG(self, stage, text)
  local name, default = text:match '^([%w_]+)=?(.*)$'
  stage.args[name] = self.args[name] or (default ~= '' and default:gsub('^"(.*)"$', '%1') or nil)
end
function words.WORKDIR(self, stage, text)
  stage.workdir = text
  shell(self, ('mkdir -p %s%s'):format(stage.root, text))
end
function words.USER(_, stage, text) stage.user = text end
function words.EXPOSE() end
function words.CMD() end
function words.ENTRYPOINT(_, stage, text) stage.entrypoint = cjson.decode(text) end
function words.HEALTHCHECK(_, stage, text) stage.healthcheck = cjson.decode(text:match 'CMD%s+(%[.*%])$') end
function words.RUN(self, stage, text) shell(self, M.inside(stage, text, proxies())) end
function words.COPY(self, stage, text)
  local from, what, to = text:match '^%-%-from=(%S+)%s+(%S+)%s+(%S+)$'
  if from then
    to = to:find '^/' and to or stage.workdir .. '/' .. to
    return shell(self, ('mkdir -p %s%s; cp -a %s%s/. %s%s/'):format(stage.root, to, self.stages[from].root, what, stage.root, to))
  end
  what, to = text:match '^(%S+)%s+(%S+)$'
  to = to:find '^/' and to or stage.workdir .. '/' .. to
  local ignored = {}
  for line in (self.ignored or ''):gmatch '[^\n]+' do ignored[#ignored + 1] = "--exclude='./" .. line:gsub('/$', '') .. "'" end
  shell(self, ('cd %s; tar -chf - %s %s | tar -C %s%s --no-same-owner -xf -'):format(quote(self.context), table.concat(ignored, ' '),
    what == '.' and '.' or './' .. what, stage.root, to))
end

--- Builds an image; requires root.
--- @param dockerfile string path
--- @param o table {context = folder, folder = where the stages are built, args = {CUDA = '0'}, log = file, made = the
--- image exists and is only read}
--- @return DockerStage the last stage
function M.build(dockerfile, o)
  local self = { context = o.context, args = o.args, log = o.log, made = o.made, stages = {} }
  self.ignored = files.read(dockerfile .. '.dockerignore')
  local base, stage = o.folder .. '/base', nil
  shell(self, ('mkdir -p %s; debootstrap --variant=minbase --include=ca-certificates bookworm %s'):format(o.folder, base))
  shell(self, (NETWORK:gsub('ROOT', base)))
  for _, step in ipairs(M.read(files.read(dockerfile))) do
    if step.word == 'FROM' then
      local image, name = step.text:match '^(%S+)%s+AS%s+(%S+)$'
      image, name = image or step.text, name or 'last'
      if not image:find '^debian:12' then error('Dockerfile: FROM ' .. image, 0) end
      stage = { root = o.folder .. '/' .. name, env = { PATH = PATH, HOME = '/root' }, args = {}, workdir = '/' }
      self.stages[name] = stage
      shell(self, ('cp -a %s %s'):format(base, stage.root))
    elseif stage then
      local carry_out = words[step.word] or error('Dockerfile: ' .. step.word, 0)
      carry_out(self, stage, step.text)
    elseif step.word == 'ARG' then -- before the first stage: a default for all stages that declare it
      local name, default = step.text:match '^([%w_]+)=?(.*)$'
      self.args[name] = self.args[name] or default
    end
  end
  stage.args = {}
  return stage
end

--- Runs shell commands in isolation: with their own mounts, and a network that has only loopback.
--- @param lines string
--- @param log string
--- @return boolean
function M.alone(lines, log)
  local ok = os.execute(('unshare --mount --net sh -uc %s >%s 2>&1 </dev/null'):format(quote('ip link set lo up\n' .. lines), quote(log)))
  return ok == 0 or ok == true
end

return M
