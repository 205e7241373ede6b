-- The image of scripts/deploy/Dockerfile, without Docker: its steps run in folders that debootstrap creates, then the
-- commands in the image as its user. It is the image for CPUs (CUDA=0), so that gigabytes of CUDA are not downloaded;
-- the rest is the same. It needs CR_SLOW=1, root, a few minutes and network access. CR_IMAGE=FOLDER keeps the image
-- in this folder; an existing one is only tested.

local t = require 'tests.support.tap'
local cr = require 'cr'
local dockerfile = require 'tests.support.dockerfile'
local files = require 'cr.files'

local PATH = cr.root .. '/scripts/deploy/Dockerfile'

t.test('a Dockerfile is parsed like Docker does', function()
  local steps = dockerfile.read('# a comment\nFROM debian:12 AS build\nRUN a && \\\n    # inside\n    b\nENV A=1 B="2 3"\n')
  t.equal(#steps, 3)
  t.equal(steps[1].word .. ' ' .. steps[1].text, 'FROM debian:12 AS build')
  t.ok(steps[2].text:find '^a && +b$', steps[2].text)
  t.raises(function() dockerfile.read 'no such line' end, 'Dockerfile: no such line')
  local words = {}
  for _, step in ipairs(dockerfile.read(files.read(PATH))) do words[step.word] = true end
  t.ok(words.USER and words.HEALTHCHECK and words.ENTRYPOINT)
end)

local function has(tool) return os.execute('command -v ' .. tool .. ' >/dev/null') == 0 end
local lacks = not os.getenv 'CR_SLOW' and 'takes minutes: CR_SLOW=1'
    or require 'cr.loop'.uv.getuid() ~= 0 and 'only root may make it'
    or not has 'debootstrap' and 'debootstrap is absent: apt-get install debootstrap'
    or os.execute 'unshare --mount --net true 2>/dev/null' ~= 0 and 'this machine gives no namespaces'
if lacks then
  t.test('the image', function() t.skip(lacks) end)
  t.done()
end

local kept = os.getenv 'CR_IMAGE'
local folder = kept or (os.getenv 'TMPDIR' or '/var/tmp') .. '/crescent-image-' .. require 'cr.loop'.uv.os_getpid()
files.make_folder(folder)
local log, image = folder .. '/log', nil

-- Runs a command in the image, with only the loopback network.
local function inside(command)
  local out = folder .. '/out'
  local ok = dockerfile.alone('mount -t tmpfs tmpfs ' .. image.root .. '/tmp; chmod 1777 ' .. image.root .. '/tmp\n' ..
    dockerfile.inside(image, command), out)
  return ok, files.read(out)
end

t.test('every step of the Dockerfile succeeds', function()
  local made = files.read(folder .. '/made') ~= nil
  image = dockerfile.build(PATH, { context = cr.root, folder = folder, args = { CUDA = '0' }, log = log, made = made })
  files.write(folder .. '/made', '')
  t.equal(image.user, '10001')
  t.ok(files.read(image.root .. '/opt/crescent/bin/crescent'))
end)

t.test('commands run in the image as an unprivileged user', function()
  local ok, said = inside 'id -u && crescent --version && crescent worker --schema'
  t.ok(ok and said:find '^10001\ncrescent ' and said:find('"A job of crescent worker"', 1, true), said)
  ok = inside 'touch /opt/crescent/x || touch /etc/x'
  t.ok(not ok, 'the user can write to the image')
  ok, said = inside 'crescent /opt/crescent/share/crescent/scripts/deploy/checkpoint.lua; test $? = 2'
  t.ok(ok and said:find('usage: checkpoint.lua', 1, true), said)
end)

t.test('serve starts, and the health check succeeds', function()
  local words = {}
  for i, word in ipairs(image.healthcheck) do words[i] = "'" .. word:gsub("'", "'\\''") .. "'" end
  local check = table.concat(words, ' ')
  local ok, said = inside(([[
%s && { echo 'it is healthy before it runs'; exit 1; }
crescent serve --checkpoint /opt/crescent/share/crescent/models/mini --device cpu --data /tmp/data --port 7860 & p=$!
n=0; until %s; do n=$((n+1)); [ $n -lt 120 ] || exit 2; sleep 1; done
echo healthy; kill -TERM $p; wait $p; echo ended $?]]):format(check, check))
  t.ok(ok and said:find 'healthy\n' and said:find 'ended 0', said)
end)

if not kept then os.execute(("rm -rf --one-file-system '%s'"):format(folder)) end
t.done()
