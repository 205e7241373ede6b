--- The cases of tests/golden/onnx.safetensors: models, inputs and onnxruntime's results.

local cr = require 'cr'
local golden = require 'tests.support.golden'
local scratch = require 'tests.support.scratch'

local M = {}

--- Numbers in -1 .. 1 by the rule of `ramp` in onnx_models.py, times a scale.
function M.ramp(shape, scale)
  return cr.scope(function()
    local n = 1
    for _, size in ipairs(shape) do n = n * size end
    local k = cr.arange(0, n - 1, 1, { dtype = 'f64' }) * 7919
    local rest = k - (k / 1009):floor() * 1009
    return ((rest / 1009 * 2 - 1):to 'f32' * (scale or 1)):view(shape, {})
  end)
end

--- Cases by name: {name, model = a path, inputs = tensors, outputs = tensors}. Cases whose model is not in the file
--- have no model and inputs.
function M.all()
  local file, cases, list = cr.weights.open(golden.folder .. 'onnx.safetensors'), {}, {}
  for _, key in ipairs(file.names) do
    local name, kind, k = key:match '^(.*)%.(%a+)%.(%d+)$'
    if not name then name, kind = key:match '^(.*)%.(model)$' end
    local case = cases[name]
    if not case then
      case = { name = name, inputs = {}, outputs = {} }
      cases[name] = case
      list[#list + 1] = case
    end
    if kind == 'model' then
      local x = file:get(key):clone()
      local bytes = require 'ffi'.string(x:pointer(), x:numel())
      x:free()
      scratch.write(name .. '.onnx', bytes)
      case.model = scratch.path(name .. '.onnx')
    else
      local t = cr.keep(file:get(key):clone())
      table.insert(kind == 'in' and case.inputs or case.outputs, t)
      assert(k)
    end
  end
  file:close()
  return list, cases
end

--- The largest error of results relative to the range of each output; or a message if shapes or types differ.
function M.off(case, results)
  local worst = 0
  if #results ~= #case.outputs then return ('%d results, not %d'):format(#results, #case.outputs) end
  for i, want in ipairs(case.outputs) do
    local y = results[i]
    if table.concat(y.shape, ' ') ~= table.concat(want.shape, ' ') then
      return ('result %d is [%s], not [%s]'):format(i, table.concat(y.shape, ' '), table.concat(want.shape, ' '))
    end
    if y.dtype ~= want.dtype then return ('result %d is %s, not %s'):format(i, y.dtype, want.dtype) end
    if y:numel() > 0 then
      worst = cr.scope(function()
        local a, b = y:to('cpu'):to 'f64', want:to 'f64'
        return math.max(worst, (a - b):abs():max():item() / math.max(1, b:abs():max():item()))
      end)
    end
  end
  return worst
end

return M
