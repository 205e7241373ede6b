--- Downloads to a file, which appears only when it is complete and checked. A file of known size is downloaded in
--- parts in parallel, and each part resumes where it was interrupted. Memory does not grow with the file.

local digest = require 'cr.digest'
local errors = require 'cr.errors'
local http = require 'cr.remote.http'
local loop = require 'cr.loop'
local retry = require 'cr.remote.retry'
local url = require 'cr.remote.url'

local M = {}

local PART = 16 * 2 ^ 20 -- bytes
local AT_ONCE = 4
local REDIRECTIONS = 5

--- Runs fn(i) for i from 1 to n, `at_once` of them at a time. The first error ends all.
--- @param n integer
--- @param at_once integer
--- @param fn fun(i: integer)
function M.each(n, at_once, fn)
  local next_one, tasks = 0, {}
  for k = 1, math.min(n, at_once) do
    tasks[k] = function()
      while next_one < n do
        next_one = next_one + 1
        fn(next_one)
      end
    end
  end
  loop.all(tasks)
end

-- Calls `fill` to write and check a new file with the suffix .part, then renames it.
local function whole(path, fill)
  local part = path .. '.part'
  local file, reason = io.open(part, 'wb')
  if not file then errors.fail(reason) end
  file:close()
  local ok, problem = pcall(fill, part)
  if ok then ok, problem = os.rename(part, path) end
  if not ok then
    os.remove(part)
    error(problem, 0)
  end
end

--- @class Checks what a file must have
--- @field bytes integer?
--- @field sha256 string? hexadecimal
--- @field md5 string?
--- @field parts table? {algorithm, bytes = size of each part, digest = hexadecimal digest of the parts' concatenated digests}

--- Fails unless a file has the right size and digests.
--- @param what string names the file in messages
--- @param path string
--- @param checks Checks
function M.check(what, path, checks)
  local size = require 'lfs'.attributes(path, 'size')
  if checks.bytes and size ~= checks.bytes then
    errors.fail(('%s: %.0f bytes arrived, but it has %.0f'):format(what, size, checks.bytes))
  end
  for name, algorithm in pairs { sha256 = 'SHA256', md5 = 'MD5' } do
    if checks[name] and digest.of_file(algorithm, path, 0, nil, loop.await) ~= checks[name]:lower() then
      errors.fail(('%s: the %s of what arrived is not the expected one'):format(what, algorithm))
    end
  end
end

--- Downloads a file of known size by a function that requests one part.
--- @param what string for sentences
--- @param path string
--- @param checks Checks with its bytes
--- @param ask fun(range: table, out: table, on_failure: fun(received: integer): boolean): any, string? takes the
---   headers with the range and the `out` of http.request. It must call on_failure after each failed attempt, which
---   prepares the next one to resume and returns whether anything arrived. It returns a result, or nil and the
---   problem
function M.by_parts(what, path, checks, ask)
  local parts, digests = checks.parts, {}
  local size = parts and parts.bytes or PART
  whole(path, function(part)
    M.each(math.ceil(checks.bytes / size), AT_ONCE, function(i)
      local first, last = (i - 1) * size, math.min(checks.bytes, i * size) - 1
      local range, out = {}, { path = part, offset = first, status = 206 }
      local function say() range.Range = ('bytes=%.0f-%.0f'):format(out.offset, last) end
      say()
      local ok, problem = ask(range, out, function(received)
        out.offset = out.offset + received
        say()
        return received > 0
      end)
      if not ok then errors.fail(problem) end
      if parts then digests[i] = digest.bytes(digest.of_file(parts.algorithm, part, first, last + 1 - first, loop.await)) end
    end)
    M.check(what, part, checks)
    if parts and digest.of_text(parts.algorithm, table.concat(digests)) ~= parts.digest then
      errors.fail(('%s: the %s of what arrived is not the expected one'):format(what, parts.algorithm))
    end
  end)
end

-- Returns the address to which an answer redirects, or nil.
local function redirection(address, answer)
  local to = (answer.status == 301 or answer.status == 302 or answer.status == 303 or answer.status == 307 or answer.status == 308)
      and answer.headers.location
  if not to then return nil end
  if to:find '^//' then return address:match '^%a+:' .. to end
  if to:find '^/' then return address:match '^%a+://[^/?#]*' .. to end
  return to
end

--- Downloads an http or https URL. '#sha256=HEX' at its end is the expected digest.
--- @param address string
--- @param path string
--- @param allowed fun(address: string) fails for a URL that is not allowed; it is called for redirections, too
function M.url(address, path, allowed)
  local what, wanted = url.shown(address), address:match '#sha256=(%x+)$'
  address = address:gsub('#.*$', '')
  whole(path, function(part)
    local out, headers, redirected = { path = part, offset = 0, status = 200 }, {}, 0
    allowed(address)
    local answer, problem = retry.call(function()
      local got, why, received = http.request { url = address, out = out, headers = headers, limit = 2 ^ 20 }
      if not got then
        out.offset = out.offset + received
        if out.offset > 0 then headers.Range, out.status = ('bytes=%.0f-'):format(out.offset), 206 end
        return nil, ('%s: %s'):format(what, why), received > 0 and 'anew' or true
      elseif got.status == out.status then
        return got
      elseif got.status == 200 or got.status == 416 or got.status == 206 then -- it cannot resume, so it starts again
        headers.Range, out.offset, out.status = nil, 0, 200
        return nil, what .. ': the server cannot resume the download where it was interrupted', true
      end
      local to = redirection(address, got)
      if not to or redirected >= REDIRECTIONS then
        return nil, ('%s: status %d'):format(what, got.status), got.status >= 500 or got.status == 429
      end
      allowed(to)
      address, redirected = to, redirected + 1
      return nil, what .. ': redirected', 'anew'
    end)
    if not answer then errors.fail(problem) end
    M.check(what, part, { sha256 = wanted })
  end)
end

return M
