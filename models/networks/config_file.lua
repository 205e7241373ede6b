--- Reads the small configuration files that stand beside weights: JSON or YAML.

local M = {}

local MOST_BYTES = 256 * 1024 -- settings are short; reading YAML takes long

--- What stands in a file; an error of one sentence if it cannot be read.
function M.text(path)
  local f, reason = io.open(path, 'rb')
  if not f then error(reason, 0) end
  local text = f:read(MOST_BYTES + 1) or ''
  f:close()
  if #text > MOST_BYTES then error(('%s holds more than %d KiB, which is no file of settings'):format(path, MOST_BYTES / 1024), 0) end
  return text
end

-- YAML as JSON would have given it: null the same, each alias a copy. A file can name itself, or with a few lines
-- millions of entries, so both are bounded.
local function from_yaml(text)
  local lyaml, null, left = require 'lyaml', require 'cjson'.null, 10000
  local function plain(value, depth)
    left = left - 1
    if left < 0 or depth > 50 then error('it has too many entries for settings', 0) end
    if value == lyaml.null then return null end
    if type(value) ~= 'table' then return value end
    local copy = {}
    for k, v in pairs(value) do copy[k] = plain(v, depth + 1) end
    return copy
  end
  return plain(lyaml.load(text), 0)
end

--- A table from a .json or .yaml file; one sentence if it is malformed.
function M.read(path)
  local ok, value = pcall(path:find '%.ya?ml$' and from_yaml or require 'cjson'.decode, M.text(path))
  if not ok then error(('%s cannot be read: %s'):format(path, tostring(value):gsub('\n.*', '')), 0) end
  if type(value) ~= 'table' then error(path .. ' holds no table of settings', 0) end
  return value
end

return M
