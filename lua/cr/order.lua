--- Comparison functions for table.sort.

local M = {}

--- Sorts by a field in descending order, and ties by the field `tie` in ascending order.
--- @param most string the name of a field with numbers
--- @param tie string the name of a field with distinct values, which makes the order unique
--- @return fun(a: table, b: table): boolean
function M.most_first(most, tie)
  return function(a, b)
    if a[most] ~= b[most] then return a[most] > b[most] end
    return a[tie] < b[tie]
  end
end

return M
