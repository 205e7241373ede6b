--- Windows of convolutions and pooling: strides, dilations and paddings from a node's attributes, and sizes of results.

local window = {}

local function filled(n, name, rank, value)
  local list = n:list(name)
  if not list then
    list = {}
    for k = 1, rank do list[k] = value end
  end
  if #list ~= rank then n:fail('%s has %d numbers for %d dimensions', name, #list, rank) end
  for _, v in ipairs(list) do
    if v < 1 or v > 2 ^ 20 or v % 1 ~= 0 then n:fail('%s holds %s', name, tostring(v)) end
  end
  return list
end
window.filled = filled

--- Returns {kernel, stride, dilation, before, after = paddings, declared = the paddings after that the file declares,
--- out = sizes of the result}, each a list with one number for each spatial dimension.
--- @param n table the node
--- @param sizes integer[] of the input
--- @param kernel integer[]
function window.of(n, sizes, kernel)
  local rank = #sizes
  local stride, dilation = filled(n, 'strides', rank, 1), filled(n, 'dilations', rank, 1)
  local pads, auto = n:list 'pads', n:text('auto_pad', 'NOTSET')
  local ceil = n:attribute('ceil_mode', 0) ~= 0
  local w = { kernel = kernel, stride = stride, dilation = dilation, before = {}, after = {}, declared = {}, out = {} }
  if pads and #pads ~= 2 * rank then n:fail('pads has %d numbers for %d dimensions', #pads, rank) end
  for k, size in ipairs(sizes) do
    local reach = (kernel[k] - 1) * dilation[k] + 1
    local before, after = 0, 0
    if auto == 'SAME_UPPER' or auto == 'SAME_LOWER' then
      local all = math.max((math.ceil(size / stride[k]) - 1) * stride[k] + reach - size, 0)
      before = auto == 'SAME_UPPER' and math.floor(all / 2) or math.ceil(all / 2)
      after = all - before
    elseif auto == 'NOTSET' or auto == '' then
      before, after = pads and pads[k] or 0, pads and pads[k + rank] or 0
    elseif auto ~= 'VALID' then
      n:fail('auto_pad %s is not handled', auto)
    end
    if before < 0 or after < 0 or before % 1 ~= 0 or after % 1 ~= 0 then n:fail('paddings of %s and %s are not handled', before, after) end
    local room = (size + before + after - reach) / stride[k]
    local out = (ceil and math.ceil(room) or math.floor(room)) + 1
    -- A window that would begin in the padding after the input does not count.
    if ceil and (out - 1) * stride[k] >= size + before then out = out - 1 end
    if out < 1 then n:fail('a window of %d does not fit into %d', reach, size + before + after) end
    w.before[k], w.declared[k], w.out[k] = before, after, out
    w.after[k] = math.max(after, (out - 1) * stride[k] + reach - size - before)
  end
  local shape = n:shape(1)
  local padded, result = { shape[1], shape[2] }, { shape[1], shape[2] }
  for k, size in ipairs(sizes) do padded[k + 2], result[k + 2] = size + w.before[k] + w.after[k], w.out[k] end
  n:room(padded)
  n:room(result)
  return w
end

--- Returns the spatial sizes of a shape [N C ...].
function window.sizes(n, i)
  local shape, sizes = n:shape(i), {}
  if #shape < 3 then n:fail('input %d has %d dimensions, but a picture has at least 3', i, #shape) end
  for k = 3, #shape do sizes[#sizes + 1] = shape[k] end
  if #sizes > 3 then n:fail('windows of %d dimensions are not handled', #sizes) end
  return sizes
end

--- Returns functions that view a picture [N W C], [N H W C] or [N D H W C] as [N H W C] for an operation on its last
--- two spatial dimensions, and view the result back.
function window.as_pictures(x)
  local s = x.shape
  if #s == 3 then return x:reshape(s[1], 1, s[2], s[3]) end
  if #s == 5 then return x:reshape(s[1] * s[2], s[3], s[4], s[5]) end
  return x
end

return window
