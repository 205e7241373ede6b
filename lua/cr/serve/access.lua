--- Who may ask: the token, and which pages of a browser.
--
-- Without a token whoever reaches the port may ask, and that is to be this machine alone: pages of other sites, which a browser
-- here has open, are told apart by the headers Host and Origin, so that neither a form nor a name that suddenly means
-- 127.0.0.1 reaches the server. With a token it stands in `Authorization: Bearer T`; for what a browser asks by itself (a
-- video, events, a download) it may stand in a cookie of the server's page instead, of requests that change nothing.

local bit = require 'bit'
local errors = require 'cr.errors'
local files = require 'cr.files'
local problems = require 'cr.serve.problem'
local text = require 'cr.serve.text'

local M = {}

M.COOKIE, M.VARIABLE = 'crescent_token', 'CRESCENT_TOKEN'

--- Whether two texts are the same, in a time that tells nothing of the second but its length.
--- @param given string
--- @param secret string
--- @return boolean
function M.same(given, secret)
  local different = bit.bxor(#given, #secret)
  for i = 1, #secret do different = bit.bor(different, bit.bxor(secret:byte(i), given:byte(i) or 0)) end
  return different == 0
end

--- The token that a server is to ask for: from its options, or the environment; nil: none.
--- @param options table {token =, token_file =}
--- @return string?
function M.token(options)
  local token, from = options.token, '--token'
  if options.token_file then
    if token then errors.fail '--token-file: --token is there too: leave one of them out' end
    token, from = files.read(options.token_file), '--token-file'
    if not token then errors.failf('--token-file: %s cannot be read', options.token_file) end
    token = token:match '^%s*(.-)%s*$'
  elseif not token then
    token, from = os.getenv(M.VARIABLE), M.VARIABLE
  end
  if token and not token:find '^[%w%-._~+/=]+$' then
    errors.failf('%s: a token is letters, digits and -._~+/= alone, at least one', from)
  end
  return token
end

-- The host's name of 'name:port', '[::1]:port'.
local function name_of(host) return host:match '^%[([^%]]*)%]' or host:match '^[^:]*' end

local LOCAL = { localhost = true, ['127.0.0.1'] = true, ['::1'] = true }

--- Whether an address is this machine's alone.
--- @param host string
function M.is_local(host) return LOCAL[host] or host:find '^127%.%d+%.%d+%.%d+$' ~= nil end

local function token_of(request)
  local bearer = (request.headers.authorization or ''):match '^[Bb]earer +(%S+)%s*$'
  if bearer then return bearer end
  if request.method ~= 'GET' and request.method ~= 'HEAD' then return nil end
  local cookie = ('; ' .. (request.headers.cookie or '')):match('[;%s]' .. M.COOKIE .. '=([^;%s]*)')
  return cookie and (cookie:gsub('%%(%x%x)', function(hex) return string.char(tonumber(hex, 16)) end))
end

--- What stands against a request.
--- @param request table
--- @param options table {token = text?, only_local = whether the server listens for this machine alone}
--- @param public boolean whether all may ask for this
--- @return Problem?
function M.refuse(request, options, public)
  local host, origin = request.headers.host or '', request.headers.origin
  if not options.token then
    if options.only_local and not M.is_local(name_of(host)) then
      return problems.new(403, ("the server is asked for as '%s', which is not this machine: it listens for 127.0.0.1 and localhost alone")
        :format(text.shown(host)))
    end
    if origin and origin ~= 'http://' .. host and origin ~= 'https://' .. host then
      return problems.new(403, 'a page of another site asks: only the server\'s own page may, or a program')
    end
    return nil
  end
  if public then return nil end
  local given = token_of(request)
  if given and M.same(given, options.token) then return nil end
  return problems.new(401, given and 'the token is not the one of this server'
    or 'a token is needed: send Authorization: Bearer TOKEN')
end

return M
