--- Tensors that are kept by name from step to step, outside all scopes.

local cr = require 'cr'

local M = {}

--- Returns a second tensor on the same storage, so that neither the caller's scope nor this table frees what the
--- other still needs.
--- @param t Tensor
--- @return Tensor
function M.hold(t) return cr.keep(t:narrow(1, 1, t:size(1))) end

--- Stores a tensor in a table under a name, and frees the previous one.
--- @param held table<string, Tensor>
--- @param name string
--- @param t Tensor? nil stores nothing
function M.put(held, name, t)
  local fresh = t and M.hold(t)
  local before = rawget(held, name)
  if before then before:free() end
  held[name] = fresh
end

--- Frees all tensors of a table.
--- @param held table<string, Tensor>
function M.free(held)
  for name, t in pairs(held) do
    t:free()
    held[name] = nil
  end
end

return M
