--- Prints tensors: a head line "f32 cpu [2 3]", then rounded values in readable form, with an ellipsis in the middle
--- of long dimensions and a count of nan and inf.

local M = {}

local EDGE = 3       -- rows and columns shown at each end of a long dimension
local LONG = 1000    -- tensors with more elements are abridged
local WIDE = 12      -- an abridged tensor shows up to so many columns in full

local function whole(dtype) return dtype:match '^[iu]%d' ~= nil end

--- Chooses a number format for finite values so that columns align.
local function formatter(values, dtype)
  if dtype == 'bool' then return function(v) return v ~= 0 and 'true' or 'false' end end
  if whole(dtype) then return function(v) return ('%d'):format(v) end end
  local high, integral = 0, true
  for _, v in ipairs(values) do
    if v == v and math.abs(v) ~= math.huge then
      high = math.max(high, math.abs(v))
      integral = integral and v == math.floor(v)
    end
  end
  local form = '%.2f'
  if integral and high < 1e6 then form = '%.0f.'
  elseif high >= 1e5 or high > 0 and high < 1e-3 then form = '%.2e'
  elseif high < 0.01 then form = '%.4f'
  elseif high < 0.1 then form = '%.3f' end
  return function(v)
    if v ~= v then return 'nan' end
    if v == math.huge then return 'inf' elseif v == -math.huge then return '-inf' end
    return form:format(v)
  end
end

--- Returns the indices to show of a dimension with n elements; 0 stands for the ellipsis.
local function shown(n, abridged)
  local list = {}
  if not abridged or n <= WIDE then
    for i = 1, n do list[i] = i end
  else
    for i = 1, EDGE do list[i] = i end
    list[EDGE + 1] = 0
    for i = n - EDGE + 1, n do list[#list + 1] = i end
  end
  return list
end

local function counts(t, dtype, scope)
  if whole(dtype) or dtype == 'bool' then return '' end
  local nan, inf = scope(function()
    local flat = t:to 'f32'
    local nan = flat:ne(flat):to('i64'):sum():item()
    local inf = flat:abs():eq(math.huge):to('i64'):sum():item()
    return nan, inf
  end)
  local parts = {}
  if nan > 0 then parts[#parts + 1] = nan .. ' nan' end
  if inf > 0 then parts[#parts + 1] = inf .. ' inf' end
  return #parts > 0 and '  (' .. table.concat(parts, ', ') .. ')' or ''
end

--- Formats a tensor as lines without a final newline.
--- @param t Tensor
--- @param scope function cr.scope, passed in because this file may not require cr.tensor
function M.tensor(t, scope)
  if t:is_freed() then return 'tensor (freed)' end
  local shape, dtype = t.shape, t.dtype
  local sizes = {}
  for i, n in ipairs(shape) do sizes[i] = tostring(n) end
  local head = ('%s %s [%s]'):format(dtype, t.device, table.concat(sizes, ' '))
  local numel = t:numel()
  if numel == 0 then return head end
  head = head .. counts(t, dtype, scope)

  local abridged = numel > LONG
  local rank = #shape
  local values, rows = {}, {}
  local function row(view, index)
    local cells, columns = {}, rank == 0 and { 1 } or shown(shape[rank], abridged)
    for _, c in ipairs(columns) do
      local v
      if c ~= 0 then v = rank == 0 and view:to('f64'):item() or view:select(1, c):to('f64'):item() end
      if type(v) == 'boolean' then v = v and 1 or 0 end
      cells[#cells + 1] = v or 0
      if v then values[#values + 1] = v else cells[#cells] = '...' end
    end
    rows[#rows + 1] = { index = index, cells = cells }
  end
  local function walk(view, depth, index)
    if depth >= rank then return row(view, index) end
    for _, i in ipairs(shown(shape[depth], abridged)) do
      if i == 0 then
        rows[#rows + 1] = { ellipsis = true }
      else
        walk(view:select(1, i), depth + 1, index .. i .. ' ')
      end
    end
  end
  scope(function() walk(t, 1, '') end)

  local text = formatter(values, dtype)
  local width = 0
  for _, r in ipairs(rows) do
    for i, v in ipairs(r.cells or {}) do
      if v ~= '...' then r.cells[i] = text(v) end
      width = math.max(width, #r.cells[i])
    end
  end
  local lines, group = { head }, nil
  for _, r in ipairs(rows) do
    if r.ellipsis then
      lines[#lines + 1] = '  ...'
    else
      -- With more than two dimensions, each matrix is preceded by its leading indices.
      local lead = rank > 2 and r.index:match '^(.*) %d+ $' or nil
      if lead and lead ~= group then
        group = lead
        lines[#lines + 1] = '  [' .. lead .. ']'
      end
      local cells = {}
      for i, v in ipairs(r.cells) do cells[i] = (' '):rep(width - #v) .. v end
      lines[#lines + 1] = '  ' .. table.concat(cells, ' ')
    end
  end
  return table.concat(lines, '\n')
end

return M
