--- Serves the page for people: each file of a folder under its name, index.html under /.
--
-- Invariant: no part of a request becomes part of a path, because the folder is listed once at start.

local lfs = require 'lfs'

local M = {}

local TYPES = { html = 'text/html; charset=utf-8', js = 'text/javascript; charset=utf-8', css = 'text/css; charset=utf-8' }

local HEADERS = {
  ['Content-Security-Policy'] = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; " ..
    "form-action 'self'; frame-ancestors 'none'; object-src 'none'",
  ['Permissions-Policy'] = 'microphone=(self)', ['Referrer-Policy'] = 'no-referrer',
}

local function operation(path, file, kind)
  return { id = 'page', method = 'GET', path = path, public = true, hidden = true,
    run = function(call) call.response:file(file, { type = kind, headers = HEADERS }) end }
end

--- Operations that serve the files of a folder.
--- @param folder string
--- @return table[]
function M.operations(folder)
  local list = {}
  if lfs.attributes(folder, 'mode') ~= 'directory' then return list end
  for name in lfs.dir(folder) do
    local kind = TYPES[name:match '^[%w_-]+%.(%l+)$' or '']
    if kind then list[#list + 1] = operation('/' .. name, folder .. '/' .. name, kind) end
    if name == 'index.html' then list[#list + 1] = operation('/', folder .. '/' .. name, kind) end
  end
  return list
end

return M
