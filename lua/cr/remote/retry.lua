--- Retries with exponential backoff and random jitter, so that many clients that failed together do not retry
--- together.

local loop = require 'cr.loop'

--- @class cr.retry
--- @field watch fun(problem: string)? called with each problem that leads to a retry
local M = {}

-- math.random would give the same numbers in every process.
local source

local function random()
  source = source or assert(io.open('/dev/urandom', 'rb'))
  local a, b, c = source:read(3):byte(1, 3)
  return (a * 65536 + b * 256 + c) / 2 ^ 24
end

--- Returns the pause before the n-th retry, in seconds: a random number between half of base * 2^(n - 1) and all of it.
--- @param n integer from 1
--- @param base number? 0.2 s
--- @param most number? 20 s
--- @return number
function M.pause(n, base, most)
  return math.min(most or 20, (base or 0.2) * 2 ^ (n - 1)) * (0.5 + 0.5 * random())
end

--- Calls fn until it returns a result.
---
---     local answer, problem = retry.call(function() return ask() end, { tries = 5 })
--- @param fn fun(): any, string?, boolean|'anew'|nil returns a result; or nil, the problem, and whether it may be
---   temporary: 'anew' means that this attempt made progress, so that it counts as the first
--- @param o table? {tries = 6, base, most (see pause)}
--- @return any result
--- @return string? problem of the last attempt
--- @return boolean? whether that may be temporary
function M.call(fn, o)
  o = o or {}
  local n = 0
  while true do
    local result, problem, passes = fn()
    if result ~= nil then return result end
    n = passes == 'anew' and 1 or n + 1
    if not passes or n >= (o.tries or 6) then return nil, problem, passes and true or false end
    if M.watch then M.watch(problem) end
    loop.sleep(M.pause(n, o.base, o.most))
  end
end

return M
