--- Cuts a job for `crescent worker` into jobs for parts of its film, one JSON object a line.
--
--     crescent split film.json --parts 50 > parts.jsonl       each line is sent to the queue
--     crescent join parts.jsonl --out film.mp4                once all of them are made
--
-- The parts know what only the whole knows (models/latentsync/part.lua), so that their pixels are the whole job's.

local cr = require 'cr'
local cli = require 'cr.tools.cli'
local errors = require 'cr.errors'
local files = require 'cr.files'
local film = require 'models.service.film'
local orders = require 'models.service.order'

local args = cli.parse(arg, {
  name = 'split', summary = 'Cuts a job of a queue into jobs for parts of its film, one a line.',
  options = {
    { '--parts', 'int', min = 1, max = 999, help = 'how many, at most one a window' },
    { '--seconds', 'number', above = 0, help = 'how long each is, in place of --parts' },
    { '--root', 'folder', help = 'the folder of file:///PATH' },
    { '--allow-urls', 'string', metavar = 'HOSTS', help = 'hosts of https://HOST/..., with commas' },
  },
  positional = { { 'job', 'file', help = 'a file with the job, or - for standard input' } },
})
if (args.parts == nil) == (args.seconds == nil) then errors.fail('--parts or --seconds is needed, one of them', 2) end

local text = args.job == '-' and io.read '*a' or files.read(args.job) or errors.failf('%s cannot be read', args.job)

cr.run(function()
  local store = require 'cr.remote.store'.of(args)
  local order = orders.read(text, 'film')
  local scratch = os.tmpname()
  local ok, jobs = pcall(film.cut, order, function(address)
    -- (the video is looked into only where that costs nothing)
    if address ~= order.body.audio and not address:find '^file:' then return nil end
    return store:fetch(address, scratch)
  end, args)
  os.remove(scratch)
  if not ok then error(jobs, 0) end
  io.write(film.lines(jobs))
end)
