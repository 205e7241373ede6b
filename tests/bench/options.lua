--- The command line of a benchmark: every benchmark has named options, which `--help` lists.

local cli = require 'cr.tools.cli'

local M = {}

--- Options that several benchmarks for a GPU share.
M.size = { '--size', default = '256,512', help = 'pixels, one or more' }
M.dtype = { '--dtype', 'choice', default = 'f16', choices = { 'f16', 'bf16' }, help = 'data type of the operands' }
M.only = { '--only', default = '', help = 'a Lua pattern: only rows whose name matches' }
M.bandwidth = { '--bandwidth', 'number', default = 4200, min = 1, unit = 'GB/s', help = "bandwidth of the GPU's memory" }

--- Reads the command line of the running benchmark.
--- @param summary string
--- @param options table[] as cr.tools.cli takes them
--- @param positional table[]?
--- @return table values by name
function M.read(summary, options, positional)
  local name = 'tests/bench/' .. arg[0]:match '[^/]*$'
  return cli.parse(arg, { name = name, summary = summary, options = options, positional = positional })
end

--- The numbers in a text such as '256,512'.
--- @return integer[]
function M.numbers(text)
  local list = {}
  for number in text:gmatch '%d+' do list[#list + 1] = tonumber(number) end
  return list
end

return M
