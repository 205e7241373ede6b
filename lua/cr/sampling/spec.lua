--- Parses specs 'NAME:option=value,option=value', which name a scheduler or a guidance with its options in one word.
--
-- A colon separates options, too, for use in lists of specs. A value is a number, true, false, a list of these in
-- brackets, separated by commas (sigmas=[14.6,3.9,0.9,0]), or text. In a shell, quote a word with brackets.

local M = {}

local function value_of(text)
  if text == 'true' or text == 'false' then return text == 'true' end
  local inside = text:match '^%[(.*)%]$'
  if not inside then return tonumber(text) or text end
  local list = {}
  if not inside:find '%S' then return list end
  for item in (inside .. ','):gmatch '%s*(.-)%s*,' do
    list[#list + 1] = tonumber(item) or item
  end
  return list
end

--- Splits a text at separators outside brackets.
--- @param text string
--- @param separators string a set of Lua's patterns: ',:'
--- @return string[]
function M.parts(text, separators)
  local list, depth, from = {}, 0, 1
  for at = 1, #text do
    local c = text:sub(at, at)
    if c == '[' then depth = depth + 1 elseif c == ']' then depth = math.max(0, depth - 1) end
    if depth == 0 and c:find('[' .. separators .. ']') then
      list[#list + 1], from = text:sub(from, at - 1), at + 1
    end
  end
  list[#list + 1] = text:sub(from)
  return list
end

--- Splits a spec into its name and its options.
--- @param kind string the kind of thing that it names, for messages: 'scheduler'
--- @param spec string
--- @return string name
--- @return table options
function M.split(kind, spec)
  local name, tail = spec:match '^(.-):%s*([%a_][%w_]*%s*=.*)$'
  if not name then
    local wrong = spec:match '^[%w_]+:(.*)$'
    if wrong then error(("%s '%s': '%s' is not of the form option=value"):format(kind, spec, wrong), 0) end
    return spec, {}
  end
  local given = {}
  for _, part in ipairs(M.parts(tail, ',:')) do
    local key, text = part:match '^%s*([%a_][%w_]*)%s*=%s*(.-)%s*$'
    if not key then error(("%s '%s': '%s' is not of the form option=value"):format(kind, spec, part), 0) end
    if given[key] ~= nil then error(("%s '%s': %s is given twice"):format(kind, spec, key), 0) end
    given[key] = value_of(text)
  end
  return name, given
end

return M
