--- Parses URLs, and formats them for messages.
--
-- Messages must print url.shown(address), because a query may contain a signature, and the part before @ a password.

local errors = require 'cr.errors'

local M = {}

--- Percent-encodes all characters but letters, digits and -._~.
--- @param text string
--- @param keep string? further characters to keep, as part of a pattern's set: '/'
--- @return string
function M.encode(text, keep)
  return (text:gsub('[^%w%-._~' .. (keep or '') .. ']', function(c) return ('%%%02X'):format(c:byte()) end))
end

--- @param text string
--- @return string
function M.decode(text) return (text:gsub('%%(%x%x)', function(hex) return string.char(tonumber(hex, 16)) end)) end

--- Parses a query to names and values. If a name occurs twice, the last value counts.
--- @param text string 'a=1&b=2'
--- @return table<string, string>
function M.read_query(text)
  local values = {}
  for pair in text:gmatch '[^&]+' do
    local name, value = pair:match '^([^=]*)=?(.*)$'
    values[M.decode(name)] = M.decode(value)
  end
  return values
end

--- Formats a query in the order that signatures require, each name with its equals sign.
--- @param values table<string, string|number>
--- @return string '' or '?a=1&b='
function M.query(values)
  local names, parts = {}, {}
  for name in pairs(values) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do parts[i] = M.encode(name) .. '=' .. M.encode(tostring(values[name])) end
  return #parts == 0 and '' or '?' .. table.concat(parts, '&')
end

--- @class Url
--- @field scheme string
--- @field user string?
--- @field password string?
--- @field host string '' if there is none
--- @field port integer?
--- @field path string encoded, with its leading slash, or ''
--- @field query table<string, string>
--- @field fragment string?

--- Splits a URL into its parts.
--- @param text string
--- @return Url? nil if the text is not a URL
function M.parse(text)
  local scheme, rest = text:match '^(%a[%w+.-]*)://(.*)$'
  if not scheme or text:find '[%c%s]' then return nil end
  local fragment = rest:match '#(.*)$'
  local before, query = rest:gsub('#.*$', ''):match '^([^?]*)%??(.*)$'
  local authority, path = before:match '^([^/]*)(.*)$'
  local login, place = authority:match '^(.*)@(.-)$'
  place = place or authority
  local host, port = place:match '^(%[[%x:.]+%]):?(%d*)$'
  if not host then host, port = place:match '^([^:%[%]]*):?(%d*)$' end
  if not host then return nil end
  local user, password = (login or ''):match '^([^:]*):?(.*)$'
  return {
    scheme = scheme:lower(), host = host:lower(), port = tonumber(port), path = path, query = M.read_query(query),
    user = user ~= '' and M.decode(user) or nil, password = password ~= '' and M.decode(password) or nil, fragment = fragment,
  }
end

--- Formats a URL for messages, without its secret parts. A key of S3 may contain any character.
--- @param text string
--- @return string
function M.shown(text)
  if text:find '^s3://' then return text end
  return (text:gsub('[?#].*$', ''):gsub('^(%a[%w+.-]*://)[^/]*@', '%1'))
end

--- Returns the values of a URL's query, and fails for a name that is not known.
--- @param where string the option that has the URL, for messages: '--queue'
--- @param parts Url
--- @param names string[]
--- @return table<string, string>
function M.options(where, parts, names)
  local known = {}
  for _, name in ipairs(names) do known[name] = true end
  for name in pairs(parts.query) do
    if not known[name] then errors.no_option(('%s: %s'):format(where, parts.scheme), name, names) end
  end
  return parts.query
end

return M
