--- Finds what a source file uses: every require of a Lua file, every #include of a C or CUDA file, with its line.
--- Both languages are tokenized, so that comments and strings neither hide a use nor look like one.

local M = {}

local function count_lines(text) return select(2, text:gsub('\n', '')) end

--- The tokens of Lua source: { kind, value, line }, kind 'name', 'string', 'number' or 'symbol'.
function M.lua_tokens(text)
  local tokens, at, line = {}, 1, 1
  local function add(kind, value) tokens[#tokens + 1] = { kind = kind, value = value, line = line } end
  local function long_bracket(from) -- its contents and its end; nil if there is none
    local level = text:match('^%[(=*)%[', from)
    if not level then return nil end
    local _, last, inside = text:find('^%[' .. level .. '%[\n?(.-)%]' .. level .. '%]', from)
    return inside or text:sub(from), last or #text
  end
  while at <= #text do
    local c, last = text:sub(at, at), at
    if c:find '%s' then
      last = select(2, text:find('^%s+', at))
    elseif text:find('^%-%-', at) then
      local _, ends = long_bracket(at + 2)
      last = ends or (text:find('\n', at, true) or #text + 1) - 1
    elseif c == '"' or c == "'" then
      last = at + 1
      while last <= #text and text:sub(last, last) ~= c do
        last = last + (text:sub(last, last) == '\\' and 2 or 1)
      end
      add('string', text:sub(at + 1, last - 1))
    elseif long_bracket(at) then
      local inside, ends = long_bracket(at)
      last = ends
      add('string', inside)
    elseif c:find '[%a_]' then
      last = select(2, text:find('^[%w_]+', at))
      add('name', text:sub(at, last))
    elseif c:find '%d' then
      last = select(2, text:find('^[%w.]+', at))
      add('number', text:sub(at, last))
    else
      if text:find('^%.%.', at) then last = at + 1 end
      add('symbol', text:sub(at, last))
    end
    line = line + count_lines(text:sub(at, last))
    at = last + 1
  end
  return tokens
end

--- The modules that Lua source may load: a list of { name, line }, with `prefix` if only the beginning of the name is
--- constant. A file that requires a computed name (or looks one up in package.loaded) may load each module that one
--- of its strings names: these entries have `guess`. Second result: the lines on which `require` is passed on under
--- another name.
function M.requires(tokens)
  local uses, aliases, computed = {}, {}, false
  local function token(i) return tokens[i] or { kind = 'end', value = '' } end
  for i, this in ipairs(tokens) do
    local before, after = token(i - 1).value, token(i + 1)
    local argument -- index of the argument of require
    if this.kind == 'name' and this.value == 'require' and before ~= '.' and before ~= ':' then
      if after.kind == 'string' then
        argument = i + 1
      elseif after.value == '(' then
        argument = i + 2
      elseif after.value == ',' and before == '(' and token(i - 2).value:find '^x?pcall$' then
        argument = i + 2
      elseif not (before == ',' or after.value == '=') or before == '=' then
        aliases[#aliases + 1] = this.line
      end
    elseif this.kind == 'name' and this.value == 'loaded' and before == '.' then
      if after.value == '.' then
        uses[#uses + 1] = { name = token(i + 2).value, line = this.line }
      elseif after.value == '[' then
        argument = i + 2
      end
    end
    if argument then
      local name = token(argument)
      if name.kind == 'string' then
        uses[#uses + 1] = { name = name.value, line = name.line, prefix = token(argument + 1).value == '..' }
      else
        computed = true
      end
    end
  end
  if computed then
    for _, this in ipairs(tokens) do
      if this.kind == 'string' then uses[#uses + 1] = { name = this.value, line = this.line, guess = true } end
    end
  end
  return uses, aliases
end

local LOADERS = { dofile = true, loadfile = true, loadstring = true, getfenv = true, setfenv = true }
local OF_PACKAGE = { loaders = true, preload = true, searchpath = true }

--- The lines on which Lua source can load code other than by a require with a constant name: a list of { line, what
--- }.
function M.detours(tokens)
  local list = {}
  for i, this in ipairs(tokens) do
    local before, base = (tokens[i - 1] or {}).value, (tokens[i - 2] or {}).value
    local after, next_but_one = tokens[i + 1] or {}, tokens[i + 2] or {}
    local what
    if this.kind == 'name' and LOADERS[this.value] and before ~= '.' and before ~= ':' then
      what = this.value
    elseif this.kind == 'name' and OF_PACKAGE[this.value] and before == '.' and base == 'package' then
      what = 'package.' .. this.value
    elseif this.value == 'require' and (before == '.' or before == '[' or before == ',' and this.kind == 'string') then
      what = 'require out of a table'
    elseif this.kind == 'name' and this.value == 'require' and after.value == '(' and next_but_one.kind ~= 'string' then
      what = 'require of a computed name'
    end
    if what then list[#list + 1] = { line = this.line, what = what } end
  end
  return list
end

--- The lines on which Lua source calls the C library itself: an index `C` of anything but LuaJIT's own ffi, a name
--- from crescent.h, or ffi.load of the library.
function M.raw_calls(tokens)
  local lines = {}
  for i, this in ipairs(tokens) do
    local before, base = (tokens[i - 1] or {}).value, (tokens[i - 2] or {}).value
    local indexed = before == '.' or before == '[' and (tokens[i + 1] or {}).value == ']'
    local argument = (before == ',' or before == '(') and this.kind == 'string'
    if indexed and this.value == 'C' and base ~= 'ffi' or argument and this.value == 'C' then
      lines[#lines + 1] = this.line
    elseif indexed and (this.value:find '^cr_%l' or this.value:find '^CR_%u') then
      lines[#lines + 1] = this.line
    elseif this.value == 'load' and base == 'ffi' then
      local what = tokens[i + 1] or {}
      if what.value == '(' then what = tokens[i + 2] or {} end
      if what.kind ~= 'string' or what.value:find 'crescent' then lines[#lines + 1] = this.line end
    end
  end
  return lines
end

--- The #includes of C or CUDA source: a list of { name, line, quoted }; name is nil if it is a macro.
function M.includes(text)
  -- Comments are replaced by blank lines. Strings stay, so that a `/*` inside one does not start a comment.
  local out, at = {}, 1
  while at <= #text do
    local from = text:find('["\'/]', at)
    if not from then break end
    local last
    if text:find('^/%*', from) then
      last = select(2, text:find('*/', from + 2, true)) or #text
      out[#out + 1] = text:sub(at, from - 1) .. ' ' .. ('\n'):rep(count_lines(text:sub(from, last)))
    elseif text:find('^//', from) then
      last = (text:find('\n', from, true) or #text + 1) - 1
      out[#out + 1] = text:sub(at, from - 1)
    else
      local quote = text:sub(from, from)
      last = from
      if quote ~= '/' then
        last = from + 1
        while last <= #text and not text:sub(last, last):find('[' .. quote .. '\n]') do
          last = last + (text:sub(last, last) == '\\' and 2 or 1)
        end
      end
      out[#out + 1] = text:sub(at, last)
    end
    at = last + 1
  end
  out[#out + 1] = text:sub(at)
  local uses, number = {}, 0
  for line in (table.concat(out) .. '\n'):gmatch '(.-)\n' do
    number = number + 1
    local rest = line:match '^%s*#%s*include%s*(.*)$' or line:match '^%s*#%s*import%s*(.*)$'
    if rest then
      local quoted, angled = rest:match '^"([^"]+)"', rest:match '^<([^>]+)>'
      uses[#uses + 1] = { name = quoted or angled, line = number, quoted = quoted ~= nil }
    end
  end
  return uses
end

--- The cycles of a graph { [node] = { [other] = true } }: lists of nodes, sorted by name, that all reach each other
--- (strongly connected components, Tarjan 1972).
function M.circles(graph)
  local index, low, on, stack, count, found = {}, {}, {}, {}, 0, {}
  local function sorted(set)
    local keys = {}
    for key in pairs(set) do keys[#keys + 1] = key end
    table.sort(keys)
    return keys
  end
  local function visit(node)
    count = count + 1
    index[node], low[node], on[node] = count, count, true
    stack[#stack + 1] = node
    for _, other in ipairs(sorted(graph[node] or {})) do
      if not index[other] then
        visit(other)
        low[node] = math.min(low[node], low[other])
      elseif on[other] then
        low[node] = math.min(low[node], index[other])
      end
    end
    if low[node] ~= index[node] then return end
    local circle = {}
    repeat
      local last = table.remove(stack)
      on[last] = nil
      circle[#circle + 1] = last
    until last == node
    if #circle > 1 then
      table.sort(circle)
      found[#found + 1] = circle
    end
  end
  for _, node in ipairs(sorted(graph)) do
    if not index[node] then visit(node) end
  end
  return found
end

return M
