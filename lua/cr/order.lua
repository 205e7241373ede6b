--- Orders of lists, for table.sort.

local M = {}

--- Those with most first; of equal ones, those whose `tie` is less.
--- @param most string a field with numbers
--- @param tie string a field whose values differ, so that the order is always the same
--- @return fun(a: table, b: table): boolean
function M.most_first(most, tie)
  return function(a, b)
    if a[most] ~= b[most] then return a[most] > b[most] end
    return a[tie] < b[tie]
  end
end

return M
