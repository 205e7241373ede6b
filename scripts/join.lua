--- Joins the parts of a film that `crescent split` has created and workers have made.
--
-- Video packets are copied, the sound is encoded once: models/latentsync/join.lua.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local errors = require 'cr.errors'
local files = require 'cr.files'
local film = require 'models.service.film'

local args = cli.parse(arg, {
  name = 'join', summary = "Joins the parts of a film that crescent split has created and workers have made.",
  options = {
    { '--out', 'string', required = true, metavar = 'FILE|URL', help = 'the film; also s3://BUCKET/KEY or another URL' },
    { '--root', 'folder', help = 'root folder for file:///PATH' },
    { '--allow-urls', 'string', metavar = 'HOSTS', help = 'allowed hosts of https://HOST/..., separated by commas' },
    { '--scratch', 'folder', help = 'folder for temporary files', default_text = 'TMPDIR, or /tmp' },
  },
  positional = { { 'parts', 'file', help = 'the lines that split wrote' } },
})

local text = files.read(args.parts) or errors.failf('%s cannot be read', args.parts)
local list, frames = film.series(text)
local ending = list[1].out:match '%.%w+$'
if args.out:match '%.%w+$' ~= ending then errors.failf('--out: %s: the name must end in %s, like the parts', args.out, ending) end

cr.run(function()
  local store = require 'cr.remote.store'.of(args)
  local remote = args.out:find '^%a[%w+.-]*://' ~= nil
  if remote then store:check(args.out) else files.check_folder('--out', args.out) end
  local scratch = ('%s/crescent-join-%d'):format(args.scratch or os.getenv 'TMPDIR' or '/tmp', require 'cr.loop'.uv.os_getpid())
  files.make_folder(scratch)
  local ok, problem = pcall(function()
    local paths = {}
    for i, order in ipairs(list) do paths[i] = store:fetch(order.out, ('%s/%d%s'):format(scratch, i, ending)) end
    local sounds = {}
    for i, address in ipairs(film.sounds(list[1])) do sounds[address] = store:fetch(address, ('%s/sound%d'):format(scratch, i)) end
    local out = remote and scratch .. '/film' .. ending or args.out
    require 'models.latentsync.join'.run(out, paths, frames, film.sound(list[1], sounds))
    if remote and not store:put(out, args.out, ending == '.mkv' and 'video/x-matroska' or 'video/mp4') then
      errors.failf('--out: %s already exists', args.out)
    end
  end)
  require 'cr.serve.disk'.remove(scratch)
  if not ok then error(problem, 0) end
end)
