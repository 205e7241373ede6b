--- Observes the inputs of layers while a network runs, over all steps and windows: the largest magnitude of each
--- channel, some of the rows, and optionally the Gram matrix.

local cr = require 'cr'
local nn = require 'cr.nn'

local M = {}

local ROWS = 256 -- rows kept per layer
local FROM_CALL = 16 -- rows taken per call until ROWS is reached; later calls replace earlier rows
local GRAM_ROWS = 4096 -- maximum rows per call, evenly spaced, that enter the Gram matrix

--- @class LayerStatistics
--- @field most Tensor f32 [K] largest magnitude of each channel
--- @field rows Tensor f32 [n K] some of the input rows
--- @field gram Tensor? f32 [K K]
--- @field calls integer

-- Evenly spaced rows of x [R K], at most `count`.
local function spread(x, count, from)
  local R = x:size(1)
  local step = math.max(1, math.floor(R / count))
  return x:slice(1, 1 + from % step, R, step):narrow(1, 1, math.min(count, math.ceil((R - from % step) / step)))
end

local function replace(found, name, t)
  local before = found[name]
  found[name] = cr.keep(t)
  if before then before:free() end
end

local function note(found, layer, x)
  cr.scope(function()
    local rows = x:contiguous():view(-1, layer.K)
    local most = rows:abs():max(1):to('f32')
    replace(found, 'most', found.most and most:maximum(found.most) or most:clone())
    local few = spread(rows, FROM_CALL, found.calls):to('f32'):contiguous()
    if not found.rows then
      replace(found, 'rows', few:clone())
    elseif found.rows:size(1) + few:size(1) <= ROWS then
      replace(found, 'rows', cr.cat({ found.rows, few }, 1))
    else
      local first = found.calls * 7 % math.max(1, found.rows:size(1) - few:size(1)) + 1
      found.rows:narrow(1, first, few:size(1)):copy_(few)
    end
    if layer.wants_gram then
      local many = spread(rows, GRAM_ROWS, found.calls):to('f32'):contiguous()
      local gram = many:t():matmul(many)
      replace(found, 'gram', found.gram and found.gram + gram or gram)
    end
    found.calls = found.calls + 1
  end)
end

--- Runs fn and records the layers' inputs. fn must not use CUDA graphs.
--- @param list QuantLayer[] with `wants_gram` = true if the Gram matrix is needed
--- @param fn fun()
--- @return table<QuantLayer, LayerStatistics> for each layer that ran; free with free()
function M.watch(list, fn)
  local by_node, found, plain = {}, {}, {}
  for _, layer in ipairs(list) do by_node[layer.node] = layer end
  for _, name in ipairs { 'linear', 'conv2d', 'linear_geglu', 'upsample_conv2d' } do
    plain[name] = nn[name]
    nn[name] = function(w, x, ...) -- luacheck: ignore
      local layer = by_node[w]
      if layer then
        found[layer] = found[layer] or { calls = 0 }
        note(found[layer], layer, x)
      end
      return plain[name](w, x, ...)
    end
  end
  local ok, problem = pcall(fn)
  for name, f in pairs(plain) do nn[name] = f end -- luacheck: ignore
  if not ok then
    M.free(found)
    error(problem, 0)
  end
  return found
end

--- Frees the statistics.
--- @param found table<QuantLayer, LayerStatistics>
function M.free(found)
  for _, one in pairs(found) do
    for _, name in ipairs { 'most', 'rows', 'gram' } do
      if one[name] then one[name]:free() end
    end
  end
end

return M
