-- What tests and benchmarks of networks share: trees of weights by formula, and conversion of golden values to
-- channels-last.

local cr = require 'cr'
local json = require 'cjson'
local formula = require 'tests.support.formula'
local weights = require 'cr.weights'

local M = {}

--- A network's tree of weights by formula, created tensor by tensor. Buffers (optional tensors, or those in
--- `buffers`) keep the model's own values.
--- @param expected table[] from a model's expected()
--- @param options? table options of weights.tree, and buffers = { name = Tensor }; options of the network itself are ignored
function M.tree(expected, options)
  local names, shapes = {}, {}
  options = options or {}
  local buffers, of_tree = options.buffers or {}, {}
  for _, name in ipairs { 'prefix', 'strip', 'rename', 'dtype', 'device', 'tag', 'adjacent', 'apart', 'made' } do
    of_tree[name] = options[name]
  end
  for _, e in ipairs(expected) do
    if not e.optional or buffers[e.name] then
      names[#names + 1] = e.name
      shapes[e.name] = e.shape
    end
  end
  return weights.tree({
    names = names, path = 'formula',
    info = function(_, name)
      local own = buffers[name]
      return { dtype = own and own.dtype or 'f32', shape = own and own.shape or shapes[name] }
    end,
    get = function(_, name)
      return buffers[name] or formula.tensor(name, shapes[name], { kind = 'weight' })
    end,
  }, of_tree)
end

--- Variances of batch norms by formula: 1 + 0.1 v, so that none is negative.
--- @param expected table[]
--- @return table<string, Tensor> buffers of tree()
function M.variances(expected)
  local list = {}
  for _, e in ipairs(expected) do
    if e.name:find 'running_var$' then list[e.name] = formula.tensor(e.name, e.shape, { kind = 'raw' }) * 0.1 + 1 end
  end
  return list
end

--- Channels first -> channels last: [B C ...] -> [B ... C].
function M.channels_last(x)
  local order = { 1 }
  for i = 3, x:dim() do order[#order + 1] = i end
  order[#order + 1] = 2
  return x:permute(order, {}):contiguous()
end

--- An output in the layout of the golden values: [B ... C] -> [B C ...].
function M.as_reference(x)
  -- The golden batch of two has the same time embedding twice.
  if x:dim() == 2 then return x:size(1) == 1 and cr.cat({ x, x }, 1) or x end
  local order = { 1, x:dim() }
  for i = 2, x:dim() - 1 do order[#order + 1] = i end
  return x:permute(order, {}):contiguous()
end

--- An input by formula, given in PyTorch's layout, converted to channels-last.
function M.input(name, shape)
  return M.channels_last(formula.tensor('input:' .. name, shape))
end

M.read = require 'tests.support.scratch'.read

function M.read_json(path) return json.decode(M.read(path)) end

--- Lines "name (2, 3)" of a key file as { { name =, shape = } }.
function M.read_keys(path)
  local list = {}
  for line in io.lines(path) do
    local name, sizes = line:match '^(%S+) %((.*)%)$'
    local shape = {}
    for n in sizes:gmatch '%d+' do shape[#shape + 1] = tonumber(n) end
    list[#list + 1] = { name = name, shape = shape }
  end
  return list
end

--- nil if both lists have the same names with the same shapes (in any order), else a sentence.
function M.difference(a, b)
  local shapes = {}
  for _, e in ipairs(b) do shapes[e.name or e[1]] = table.concat(e.shape or e[2], ' ') end
  for _, e in ipairs(a) do
    local name, shape = e.name or e[1], table.concat(e.shape or e[2], ' ')
    if shapes[name] ~= shape then
      return ('%s is [%s], expected [%s]'):format(name, shape, tostring(shapes[name]))
    end
    shapes[name] = nil
  end
  local left = next(shapes)
  return left and left .. ' is missing' or nil
end

M.scope = cr.scope

return M
