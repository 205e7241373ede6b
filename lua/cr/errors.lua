--- Errors meant for the person who runs a script, and names that are nearly right.
--
-- A failure is a table {message, code, field}: the program prints the message alone, without a position,
-- and ends with the code. Any other error is a mistake in a script and keeps its position.

local M = {}

--- How many errors have ended a script, or what the prompt ran. What an error left behind is not finished.
M.uncaught = 0

local Failure = {}
Failure.__index = Failure
function Failure:__tostring() return self.message end

--- Ends the script with one line on stderr: no position, no traceback.
--- @param message string one sentence: what, where, what to do
--- @param code integer? the exit status, 1
--- @param field string? the setting that it is about, for who shows settings
function M.fail(message, code, field)
  error(setmetatable({ message = tostring(message), code = code or 1, field = field }, Failure), 0)
end

--- Fails as fail does because somebody else is away: the same may succeed later.
--- @param message string
function M.unavailable(message) error(setmetatable({ message = message, code = 1, passes = true }, Failure), 0) end

--- Whether an error value was raised by unavailable.
--- @return boolean
function M.is_unavailable(value) return M.is_failure(value) and value.passes == true end

--- Ends the script as fail does, with a message that is formatted.
--- @param format string of string.format, whose values follow
function M.failf(format, ...) M.fail(format:format(...)) end

--- Whether an error value was raised by fail.
--- @return boolean
function M.is_failure(value) return getmetatable(value) == Failure end

--- The number of insertions, deletions, replacements and swaps of neighbours between two words.
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

--- The name that is most like `word`, or that begins with it; of equally near ones the first in the alphabet.
--- @param word string
--- @param names string[]
--- @return string? nil only for an empty list
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

--- The end of a sentence about a name that is not known: "did you mean 'y'?".
--- @param word any as it was given
--- @param names string[] those that are known
--- @param quote string? the mark around the name, '
--- @param otherwise string? what is said where `names` is empty
--- @return string
function M.did_you_mean(word, names, quote, otherwise)
  quote = quote or "'"
  return ('did you mean %s%s%s?'):format(quote, M.nearest(tostring(word), names) or otherwise, quote)
end

--- Fails over an option that is not known: "session: there is no option 'x': did you mean 'y'?".
--- @param where string what has the options: 'session'
--- @param word any as it was given
--- @param names string[] those that are known
function M.no_option(where, word, names)
  M.failf("%s: there is no option '%s': %s", where, tostring(word), M.did_you_mean(word, names))
end

--- Whether a chunk is one of the library's own files.
--- @param source string as debug.getinfo gives it
--- @return boolean
function M.is_library(source) return source:find('/lua/cr/', 1, true) ~= nil or source:find '^@lua/cr/' ~= nil end

--- The first place outside of lua/cr/ in a stack of calls.
--- @param level integer where the search begins: 1 is the function that asks, of a task 0 its innermost one
--- @param task thread? a coroutine that waits, in place of the one that runs
--- @return integer? its level, counted the same way; nil where there is none
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
