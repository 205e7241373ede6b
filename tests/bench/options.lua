--- A bench's command line: every bench takes named options, which `--help` lists.

local cli = require 'cr.tools.cli'

local M = {}

--- Rows that several benches of a card have.
M.size = { '--size', default = '256,512', help = 'pixels, one or more' }
M.dtype = { '--dtype', 'choice', default = 'f16', choices = { 'f16', 'bf16' }, help = 'of the operands' }
M.only = { '--only', default = '', help = 'only what a Lua pattern finds in its name' }
M.bandwidth = { '--bandwidth', 'number', default = 4200, min = 1, unit = 'GB/s', help = "of the card's memory" }

--- Reads the command line of the bench that runs.
--- @param summary string
--- @param options table[] as cr.tools.cli takes them
--- @param positional table[]?
--- @return table values by name
function M.read(summary, options, positional)
  local name = 'tests/bench/' .. arg[0]:match '[^/]*$'
  return cli.parse(arg, { name = name, summary = summary, options = options, positional = positional })
end

--- The numbers of '256,512'.
--- @return integer[]
function M.numbers(text)
  local list = {}
  for number in text:gmatch '%d+' do list[#list + 1] = tonumber(number) end
  return list
end

return M
