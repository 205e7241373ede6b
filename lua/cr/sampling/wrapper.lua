--- Objects that wrap another one: a cache wraps a network, a guided predictor a plain one, checks a scheduler.

local M = {}

--- Makes a class whose objects forward every field that they lack to the wrapped object.
--- @param field string the field that holds the wrapped object
--- @return table
function M.class(field)
  local class = {}
  function class:__index(key)
    local own = class[key]
    if own ~= nil then return own end
    return rawget(self, field)[key]
  end
  return class
end

return M
