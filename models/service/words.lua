--- Rewrites the engine's messages for clients: their file names replace paths of this machine.

local M = {}

local function replace(text, from, to)
  local at = text:find(from, 1, true)
  while at do
    text = text:sub(1, at - 1) .. to .. text:sub(at + #from)
    at = text:find(from, at + #to, true)
  end
  return text
end

--- @class Words
local Words = {}
Words.__index = Words

--- @param folders string[] folders whose paths must not be shown
--- @return Words
function M.new(folders)
  local list = {}
  for i, folder in ipairs(folders) do list[i] = folder:gsub('/+$', '') .. '/' end
  table.sort(list, function(a, b) return #a > #b end) -- nested folders: the inner one first
  return setmetatable({ folders = list }, Words)
end

--- A text without local paths.
--- @param text string
--- @param names table<string, string>? replacements for paths
--- @return string
function Words:of(text, names)
  for path, name in pairs(names or {}) do text = replace(text, path, name) end
  for _, folder in ipairs(self.folders) do text = replace(text, folder, '') end
  return text
end

--- Removes local paths from all texts in a table, in place.
--- @param value any
--- @return any value
function Words:all(value)
  if type(value) == 'string' then return self:of(value) end
  if type(value) == 'table' then
    for key, inner in pairs(value) do value[key] = self:all(inner) end
  end
  return value
end

return M
