--- Problems: errors that are answered as application/problem+json (RFC 9457).
--
-- The handler of a request raises a Problem, and the server sends it as the answer unless an answer was started.

local json = require 'cr.json'
local utf8 = require 'cr.serve.text'.utf8

local M = {}

--- Reason phrases by status.
M.reasons = {
  [100] = 'Continue', [101] = 'Switching Protocols', [200] = 'OK', [201] = 'Created', [202] = 'Accepted',
  [204] = 'No Content', [206] = 'Partial Content', [301] = 'Moved Permanently', [302] = 'Found', [303] = 'See Other',
  [304] = 'Not Modified', [307] = 'Temporary Redirect', [308] = 'Permanent Redirect', [400] = 'Bad Request',
  [401] = 'Unauthorized', [403] = 'Forbidden', [404] = 'Not Found', [405] = 'Method Not Allowed', [406] = 'Not Acceptable',
  [408] = 'Request Timeout', [409] = 'Conflict', [410] = 'Gone', [411] = 'Length Required', [412] = 'Precondition Failed',
  [413] = 'Content Too Large', [414] = 'URI Too Long', [415] = 'Unsupported Media Type', [416] = 'Range Not Satisfiable',
  [417] = 'Expectation Failed', [421] = 'Misdirected Request', [422] = 'Unprocessable Content', [425] = 'Too Early',
  [426] = 'Upgrade Required', [428] = 'Precondition Required', [429] = 'Too Many Requests',
  [431] = 'Request Header Fields Too Large', [500] = 'Internal Server Error', [501] = 'Not Implemented',
  [502] = 'Bad Gateway', [503] = 'Service Unavailable', [504] = 'Gateway Timeout', [505] = 'HTTP Version Not Supported',
  [507] = 'Insufficient Storage',
}

--- @class Problem
--- @field status integer
--- @field detail string
--- @field fields table? more fields of the document
--- @field headers table? more headers of the answer
local Problem = {}
Problem.__index = Problem
function Problem:__tostring() return self.detail end

--- @param status integer 400 to 599
--- @param detail string one sentence
--- @param fields table? more fields of the document, such as {field = 'video'}
--- @return Problem
function M.new(status, detail, fields)
  return setmetatable({ status = status, detail = utf8(detail), fields = fields }, Problem)
end

--- Raises a problem.
function M.raise(status, detail, fields) error(M.new(status, detail, fields), 0) end

--- Returns whether a value is a Problem.
--- @return boolean
function M.is(value) return getmetatable(value) == Problem end

--- Raises a problem with one part of a request.
--- @param status integer
--- @param detail string
--- @param field string? 'video'
function M.fail(status, detail, field) M.raise(status, detail, field and { field = field }) end

--- Returns the document.
--- @return table
function Problem:document()
  local document = { type = 'about:blank' }
  for name, value in pairs(self.fields or {}) do document[name] = value end
  document.status, document.detail = self.status, self.detail
  document.title = document.title or M.reasons[self.status] or 'Error'
  return document
end

--- Returns the document as JSON.
--- @return string
function Problem:text() return json.encode(self:document()) end

--- The error that is raised in a task that waits for a client that has disconnected. It is not answered.
M.GONE = setmetatable({}, { __tostring = function() return 'the client has disconnected' end })

return M
