--- Replaces the fresh noise of schedulers by known numbers.

local solver = require 'cr.sampling.solver'
local tap = require 'tests.support.tap'

local M = {}

--- Calls fn while every draw of a scheduler is replaced by draw(n, x); restores the generator afterwards, even after
--- an error.
--- @param draw fun(n: integer, x: Tensor): Tensor the n-th draw since fn began, like x
--- @param fn fun(): any
--- @return any the first result of fn
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

--- The same, with the numbers that were used for the fixtures.
function M.fixed(fn)
  return M.by(function(n, x) return tap.formula('input:fresh.' .. n, x.shape):to 'f64' end, fn)
end

return M
