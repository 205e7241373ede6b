--- Runs PyTorch's sample inputs (tests/golden/torch_samples.py) and compares the results.
--
-- It translates calls of torch to cr: dimensions from 1, images channels-last. A call that cannot be expressed here
-- is skipped with the reason.

local cr = require 'cr'
local json = require 'cjson'
local given = require 'tests.support.torch_arguments'
local weights = require 'cr.weights'

local M = {}

local calls = given.merge(given.merge({}, require 'tests.support.torch_calls'), require 'tests.support.torch_layers')

-- ---- arguments --------------------------------------------------------------------------------------

local null = json.null
local function value(v, tensors)
  if v == null then return nil end
  if type(v) ~= 'table' then return v end
  if v.t then return tensors[v.t] end
  if v.dtype then return v.dtype end
  if v.float then return v.float == 'inf' and math.huge or v.float == '-inf' and -math.huge or 0 / 0 end
  local list = { n = #v }
  for i, each in ipairs(v) do list[i] = value(each, tensors) end
  return list
end

-- ---- comparing ---------------------------------------------------------------------------------------------

-- PyTorch's own tolerances (torch.testing.assert_close): relative, absolute.
local TOLERANCES = { f64 = { 1e-7, 1e-7 }, f32 = { 1.3e-6, 1e-5 }, f16 = { 1e-3, 1e-5 }, bf16 = { 1.6e-2, 1e-5 } }

-- A description of the difference of a result, or nil.
local function fault(got, want)
  if type(got) == 'table' and got.any then return nil end
  if type(got) == 'table' and got.places then -- the order of equal elements is free: the elements at these positions are compared
    if got.places.shape[1] ~= want.shape[1] then return 'other sizes' end
    local x, d = got.x, got.d
    return fault(x:gather(d, got.places + 1), x:gather(d, want + 1))
  end
  if got == nil then return 'nothing' end
  if not cr.is_tensor(got) then
    if cr.is_tensor(want) then want = want:item() end
    want, got = given.number_of(want), given.number_of(got)
    local near = got == want or got ~= got and want ~= want or math.abs(got - want) <= 1e-5 + 1e-3 * math.abs(want)
    return not near and ('%s, not %s'):format(tostring(got), tostring(want)) or nil
  end
  if not cr.is_tensor(want) then return 'a tensor' end
  local a, b = table.concat(got.shape, ' '), table.concat(want.shape, ' ')
  if a ~= b then return ('sizes [%s], not [%s]'):format(a, b) end
  if got.dtype ~= want.dtype then return ('%s, not %s'):format(got.dtype, want.dtype) end
  if got:numel() == 0 then return nil end
  local tolerance = TOLERANCES[want.dtype] or { 0, 0 }
  local x, y = got:to 'f64', want:to 'f64'
  local near = (x - y):abs():le(y:abs() * tolerance[1] + tolerance[2]):logical_or(x:eq(y)):logical_or(x:isnan():logical_and(y:isnan()))
  if near:min():item() then return nil end
  return ('largest error %.3g'):format((x - y):abs():nan_to_num(1e9, 1e9, 1e9):max():item())
end

--- Runs the cases of a file.
--- @param path string
--- @param report fun(case: table, result: 'pass'|'fail'|'skip', why: string?)
function M.run(path, report)
  local file = weights.open(path)
  local cases = json.decode(file.metadata.cases)
  for _, case in ipairs(cases) do
    cr.scope(function()
      local tensors = setmetatable({}, { __index = function(t, n)
        local x = file:get(tostring(n)):clone()
        rawset(t, n, x)
        return x
      end })
      local args = { n = #case.args }
      for i, v in ipairs(case.args) do args[i] = value(v, tensors) end
      local kwargs = {}
      for name, v in pairs(case.kwargs) do kwargs[name] = value(v, tensors) end
      local expected = value(case.expected, tensors)
      local call = calls[case.op]
      if not call then return report(case, 'skip', 'has no counterpart') end
      local list
      local ok, why = pcall(function() list = { call(args, kwargs) } end)
      if not ok and given.skipped(why) then return report(case, 'skip', given.skipped(why)) end
      if not ok then return report(case, 'fail', tostring(why)) end
      for i = 1, expected.n do
        local wrong = fault(list[i], expected[i])
        if wrong then return report(case, 'fail', ('result %d: %s'):format(i, wrong)) end
      end
      report(case, 'pass')
    end)
  end
  file:close()
end

return M
