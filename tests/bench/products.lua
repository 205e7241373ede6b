--- Shared by the benchmarks of matrix products on a GPU: the command line, operands, and times within a recorded
--- graph.

local cr = require 'cr'
local options = require 'tests.bench.options'

local M = {}

local CALLS, ROUNDS = 10, 3

--- Reads [--size 256,512] [--dtype f16|bf16]; without a GPU the benchmark ends with one sentence.
--- @param summary string of the bench
--- @return integer[] sizes in pixels
--- @return string dtype
function M.arguments(summary)
  local o = options.read(summary, { options.size, options.dtype })
  require 'tests.bench.card' ()
  return options.numbers(o.size), o.dtype
end

--- Standard normal numbers on the card, times `scale`.
function M.randn(shape, dtype, scale)
  return cr.scope(function() return (cr.randn(shape, { device = 'cuda' }) * (scale or 1)):to(dtype) end)
end

--- Microseconds of fn(...), which returns a tensor: ten calls are recorded in a graph, so that launch overhead is not
--- measured, with a negligible input and result of their own.
function M.recorded(fn, ...)
  local arguments, n = { ... }, select('#', ...)
  fn(...):free() -- this runs the searches
  local one = cr.ones(1, { device = 'cuda' })
  local graph = cr.graph(function(little)
    for _ = 1, CALLS do fn(unpack(arguments, 1, n)):free() end
    return little
  end, { direct = true })
  for _ = 1, 3 do graph(one) end
  if graph:why() then error(graph:why()) end
  local us = cr.cuda.time(function() graph(one) end, ROUNDS) * 1e3 / CALLS
  graph:free()
  one:free()
  return us
end

return M
