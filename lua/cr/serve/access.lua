--- Decides which requests are allowed, by a token and by the origin of browser pages.
--
-- Without a token, everyone who reaches the port may send requests, so the server should listen on this machine only.
-- Pages of other sites in a browser on this machine are recognized by the headers Host and Origin, so that neither
-- cross-site forms nor DNS rebinding reach the server. A token is sent as `Authorization: Bearer T`. For requests
-- that a browser makes by itself (a video, events, a download) and that change nothing, a cookie of the server's page
-- may hold it instead.

local bit = require 'bit'
local errors = require 'cr.errors'
local files = require 'cr.files'
local problems = require 'cr.serve.problem'
local text = require 'cr.serve.text'

local M = {}

M.COOKIE, M.VARIABLE = 'crescent_token', 'CRESCENT_TOKEN'

--- Compares two strings in a time that reveals nothing about the second but its length.
--- @param given string
--- @param secret string
--- @return boolean
function M.same(given, secret)
  local different = bit.bxor(#given, #secret)
  for i = 1, #secret do different = bit.bor(different, bit.bxor(secret:byte(i), given:byte(i) or 0)) end
  return different == 0
end

--- Returns the token that a server requires, from its options or the environment, or nil.
--- @param options table {token =, token_file =}
--- @return string?
function M.token(options)
  local token, from = options.token, '--token'
  if options.token_file then
    if token then errors.fail '--token-file: --token is given, too: leave one of them out' end
    token, from = files.read(options.token_file), '--token-file'
    if not token then errors.failf('--token-file: %s cannot be read', options.token_file) end
    token = token:match '^%s*(.-)%s*$'
  elseif not token then
    token, from = os.getenv(M.VARIABLE), M.VARIABLE
  end
  if token and not token:find '^[%w%-._~+/=]+$' then
    errors.failf('%s: a token consists of one or more letters, digits and -._~+/=', from)
  end
  return token
end

-- Returns the host name of 'name:port' or '[::1]:port'.
local function name_of(host) return host:match '^%[([^%]]*)%]' or host:match '^[^:]*' end

local LOCAL = { localhost = true, ['127.0.0.1'] = true, ['::1'] = true }

--- Returns whether an address is reachable from this machine only.
--- @param host string
function M.is_local(host) return LOCAL[host] or host:find '^127%.%d+%.%d+%.%d+$' ~= nil end

local function token_of(request)
  local bearer = (request.headers.authorization or ''):match '^[Bb]earer +(%S+)%s*$'
  if bearer then return bearer end
  if request.method ~= 'GET' and request.method ~= 'HEAD' then return nil end
  local cookie = ('; ' .. (request.headers.cookie or '')):match('[;%s]' .. M.COOKIE .. '=([^;%s]*)')
  return cookie and (cookie:gsub('%%(%x%x)', function(hex) return string.char(tonumber(hex, 16)) end))
end

--- Returns a problem if a request is not allowed.
--- @param request table
--- @param options table {token = string?, only_local = whether the server listens on this machine only}
--- @param public boolean whether the operation needs no token
--- @return Problem?
function M.refuse(request, options, public)
  local host, origin = request.headers.host or '', request.headers.origin
  if not options.token then
    if options.only_local and not M.is_local(name_of(host)) then
      return problems.new(403, ("the request is for the host '%s', but this server answers only for 127.0.0.1 and localhost")
        :format(text.shown(host)))
    end
    if origin and origin ~= 'http://' .. host and origin ~= 'https://' .. host then
      return problems.new(403, 'the request comes from a page of another site: only the server\'s own page, or a program, may send it')
    end
    return nil
  end
  if public then return nil end
  local given = token_of(request)
  if given and M.same(given, options.token) then return nil end
  return problems.new(401, given and 'the token is not valid for this server'
    or 'a token is needed: send Authorization: Bearer TOKEN')
end

return M
