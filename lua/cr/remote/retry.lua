--- Trying again: after a pause that doubles and is drawn at random, so that many who failed together do not come
--- back together.

local loop = require 'cr.loop'

--- @class cr.retry
--- @field watch fun(problem: string)? is told what is tried again
local M = {}

-- Not math.random: its numbers are the same in every process.
local source

local function random()
  source = source or assert(io.open('/dev/urandom', 'rb'))
  local a, b, c = source:read(3):byte(1, 3)
  return (a * 65536 + b * 256 + c) / 2 ^ 24
end

--- A pause before the n-th further try, in seconds: from half of base * 2^(n - 1) to all of it.
--- @param n integer from 1
--- @param base number? 0.2 s
--- @param most number? 20 s
--- @return number
function M.pause(n, base, most)
  return math.min(most or 20, (base or 0.2) * 2 ^ (n - 1)) * (0.5 + 0.5 * random())
end

--- Calls fn until it gives something.
---
---     local answer, problem = retry.call(function() return ask() end, { tries = 5 })
--- @param fn fun(): any, string?, boolean|'anew'|nil a result; or nil, what went wrong, and whether it may pass: 'anew' if this
---   try has come further than the one before, so that it counts as the first
--- @param o table? {tries = 6, base, most: see pause}
--- @return any result
--- @return string? problem of the last try
--- @return boolean? whether that may pass
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
