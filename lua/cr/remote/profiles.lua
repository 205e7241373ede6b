--- Reads the files that AWS's tools share: profiles in ~/.aws/credentials and ~/.aws/config.

local files = require 'cr.files'

local M = {}

local function path_of(variable, name)
  return os.getenv(variable) or (os.getenv 'HOME' or '') .. '/.aws/' .. name
end

-- Parses the sections of an INI file: {[name] = {[key] = value}}. Keys of nested blocks are ignored.
local function sections(text)
  local all, current = {}, nil
  for line in (text or ''):gmatch '[^\r\n]+' do
    local section = line:match '^%s*%[%s*(.-)%s*%]'
    local key, value = line:match '^([%w_]+)%s*=%s*(.-)%s*$'
    if section then
      current = all[section] or {}
      all[section] = current
    elseif current and key then
      current[key] = value
    end
  end
  return all
end

--- Returns the name of the current profile.
--- @return string
function M.name() return os.getenv 'AWS_PROFILE' or os.getenv 'AWS_DEFAULT_PROFILE' or 'default' end

--- Returns the settings of a profile. Those in the credentials file take precedence over those in the configuration file.
--- @param name string? the current profile
--- @return table<string, string>? nil if neither file has it
function M.read(name)
  name = name or M.name()
  local config = sections(files.read(path_of('AWS_CONFIG_FILE', 'config')))
  local keys = sections(files.read(path_of('AWS_SHARED_CREDENTIALS_FILE', 'credentials')))[name]
  local rest = config['profile ' .. name] or name == 'default' and config.default or nil
  if not keys and not rest then return nil end
  local merged = {}
  for _, part in ipairs { rest or {}, keys or {} } do
    for key, value in pairs(part) do merged[key] = value end
  end
  return merged
end

return M
