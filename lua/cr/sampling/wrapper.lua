--- Objects that stand around another one of their kind: a cache around a network, a guided predictor
--- around a plain one, the checks around a scheduler.

local M = {}

--- A class whose objects answer with the object that they stand around where they have nothing of
--- their own.
--- @param field string where an object keeps the one that it stands around
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
