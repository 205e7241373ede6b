--- Splits a queue's job into jobs for parts of its film, and joins their results: `crescent split` and `crescent
--- join`.

local errors = require 'cr.errors'
local json = require 'cr.json'
local latentsync = require 'models.latentsync.settings'
local orders = require 'models.service.order'
local parts = require 'models.latentsync.part'
local requests = require 'models.service.request'

local M = {}

-- The settings of a job, with local paths of its files.
local function settings_of(order, path_of)
  return latentsync.schema:complete(requests.settings(requests.check(order.body), path_of))
end

local function copy(t)
  local all = {}
  for key, value in pairs(t) do all[key] = value end
  return all
end

--- Creates the jobs for the parts of a film.
--- @param order Order the whole job
--- @param path_of fun(address: string): string local path of a sound, and of the video if it is available
--- @param o table {parts, seconds, look}: their number, or the length of each in seconds; what is analysed before a part
--- @return table[] jobs in the queue's format
function M.cut(order, path_of, o)
  local body = order.body
  if order.kind ~= 'lipsync' then errors.fail 'only a lipsync job can be split' end
  if (body.settings or {}).part then errors.fail 'part: the job is already a part' end
  local s = settings_of(order, path_of)
  local sounds = {}
  for i, voice in ipairs(latentsync.voices(s)) do sounds[i] = voice.path end
  local list = parts.cut(s, sounds, o)
  local jobs = {}
  for i, part in ipairs(list) do
    local mark = ('part-%03d-of-%03d'):format(i, #list)
    local job = copy(body)
    job.settings = copy(body.settings or {})
    job.settings.part = parts.kind.write(part)
    if job.settings.seed == -1 then job.settings.seed = os.time() % 2 ^ 31 end
    job.id = ('%s.%s'):format(order.id, mark)
    job.out = order.out:gsub('(%.[%w]+)$', '.' .. mark .. '%1')
    jobs[i] = job
  end
  return jobs
end

--- Reads the parts of one film, in order, from the lines that split wrote.
--- @param text string
--- @return Order[]
--- @return integer frames
function M.series(text)
  local list, stem = {}, nil
  for line in text:gmatch '[^\r\n]+' do
    local order = orders.read(line, 'line')
    local name = order.id:match '^(.*)%.part%-%d+%-of%-%d+$'
    local part = (order.body.settings or {}).part
    if not name or not part then errors.failf('%s is not a part of a film', order.id) end
    if stem and name ~= stem then errors.failf('%s is not a part of %s', order.id, stem) end
    stem, order.part = name, parts.kind.read(part)
    list[#list + 1] = order
  end
  if #list == 0 then errors.fail 'there are no parts' end
  table.sort(list, function(a, b) return a.part.first < b.part.first end)
  local frames = 0
  for _, order in ipairs(list) do
    if order.part.first ~= frames then
      errors.failf('%s: the part that contains frame %d is missing or duplicated', stem, math.min(frames, order.part.first))
    end
    frames = frames + order.part.frames
  end
  local wanted = tonumber(list[1].id:match '%-of%-(%d+)$')
  if wanted ~= #list then errors.failf('%s: only %d of %d parts are given', stem, #list, wanted) end
  return list, frames
end

--- The addresses of a job's sounds.
--- @param order Order
--- @return string[]
function M.sounds(order)
  local list = {}
  for _, file in ipairs(order.files) do
    if file.field ~= 'video' then list[#list + 1] = file.name end
  end
  return list
end

--- The settings for the whole film's sound.
--- @param order Order one of its parts
--- @param paths table<string, string> local paths of its sounds, by address
--- @return table
function M.sound(order, paths)
  return settings_of(order, function(address) return paths[address] or address end)
end

--- Formats jobs as lines of JSON.
--- @param jobs table[]
--- @return string
function M.lines(jobs)
  local lines = {}
  for i, job in ipairs(jobs) do lines[i] = json.encode(job) end
  return table.concat(lines, '\n') .. '\n'
end

return M
