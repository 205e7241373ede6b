--- Serves the page for people: each .html of a folder as one document that contains its style and its scripts, so a saved copy
--- needs no other file; index.html under / too. Scripts that no document contains (an audio worklet) are served under their names.
--
-- Scripts are ES modules. They are joined into one in the order of their imports: the lines `import { a, b } from './x.js';` and
-- the keyword `export` are removed. So top-level names must be unique across the modules of a document; a browser reports others.
--
-- Invariants: no part of a request becomes part of a path, because the folder is read once at start; the Content-Security-Policy
-- allows only the style and the script of the document.

local base64 = require 'cr.base64'
local digest = require 'cr.digest'
local errors = require 'cr.errors'
local files = require 'cr.files'
local lfs = require 'lfs'

local M = {}

local IMPORT = "^import {[^}]*} from '%./([%w_-]+%.js)';$"

-- The text of a script behind the scripts that it imports, each once.
local function script_of(folder, name, seen)
  if seen[name] then return '' end
  seen[name] = true
  local before, own = {}, {}
  for line in (files.read(folder .. '/' .. name) .. '\n'):gmatch '(.-)\n' do
    local other = line:match(IMPORT)
    if other then
      before[#before + 1] = script_of(folder, other, seen)
    elseif line:find '^import' then
      errors.failf("%s/%s: an import is written in one line, as in import { a } from './x.js';", folder, name)
    else
      own[#own + 1] = line:gsub('^export ', '')
    end
  end
  return table.concat(before) .. table.concat(own, '\n')
end

-- A document with its style and script inlined, and its Content-Security-Policy; adds the names of its scripts to `held`.
local function joined(folder, name, held)
  local hashes = {}
  local function inline(kind, text, before, after)
    hashes[kind] = ("'sha256-%s'"):format(base64.encode(digest.bytes(digest.of_text('SHA256', text))))
    return before .. text .. after
  end
  local text = files.read(folder .. '/' .. name)
  text = text:gsub('<link rel="stylesheet" href="([%w_-]+%.css)">', function(style)
    return inline('style', files.read(folder .. '/' .. style), '<style>', '</style>')
  end)
  text = text:gsub('<script type="module" src="([%w_-]+%.js)"></script>', function(script)
    local seen = {}
    local joint = script_of(folder, script, seen)
    for one in pairs(seen) do held[one] = true end
    return inline('script', '\n' .. joint, '<script type="module">', '</script>')
  end)
  return text, ("default-src 'self'; script-src 'self' %s; style-src %s; img-src 'self' blob: data:; media-src 'self' blob:; " ..
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"):format(hashes.script or '', hashes.style or "'self'")
end

local function operation(path, text, kind, policy)
  local tag = '"' .. digest.of_text('SHA256', text) .. '"'
  local headers = {
    ['content-type'] = kind .. '; charset=utf-8', ['content-security-policy'] = policy, etag = tag, ['cache-control'] = 'no-cache',
    ['permissions-policy'] = 'microphone=(self)', ['referrer-policy'] = 'no-referrer',
  }
  return { id = 'page', method = 'GET', path = path, public = true, hidden = true, any_query = true, run = function(call)
    if (call.request.headers['if-none-match'] or ''):find(tag, 1, true) then return 304, '', headers end
    return 200, text, headers
  end }
end

--- Operations that serve the documents of a folder.
--- @param folder string
--- @return table[]
function M.operations(folder)
  local list, held, scripts = {}, {}, {}
  if lfs.attributes(folder, 'mode') ~= 'directory' then return list end
  for name in lfs.dir(folder) do
    if name:find '^[%w_-]+%.html$' then
      local text, policy = joined(folder, name, held)
      list[#list + 1] = operation('/' .. name, text, 'text/html', policy)
      if name == 'index.html' then list[#list + 1] = operation('/', text, 'text/html', policy) end
    elseif name:find '^[%w_-]+%.js$' then
      scripts[#scripts + 1] = name
    end
  end
  for _, name in ipairs(scripts) do
    if not held[name] then
      list[#list + 1] = operation('/' .. name, files.read(folder .. '/' .. name), 'text/javascript', "default-src 'none'")
    end
  end
  return list
end

return M
