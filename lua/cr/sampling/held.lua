--- Tensors that are kept by name from one step to the next, in no scope.

local cr = require 'cr'

local M = {}

--- A handle of our own on the same numbers, so that neither the caller's scope nor we free what the other
--- still needs.
--- @param t Tensor
--- @return Tensor
function M.hold(t) return cr.keep(t:narrow(1, 1, t:size(1))) end

--- Keeps a tensor in a table under a name, in place of what was there.
--- @param held table<string, Tensor>
--- @param name string
--- @param t Tensor? nil: nothing
function M.put(held, name, t)
  local fresh = t and M.hold(t)
  local before = rawget(held, name)
  if before then before:free() end
  held[name] = fresh
end

--- Frees what a table holds.
--- @param held table<string, Tensor>
function M.free(held)
  for name, t in pairs(held) do
    t:free()
    held[name] = nil
  end
end

return M
