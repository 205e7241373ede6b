--- The folder of a comparison: its settings, and the result of each finished cell.
--
--     OUT/settings.json            the settings that all cells share
--     OUT/cells/ID/result.json     written last: a cell without it is not finished
--     OUT/cells/ID/clip.mp4, face.mp4, strip.png, latents.safetensors, mouth.safetensors (of references)
--     OUT/results.json, results.csv, results.md, contact.png, quality_*.svg, index.html
--
-- Files are written under a temporary name and then renamed.

local lfs = require 'lfs'
local files = require 'cr.files'
local json = require 'cr.json'

local folder = {}

local fail = require 'cr.errors'.failf

local function read_json(path)
  local text = files.read(path)
  return text and json.decode(text)
end

--- Identifies a file by size and time, without reading it.
--- @param path string
--- @return string? nil if it does not exist
function folder.identity(path)
  local a = lfs.attributes(path)
  return a and ('%s, %.0f bytes, of %s'):format(path:match '[^/]*$', a.size, os.date('!%Y-%m-%d %H:%M:%S', a.modification))
end

local function make(path)
  if not files.make_folder(path) then fail('--out: the folder %s cannot be created', path) end
end

--- @class ComparisonFolder
--- @field path string
local Folder = {}
Folder.__index = Folder

--- Opens a comparison's folder, or creates it. A folder with other settings is refused.
--- @param path string
--- @param settings table<string, string> the shared settings, by displayed names
--- @return ComparisonFolder
function folder.open(path, settings)
  path = path:gsub('(.)/+$', '%1')
  local mode = lfs.attributes(path, 'mode')
  if mode and mode ~= 'directory' then fail('--out: %s is not a folder', path) end
  local there = read_json(path .. '/settings.json')
  if mode and type(there) ~= 'table' then
    for name in lfs.dir(path) do
      if name ~= '.' and name ~= '..' then
        fail('--out: %s holds other files (%s) and no comparison: choose another folder', path, name)
      end
    end
  end
  if there then
    local names = {}
    for name in pairs(settings) do names[name] = true end
    for name in pairs(there) do names[name] = true end
    local differing = {}
    for name in pairs(names) do
      if there[name] ~= settings[name] then
        differing[#differing + 1] = ('%s is %s, was %s'):format(name, settings[name] or 'none', tostring(there[name] or 'none'))
      end
    end
    table.sort(differing)
    if #differing > 0 then
      fail('--out: %s was made with other settings (%s): choose another folder, or delete that one', path,
        table.concat(differing, '; '))
    end
  end
  make(path .. '/cells')
  if not there then files.write(path .. '/settings.json', json.encode(settings, true) .. '\n') end
  return setmetatable({ path = path, settings = settings }, Folder)
end

--- The path of a file of a cell.
function Folder:file(cell, name) return ('%s/cells/%s/%s'):format(self.path, cell.id, name) end

--- Creates a cell's folder.
function Folder:begin(cell) make(('%s/cells/%s'):format(self.path, cell.id)) end

--- The result of a finished cell, or nil.
--- @param cell table
--- @return table?
function Folder:result(cell)
  local result = read_json(self:file(cell, 'result.json'))
  if type(result) ~= 'table' then return nil end
  -- The files that the page shows must exist, and for a reference also the files that other cells are compared with.
  local needed = { result.shown or 'clip.mp4', 'strip.png' }
  if cell.is_reference then needed[#needed + 1] = 'mouth.safetensors' end
  for _, name in ipairs(needed) do
    if not lfs.attributes(self:file(cell, name)) then return nil end
  end
  return result
end

--- Marks a cell as finished.
function Folder:finish(cell, result)
  files.write(self:file(cell, 'result.json'), json.encode(result, true) .. '\n')
end

return folder
