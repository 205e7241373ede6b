--- Weights in several files, with an index beside them that maps tensors to files, as diffusers and
-- transformers save large models. They are opened as one file.

local arguments = require 'cr.arguments'
local base = require 'cr.ffi'
local json = require 'cr.json'

local M = {}

local fail, printable = base.fail, base.printable

local Shards = {}
Shards.__index = Shards

local function read_index(path)
  local f, reason = io.open(path, 'rb')
  if not f then fail(reason) end
  local value, problem = json.decode(f:read '*a')
  f:close()
  if problem then fail(('%s: %s'):format(path, problem)) end
  local map = type(value) == 'table' and value.weight_map
  if type(map) ~= 'table' then fail(path .. ': this is not an index of shards: it has no weight_map') end
  for name, file in pairs(map) do
    -- Only files beside the index are allowed, so that a name cannot lead anywhere else.
    if type(name) ~= 'string' or type(file) ~= 'string' or file:find '[/%z]' or file:find '^%.' or file == '' then
      fail(('%s: weight_map does not name a file in its folder for %s'):format(path, printable(tostring(name))))
    end
  end
  return map
end

--- @param path string of the index
--- @param open fun(path: string): WeightsFile
--- @return WeightsFile
function M.open(path, open)
  local self = setmetatable({ path = path, format = 'shards', names = {}, metadata = {}, files = {}, home = read_index(path) }, Shards)
  local folder = path:match '^(.*/)' or ''
  for name, file in pairs(self.home) do
    self.files[file] = self.files[file] or open(folder .. file)
    if not self.files[file]:has(name) then
      fail(('%s: %s should be in %s, but is not'):format(path, printable(name), printable(file)))
    end
    self.names[#self.names + 1] = name
  end
  table.sort(self.names)
  return self
end

local function file_of(self, name)
  local file = self.files[self.home[name]]
  if not file then fail(('%s: there is no tensor %s'):format(self.path, printable(tostring(name)))) end
  return file
end

function Shards:has(name) return self.home[name] ~= nil end
function Shards:info(name) return file_of(self, name):info(name) end
function Shards:get(name) return file_of(self, name):get(name) end
function Shards:close()
  for _, file in pairs(self.files) do file:close() end
end

local name = arguments.kind("a tensor's name", arguments.string.test)
arguments.methods(Shards, 'file', { has = { name }, info = { name }, get = { name }, close = {} })

return M
