--- Reads the parts of a multipart/form-data body one after another as they arrive (RFC 7578).
--
-- Memory is bounded: it holds one received piece of a part's content, and at most HEAD bytes of its head.

local problem = require 'cr.serve.problem'

local M = {}

local HEAD, PARTS = 2 ^ 14, 1000 -- limits: bytes of a part's head, number of parts
local LINE = 64                  -- limit of blanks after a boundary

local function refuse(why) problem.raise(400, 'multipart: ' .. why) end

-- Returns the quoted string that begins at `at`, and the position after it. Browsers escape a quote as %22, other
-- clients as \".
local function quoted(text, at)
  local parts = {}
  while true do
    local from = at
    local mark
    at, mark = text:match('()(["\\])', from)
    if not at then refuse 'a quoted string has no end' end
    parts[#parts + 1] = text:sub(from, at - 1)
    if mark == '"' then break end
    local next_one = text:sub(at + 1, at + 1)
    parts[#parts + 1] = (next_one == '"' or next_one == '\\') and next_one or '\\' .. next_one
    at = at + 2
  end
  local codes = { ['%22'] = '"', ['%0D'] = '\r', ['%0A'] = '\n' }
  return (table.concat(parts):gsub('%%%x%x', codes)), at + 1
end

--- Parses a header such as Content-Type to its value and its parameters, with names in lower case.
--- @param text string 'form-data; name="file"; filename="a.mp4"'
--- @return string value in lower case
--- @return table<string, string>
function M.parameters(text)
  local value, at = text:match '^%s*([^;]*)()'
  local parameters = {}
  while true do
    local name, from = text:match('^%s*;%s*([^=;%s]+)%s*=%s*()', at)
    if not name then break end
    name = name:lower()
    if text:sub(from, from) == '"' then
      parameters[name], at = quoted(text, from + 1)
    else
      parameters[name], at = text:match('^([^;%s]*)()', from)
    end
  end
  -- Some clients use the form of RFC 8187 for names that are not ASCII.
  local coded = parameters['filename*'] and parameters['filename*']:match "^[uU][tT][fF]%-8'[^']*'(.*)$"
  if coded then
    parameters.filename = coded:gsub('%%(%x%x)', function(hex) return string.char(tonumber(hex, 16)) end)
  end
  return value:lower():match '^(.-)%s*$', parameters
end

--- @class Parts
local Parts = {}
Parts.__index = Parts

-- Appends the next received piece, and raises a problem at the end of the body.
local function more(self)
  local text = self.request:read()
  if not text then refuse 'the body ends inside a part' end
  self.buffer = self.buffer .. text
end

-- Classifies a boundary that ends before `at`: 'part' or 'end' with the position after it, 'data' if it is none, or
-- nil if more bytes are needed.
local function boundary_kind(self, at)
  local text = self.buffer:sub(at, at + LINE + 2)
  if text:find '^%-%-' then return 'end', at + 2 end
  local after = text:match '^[ \t]*\r\n()'
  if after then return 'part', at + after - 1 end
  if #text < LINE and (text == '-' or text:find '^[ \t]*\r?$') then return nil end
  return 'data'
end

-- Returns the next piece of the content, or nil at the boundary.
local function piece(self)
  while true do
    local at = self.buffer:find(self.delimiter, 1, true)
    local size = at and at - 1 or #self.buffer - #self.delimiter + 1
    if at == 1 then
      local kind, after = boundary_kind(self, 1 + #self.delimiter)
      if kind == 'data' then
        size = #self.delimiter
      elseif kind then
        self.buffer, self.inside, self.over = self.buffer:sub(after), false, kind == 'end'
        return nil
      end
    end
    if size > 0 then
      local text = self.buffer:sub(1 + self.own, size)
      self.buffer, self.own = self.buffer:sub(size + 1), math.max(0, self.own - size)
      if text ~= '' then return text end
    else
      more(self)
    end
  end
end

-- Reads the head of the next part, with names in lower case.
local function read_head(self)
  local headers = {}
  local text
  while true do
    if self.buffer:sub(1, 2) == '\r\n' then
      text, self.buffer = '', self.buffer:sub(3)
      break
    end
    local first, last = self.buffer:find('\r\n\r\n', 1, true)
    if (first or #self.buffer) > HEAD then refuse "a part's head is too long" end
    if first then
      text, self.buffer = self.buffer:sub(1, first + 1), self.buffer:sub(last + 1)
      break
    end
    more(self)
  end
  for line in text:gmatch '(.-)\r\n' do
    local name, value = line:match '^([%w!#$%%&\'*+.^_`|~-]+):[ \t]*(.-)[ \t]*$'
    if not name then refuse "a line of a part's head is not a header" end
    headers[name:lower()] = value
  end
  return headers
end

local function next_part(self)
  while self.inside do piece(self) end
  if self.over then
    while self.request:read() do end -- discards what follows the last boundary
    return nil
  end
  self.count = self.count + 1
  if self.count > PARTS then refuse(('there are more than %d parts'):format(PARTS)) end
  local headers = read_head(self)
  -- A boundary may follow the head at once, so the line break that must precede it is added here.
  self.buffer, self.own, self.inside = '\r\n' .. self.buffer, 2, true
  local kind, parameters = M.parameters(headers['content-disposition'] or '')
  if kind ~= 'form-data' or not parameters.name then refuse 'a part has no name' end
  local part = { name = parameters.name, filename = parameters.filename, headers = headers }
  local number = self.count
  function part.read() return self.count == number and self.inside and piece(self) or nil end
  return part
end

--- Iterates over the parts: {name, filename or nil, headers, read = function that returns a piece of the content, nil
--- at its end}. The unread rest of a part is skipped.
--- @param request Request
--- @return function
function M.parts(request)
  local kind, parameters = M.parameters(request.headers['content-type'] or '')
  local boundary = parameters.boundary
  if kind ~= 'multipart/form-data' or not boundary then problem.raise(415, 'the body must be multipart/form-data') end
  if #boundary < 1 or #boundary > 70 or boundary:find "[^%w'()+_,./:=? -]" then refuse 'the boundary is invalid' end
  -- The text before the first boundary is treated as a part.
  local self = setmetatable({
    request = request, delimiter = '\r\n--' .. boundary, buffer = '\r\n', own = 2, inside = true, over = false, count = 0,
  }, Parts)
  return function() return next_part(self) end
end

return M
