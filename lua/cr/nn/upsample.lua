--- Doubling a picture and the 3x3 convolution after it as one convolution of the small picture.
--
-- In the doubled picture every pixel stands beside a copy of itself, so a 3x3 window sees 2x2 pixels of
-- the small one. Which taps fall on one pixel depends on whether the result's row is even or odd:
--
--     row 2i      taps 0 and 1 + 2 on rows i - 1 and i
--     row 2i + 1  taps 0 + 1 and 2 on rows i and i + 1
--
-- and columns alike. So each of the four phases (row's parity, column's parity) of the result is a 2x2
-- convolution of the small picture with sums of taps: 4/9 of the arithmetic, and no doubled picture. All
-- four are done at once, as 4 O results of one convolution padded by 1 all around, [N H+1 W+1 4O]: phase
-- (a, b) are its H x W pixels from row a and column b on, and one copy puts them in their places.

local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local C = base.C

local M = {}

-- The two phases of the taps along dimension d.
local function phases(w, d)
  local first, middle, last = w:narrow(d, 1, 1), w:narrow(d, 2, 1), w:narrow(d, 3, 1)
  return { tensor.cat({ first, middle + last }, d), tensor.cat({ first + middle, last }, d) }
end

--- The weights of the four phases, rows' parity first; the taps are summed in float32 (float64 for
--- float64).
--- @param weight Tensor [O 3 3 C]
--- @return Tensor [4O 2 2 C], float32 or float64
function M.fold(weight)
  return tensor.scope(function()
    local w = weight.dtype == 'f64' and weight or weight:to 'f32'
    local list = {}
    for _, rows in ipairs(phases(w, 2)) do
      for _, both in ipairs(phases(rows, 3)) do list[#list + 1] = both end
    end
    return tensor.cat(list, 1)
  end)
end

--- weights.tree's `made` for convolutions that follow a doubling: NAME.weight and NAME.bias also stand in
--- NAME.folded, as nn.upsample_conv2d takes them. Sums are made of the file's numbers and rounded once.
--- @param names string[] endings of the convolutions' names
function M.made(names)
  local list = {}
  for _, name in ipairs(names) do
    list[#list + 1] = {
      of = name .. '.weight', name = name .. '.folded.weight',
      shape = function(s) return { 4 * s[1], 2, 2, s[2] } end,
      make = function(w) return M.fold(w:permute(1, 3, 4, 2)) end,
    }
    list[#list + 1] = {
      of = name .. '.bias', name = name .. '.folded.bias',
      shape = function(s) return { 4 * s[1] } end,
      make = function(b) return tensor.cat({ b, b, b, b }, 1) end,
    }
  end
  return list
end

--- Puts the four phases in their places.
--- @param y Tensor [N H+1 W+1 4O], without gaps: the convolution with folded weights, padded by 1
--- @return Tensor [N 2H 2W O]
function M.interleave(y)
  local N, H, W, O = y:size(1), y:size(2) - 1, y:size(3) - 1, y:size(4) / 4
  local pixel = 4 * O
  local row = (W + 1) * pixel
  local shape = { N, H, 2, W, 2, O }
  local stride = { (H + 1) * row, row, row + 2 * O, pixel, pixel + O, 1 }
  return tensor.scope(function()
    local view = tensor.new()
    base.check(C.cr_share(view.c, y.c))
    view.c.rank = #shape
    for i = 1, #shape do view.c.shape[i - 1], view.c.stride[i - 1] = shape[i], stride[i] end
    local out = tensor.empty({ N, 2 * H, 2 * W, O }, { dtype = y.dtype, device = y.device })
    out:view(shape):copy_(view)
    return out
  end)
end

return M
