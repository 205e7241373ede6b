--- Splits a job for `crescent worker` into jobs for parts of its film, one JSON object per line.
--
--     crescent split film.json --parts 50 > parts.jsonl       send each line to the queue
--     crescent join parts.jsonl --out film.mp4                when all of them are done
--
-- Each part contains the figures that need the whole sound (models/latentsync/part.lua), so its pixels equal those of
-- the whole job.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local errors = require 'cr.errors'
local files = require 'cr.files'
local film = require 'models.service.film'
local orders = require 'models.service.order'

local args = cli.parse(arg, {
  name = 'split', summary = 'Splits a job of a queue into jobs for parts of its film, one per line.',
  options = {
    { '--parts', 'int', min = 1, max = 999, help = 'number of parts, at most one per window' },
    { '--seconds', 'number', above = 0, help = 'length of each part, instead of --parts' },
    { '--look', 'choice', default = 'all', choices = { 'all', 'near' },
      help = 'frames that are analysed before a part: all, for the same pixels; near: 32, faster, if one person is visible throughout' },
    { '--root', 'folder', help = 'root folder for file:///PATH' },
    { '--allow-urls', 'string', metavar = 'HOSTS', help = 'allowed hosts of https://HOST/..., separated by commas' },
  },
  positional = { { 'job', 'file', help = 'a file with the job, or - for standard input' } },
})
if (args.parts == nil) == (args.seconds == nil) then errors.fail('give either --parts or --seconds', 2) end

local text = args.job == '-' and io.read '*a' or files.read(args.job) or errors.failf('%s cannot be read', args.job)

cr.run(function()
  local store = require 'cr.remote.store'.of(args)
  local order = orders.read(text, 'film')
  local scratch, paths = os.tmpname(), {}
  for i, address in ipairs(film.sounds(order)) do paths[address] = ('%s-%d'):format(scratch, i) end
  local ok, jobs = pcall(film.cut, order, function(address)
    -- The video is examined only if it is a local file.
    if not paths[address] and not address:find '^file:' then return nil end
    return store:fetch(address, paths[address])
  end, args)
  os.remove(scratch)
  for _, path in pairs(paths) do os.remove(path) end
  if not ok then error(jobs, 0) end
  io.write(film.lines(jobs))
end)
