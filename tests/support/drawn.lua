--- Known numbers in place of the fresh noise that schedulers draw.

local solver = require 'cr.sampling.solver'
local tap = require 'tests.support.tap'

local M = {}

--- Calls fn while every draw of a scheduler is draw(n, x); the drawing is restored at its end, after an error too.
--- @param draw fun(n: integer, x: Tensor): Tensor the n-th draw since fn began, like x
--- @param fn fun(): any
--- @return any what fn returns first
function M.by(draw, fn)
  local count, own = 0, solver.draw_like
  function solver.draw_like(x)
    count = count + 1
    return draw(count, x)
  end
  local ok, result = pcall(fn)
  solver.draw_like = own
  if not ok then error(result, 0) end
  return result
end

--- The same with the numbers that the fixtures were made with.
function M.fixed(fn)
  return M.by(function(n, x) return tap.formula('input:fresh.' .. n, x.shape):to 'f64' end, fn)
end

return M
