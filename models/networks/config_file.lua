--- Reads small configuration files that accompany weights, as JSON or YAML.

local M = {}

local MOST_BYTES = 256 * 1024 -- configurations are short, and reading YAML is slow

--- The text of a file; one sentence as an error if it cannot be read.
function M.text(path)
  local f, reason = io.open(path, 'rb')
  if not f then error(reason, 0) end
  local text = f:read(MOST_BYTES + 1) or ''
  f:close()
  if #text > MOST_BYTES then error(('%s is larger than %d KiB, too large for a configuration'):format(path, MOST_BYTES / 1024), 0) end
  return text
end

-- Converts YAML to what JSON would give: null is the same value, and each alias is a copy. An alias can refer to
-- itself, or expand to millions of entries, so depth and size are bounded.
local function from_yaml(text)
  local lyaml, null, left = require 'lyaml', require 'cjson'.null, 10000
  local function plain(value, depth)
    left = left - 1
    if left < 0 or depth > 50 then error('it has too many entries for a configuration', 0) end
    if value == lyaml.null then return null end
    if type(value) ~= 'table' then return value end
    local copy = {}
    for k, v in pairs(value) do copy[k] = plain(v, depth + 1) end
    return copy
  end
  return plain(lyaml.load(text), 0)
end

--- A table from a .json or .yaml file; one sentence as an error if it is malformed.
function M.read(path)
  local ok, value = pcall(path:find '%.ya?ml$' and from_yaml or require 'cjson'.decode, M.text(path))
  if not ok then error(('%s cannot be read: %s'):format(path, tostring(value):gsub('\n.*', '')), 0) end
  if type(value) ~= 'table' then error(path .. ' does not contain a table of settings', 0) end
  return value
end

return M
