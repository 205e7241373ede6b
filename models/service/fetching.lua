--- Fetches files that a job names by URL, before the job is given to a worker, from hosts that the operator allows.
--
-- Invariants: only https requests to these hosts are made, redirects included. A download stops at the size limit.
-- Fetched files go through the same checks as uploads and are stored like them.

local download = require 'cr.remote.download'
local lfs = require 'lfs'
local loop = require 'cr.loop'
local problems = require 'cr.serve.problem'
local requests = require 'models.service.request'
local shown = require 'cr.serve.text'.shown
local urls = require 'cr.remote.url'

local M = {}

local AT_ONCE = 2
local LOOK = 0.25 -- seconds between checks of the downloaded size

--- @class Fetching
local Fetching = {}
Fetching.__index = Fetching

-- The reason why a URL is not fetched; nil if it is.
local function refusal(self, address)
  local url = urls.parse(address)
  if not url then return ("'%s' is not a URL"):format(shown(address)) end
  if not next(self.hosts) then return 'this server fetches no URLs: upload the file (or start the server with --allow-urls HOST)' end
  if url.scheme ~= 'https' then return 'only https URLs are fetched, not ' .. url.scheme end
  if url.user then return 'a URL with a user name is not fetched' end
  local host = url.host:lower() .. (url.port and url.port ~= 443 and ':' .. url.port or '')
  if not self.hosts[host] then return ('this server does not fetch files from %s'):format(host) end
end

-- Downloads to a path; stops if the file exceeds the size limit.
local function bounded(self, address, path)
  local function allowed(to)
    local why = refusal(self, to)
    if why then problems.fail(422, why) end
  end
  local task = loop.go(download.url, address, path, allowed)
  local too_large
  local watch = loop.go(function()
    while true do
      loop.sleep(LOOK)
      if (lfs.attributes(path .. '.part', 'size') or 0) > self.uploads.limits.upload then
        too_large = true
        return task:cancel 'too large'
      end
    end
  end)
  local ok, problem = pcall(loop.await, task)
  watch:cancel()
  if too_large then problems.fail(422, ('%s is larger than the limit for files'):format(urls.shown(address))) end
  if not ok then
    task:cancel()
    error(problem, 0)
  end
end

local function fetch(self, address)
  local name = address:gsub('[?#].*$', '')
  self.free:get()
  local ok, result = pcall(self.uploads.receive_by, self.uploads, name, function(path) bounded(self, address, path) end)
  self.free:put(true)
  if not ok then error(result, 0) end
  return result
end

--- The URLs among a request's files.
--- @param request table
--- @return string[]
function M.urls(request)
  local list = {}
  for _, one in ipairs(requests.files(request)) do
    if one.name:find '^%a[%w+.-]*://' then list[#list + 1] = one.name end
  end
  return list
end

--- Raises a problem if a request names a URL that is not allowed.
--- @param request table
function Fetching:check(request)
  for _, one in ipairs(requests.files(request)) do
    local why = one.name:find '^%a[%w+.-]*://' and refusal(self, one.name)
    if why then problems.fail(422, ('%s: %s'):format(one.field, why), one.field) end
  end
end

--- Fetches files. Must be called in a task. Raises one sentence if a file cannot be fetched.
--- @param addresses string[]
--- @return table<string, string> ids by URL
function Fetching:all(addresses)
  local ids = {}
  for _, address in ipairs(addresses) do ids[address] = ids[address] or fetch(self, address).id end
  return ids
end

--- @param o table {uploads, hosts = host names, optionally with :PORT}
--- @return Fetching
function M.new(o)
  local self = setmetatable({ uploads = o.uploads, hosts = {}, free = loop.channel(AT_ONCE) }, Fetching)
  for _, host in ipairs(o.hosts) do self.hosts[host:lower()] = true end
  for _ = 1, AT_ONCE do self.free:put(true) end
  return self
end

return M
