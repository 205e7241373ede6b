--- Commands of the prompt that draw: pictures in the terminal and as PNG, curves.

local errors = require 'cr.errors'
local run = require 'cr.tools.prompt.run'

local M = {}

local last -- what :show showed, for :save

-- The value of an expression, `_` if there is none; nil after telling why not.
local function value_of(code, name)
  if code == '' then
    if rawget(_G, '_') == nil then errors.fail(name .. ' wants a tensor: there is no last value') end
    return rawget(_G, '_')
  end
  local chunk, problem = run.compile(code)
  if not chunk then
    run.complain(problem)
    return nil
  end
  local value = chunk()
  if value == nil then errors.fail(('%s: %s is nil'):format(name, code)) end
  return value
end

-- A window's item and a sampling's result hold their pictures.
local function picture_of(value)
  local cr = require 'cr'
  if cr.is_tensor(value) or type(value) ~= 'table' or value[1] ~= nil then return value end
  if value.pictures then return value:pictures() end
  return value.frame or value
end

M.show = {
  usage = ':show [TENSOR]', help = 'a picture in the terminal, or a sheet of some',
  more = [[[H W], [H W C] (1 or 3 channels; others side by side), [N H W C] and more (8 at most), or a list.
  u8 as it is; floats in 0..1, -1..1 (colour) or 0..255 so, all others spread over their range.
  By the protocol of kitty, iTerm2 or sixel where the terminal has one, else by half-block characters;
  CR_PICTURES=kitty|iterm2|sixel|blocks decides. :save FILE.png keeps it.]],
  run = function(_, code)
    local value = value_of(code, ':show')
    if value == nil then return end
    last = picture_of(value)
    require 'cr.tools.display'.show(last)
  end,
}

M.save = {
  usage = ':save FILE [TENSOR]', help = 'a picture as PNG; without a name the one shown', complete = 'file',
  run = function(_, rest)
    local path, code = rest:match '^(%S+)%s*(.*)$'
    if not path then errors.fail ':save wants a file name, such as face.png' end
    if not path:lower():find '%.png$' then errors.fail(':save writes PNG, so the name must end in .png, not ' .. path) end
    local what = last
    if code ~= '' or what == nil then
      local value = value_of(code, ':save')
      if value == nil then return end
      what = picture_of(value)
    end
    require 'cr.tools.display'.save(path, what)
    print('  ' .. path)
  end,
}

M.plot = {
  usage = ':plot [TENSOR]', help = 'curves, or how often values occur',
  more = [[Rank 1: a curve. Rank 2 with up to 6 rows: a curve for each row. All others: a histogram.]],
  run = function(_, code)
    local value = value_of(code, ':plot')
    if value ~= nil then print(require 'cr.tools.prompt.plot'.text(value)) end
  end,
}

return M
