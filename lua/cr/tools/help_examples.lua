--- Finds examples for help: a line of our own scripts or networks that calls a function, so that examples never
--- become outdated.

local root = require 'cr.ffi'.root

local M = {}

local LONGEST = 100 -- longest example, in bytes

-- Files that contain names of functions as text.
local WITHOUT = { ['lua/cr/tensor/absent.lua'] = true, ['lua/cr/tools/help_lines.lua'] = true }

local used -- list of {text, place}, read on the first request

local function balanced(text)
  local depth = 0
  for c in text:gmatch '[(){}]' do depth = depth + ((c == '(' or c == '{') and 1 or -1) end
  return depth == 0
end

local function read_file(path)
  local number, open = 0, nil
  for line in io.lines(root .. '/' .. path) do
    number = number + 1
    local code = line:match '^%s*(.-)%s*$'
    if code ~= '' and not code:find '^%-%-' then
      -- A call over several lines is joined if it stays short.
      if open and #open.text + #code <= LONGEST then open.text = open.text .. ' ' .. code end
      local one = { text = code, place = ('%s:%d'):format(path, number) }
      used[#used + 1] = one
      if open and (balanced(open.text) or #open.text + #code > LONGEST) then open = nil end
      if not open and not balanced(code) then open = one end
    end
  end
end

local function read_folder(folder)
  local lfs = require 'lfs'
  if lfs.attributes(root .. '/' .. folder, 'mode') ~= 'directory' then return end
  local names = {}
  for entry in lfs.dir(root .. '/' .. folder) do names[#names + 1] = entry end
  table.sort(names)
  for _, name in ipairs(names) do
    local path = folder .. '/' .. name
    if name:find '^[%w_]+%.lua$' and not WITHOUT[path] then
      read_file(path)
    elseif name:sub(1, 1) ~= '.' then
      read_folder(path)
    end
  end
end

local function read_all()
  used = {}
  for _, folder in ipairs { 'scripts', 'models', 'lua/cr' } do read_folder(folder) end
end

--- Returns the longest line with a call that is not too long, since short lines show little.
--- @param call string 'nn.conv2d(', ':matmul('
--- @return table? {text, place = 'models/networks/vae.lua:12'}
function M.find(call)
  if not used then read_all() end
  local best
  for _, line in ipairs(used) do
    local at = line.text:find(call, 1, true)
    local before = at and at > 1 and line.text:sub(at - 1, at - 1) or ' '
    -- Nothing that continues the name may precede it; anything may precede a method.
    local whole = at and (call:sub(1, 1) == ':' or not before:find '[%w_.:]')
    if whole and not line.text:find '%f[%w]function%f[^%w]' and #line.text <= LONGEST and balanced(line.text) and
        (not best or #line.text > #best.text) then
      best = line
    end
  end
  return best
end

return M
