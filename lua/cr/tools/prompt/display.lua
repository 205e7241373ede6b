--- Commands of the prompt that draw: pictures in the terminal or as PNG, and plots.

local errors = require 'cr.errors'
local run = require 'cr.tools.prompt.run'

local M = {}

local last -- the last picture of :show, for :save

-- Returns the value of an expression, by default `_`, or nil after printing the error.
local function value_of(code, name)
  if code == '' then
    if rawget(_G, '_') == nil then errors.fail(name .. ' needs a tensor: there is no last value') end
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

-- Items of windows and results of sampling contain their pictures in a field.
local function picture_of(value)
  local cr = require 'cr'
  if cr.is_tensor(value) or type(value) ~= 'table' or value[1] ~= nil then return value end
  if value.pictures then return value:pictures() end
  return value.frame or value
end

M.show = {
  usage = ':show [TENSOR]', help = 'shows a picture, or a sheet of several, in the terminal',
  more = [[Shows [H W], [H W C] (1 or 3 channels; others side by side), [N H W C] and more (at most 8), or a list.
  u8 is shown as it is; floats in 0..1, -1..1 (colour) or 0..255 are recognized, others are scaled from their range.
  Uses the protocol of kitty, iTerm2 or sixel if the terminal has one, else half-block characters;
  CR_PICTURES=kitty|iterm2|sixel|blocks overrides the choice. :save FILE.png writes the picture.]],
  run = function(_, code)
    local value = value_of(code, ':show')
    if value == nil then return end
    last = picture_of(value)
    require 'cr.tools.display'.show(last)
  end,
}

M.save = {
  usage = ':save FILE [TENSOR]', help = 'writes a picture as PNG, by default the one shown last', complete = 'file',
  run = function(_, rest)
    local path, code = rest:match '^(%S+)%s*(.*)$'
    if not path then errors.fail ':save needs a file name, such as face.png' end
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
  usage = ':plot [TENSOR]', help = 'plots curves or a histogram',
  more = [[Rank 1 is a curve. Rank 2 with up to 6 rows is a curve for each row. Others are shown as a histogram.]],
  run = function(_, code)
    local value = value_of(code, ':plot')
    if value ~= nil then print(require 'cr.tools.prompt.plot'.text(value)) end
  end,
}

return M
