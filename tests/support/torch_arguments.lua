--- Conversions of PyTorch's arguments in sample calls: dimensions from 1, numbers, images channels-last.

local M = {}

local SKIP = {}

--- Skips a call that cannot be expressed here.
function M.skip(why) error(setmetatable({ why = why }, SKIP), 0) end

--- The reason why a call was skipped; nil for any other error.
function M.skipped(err) return getmetatable(err) == SKIP and err.why or nil end

function M.plain(list)
  if type(list) ~= 'table' then return list end
  local out = {}
  for i = 1, list.n or #list do out[i] = list[i] end
  return out
end

-- Converts a dimension to count from 1.
function M.dim(d)
  if type(d) == 'table' then
    local out = {}
    for i = 1, d.n or #d do out[i] = M.dim(d[i]) end
    return #out > 0 and out or nil
  end
  return d and (d >= 0 and d + 1 or d) or nil
end

-- Argument i, or the keyword argument with a name.
function M.arg_of(a, k, i, name)
  if a[i] ~= nil then return a[i] end
  return k[name]
end

function M.number_of(v) return v == true and 1 or v == false and 0 or v end

function M.last(x) -- [N C H W] to [N H W C]
  if x:dim() == 3 then return x:permute(1, 3, 2):contiguous() end
  return x:permute(1, 3, 4, 2):contiguous()
end
function M.first(x)
  if x:dim() == 3 then return x:permute(1, 3, 2):contiguous() end
  return x:permute(1, 4, 2, 3):contiguous()
end

function M.floats_only(x)
  local d = x.dtype
  if d ~= 'f32' and d ~= 'f16' and d ~= 'bf16' and d ~= 'f64' then M.skip 'of floats only' end
end

--- Adds the calls of another file.
function M.merge(into, more)
  for name, fn in pairs(more) do into[name] = fn end
  return into
end

return M
