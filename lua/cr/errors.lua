--- Errors meant for the person who runs a script, and suggestions for misspelt names.
--
-- A failure is a table {message, code, field}: the program prints the message alone, without a position, and ends
-- with the code. Any other error is a mistake in a script and keeps its position.

local M = {}

--- Counts the errors that have ended a script or a command at the prompt. Finalizers compare it: they finish no file
--- that an error left behind.
M.uncaught = 0

local Failure = {}
Failure.__index = Failure
function Failure:__tostring() return self.message end

--- Ends the script with one line on stderr: no position, no traceback.
--- @param message string one sentence: what, where, what to do
--- @param code integer? the exit status, 1
--- @param field string? the setting with the problem, for pages that show settings
function M.fail(message, code, field)
  error(setmetatable({ message = tostring(message), code = code or 1, field = field }, Failure), 0)
end

--- Fails as `fail` does because another service is unavailable: the same call may succeed later.
--- @param message string
function M.unavailable(message) error(setmetatable({ message = message, code = 1, passes = true }, Failure), 0) end

--- Returns whether an error value was raised by `unavailable`.
--- @return boolean
function M.is_unavailable(value) return M.is_failure(value) and value.passes == true end

--- Ends the script as `fail` does, with a formatted message.
--- @param format string for string.format, followed by its values
function M.failf(format, ...) M.fail(format:format(...)) end

--- Returns whether an error value was raised by `fail`.
--- @return boolean
function M.is_failure(value) return getmetatable(value) == Failure end

--- Returns the edit distance of two words: insertions, deletions, replacements and swaps of neighbours.
--- @param a string
--- @param b string
--- @return integer
function M.distance(a, b)
  local before, row = {}, {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local new = { [0] = i }
    for j = 1, #b do
      local same = a:byte(i) == b:byte(j)
      local d = math.min(row[j] + 1, new[j - 1] + 1, row[j - 1] + (same and 0 or 1))
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        d = math.min(d, before[j - 2] + 1)
      end
      new[j] = d
    end
    before, row = row, new
  end
  return row[#b]
end

--- Returns the name that is most similar to `word`, or that begins with it. Ties go to the first name in alphabetical order.
--- @param word string
--- @param names string[]
--- @return string? nil only if the list is empty
--- @return number? its distance
function M.nearest(word, names)
  local best, best_distance
  local sorted = {}
  for i, name in ipairs(names) do sorted[i] = name end
  table.sort(sorted)
  for _, name in ipairs(sorted) do
    local d = M.distance(word, name)
    if #word > 2 and name:sub(1, #word) == word then d = math.min(d, 1) end
    if not best or d < best_distance then best, best_distance = name, d end
  end
  return best, best_distance
end

--- Returns the end of a sentence about an unknown name: "did you mean 'y'?".
--- @param word any the unknown name
--- @param names string[] the known names
--- @param quote string? the quotation mark around the name (')
--- @param otherwise string? the text to use if `names` is empty
--- @return string
function M.did_you_mean(word, names, quote, otherwise)
  quote = quote or "'"
  return ('did you mean %s%s%s?'):format(quote, M.nearest(tostring(word), names) or otherwise, quote)
end

--- Returns the same only for a known name that is close, else another hint.
--- @param word any the unknown name
--- @param names string[] the known names
--- @param most number the largest edit distance that is close
--- @param otherwise string the other hint
--- @return string
function M.did_you_mean_close(word, names, most, otherwise)
  local near, distance = M.nearest(tostring(word), names)
  return near and distance <= most and ("did you mean '%s'?"):format(near) or otherwise
end

--- Fails because of an unknown option: "session: there is no option 'x': did you mean 'y'?".
--- @param where string the function or command that has the options: 'session'
--- @param word any the unknown name
--- @param names string[] the known names
function M.no_option(where, word, names)
  M.failf("%s: there is no option '%s': %s", where, tostring(word), M.did_you_mean(word, names))
end

--- Returns whether a chunk is one of the library's own files.
--- @param source string as debug.getinfo returns it
--- @return boolean
function M.is_library(source) return source:find('/lua/cr/', 1, true) ~= nil or source:find '^@lua/cr/' ~= nil end

--- Finds the first caller outside lua/cr/ in a call stack.
--- @param level integer where the search begins: 1 is the calling function; in a task, 0 is its innermost function
--- @param task thread? a suspended coroutine to search instead of the running one
--- @return integer? the level of that caller, counted the same way; nil if there is none
--- @return table? its debug.getinfo: source, short_src, currentline
function M.caller(level, task)
  while true do
    local info
    if task then info = debug.getinfo(task, level, 'Sl') else info = debug.getinfo(level + 1, 'Sl') end
    if not info then return nil end
    if info.what ~= 'C' and not M.is_library(info.source) then
      return level, info
    end
    level = level + 1
  end
end

return M
