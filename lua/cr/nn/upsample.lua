--- Computes the doubling of a picture and the following 3x3 convolution as one convolution of the small picture.
--
-- In the doubled picture every pixel is next to a copy of itself, so a 3x3 window covers 2x2 pixels of the small
-- picture. Which taps fall on the same pixel depends on whether the row of the result is even or odd:
--
--     row 2i      taps 0 and 1 + 2 on rows i - 1 and i
--     row 2i + 1  taps 0 + 1 and 2 on rows i and i + 1
--
-- and the same holds for columns. So each of the four phases (row parity, column parity) of the result is a 2x2
-- convolution of the small picture with sums of taps. This takes 4/9 of the arithmetic and no doubled picture. One
-- convolution with padding 1 and 4 O output channels computes all four phases, [N H+1 W+1 4O]: phase (a, b) is its H
-- x W pixels from row a and column b on, and one copy interleaves the phases.

local base = require 'cr.ffi'
local tensor = require 'cr.tensor'

local C = base.C

local M = {}

-- Returns the two phases of the taps along dimension d.
local function phases(w, d)
  local first, middle, last = w:narrow(d, 1, 1), w:narrow(d, 2, 1), w:narrow(d, 3, 1)
  return { tensor.cat({ first, middle + last }, d), tensor.cat({ first + middle, last }, d) }
end

--- Returns the weights of the four phases, with the row parity as the slower index. The taps are summed in float32
--- (float64 for float64).
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

--- Returns the option `made` of weights.tree for convolutions that follow a doubling. It adds NAME.folded, with the
--- weight and bias that nn.upsample_conv2d takes. The taps are summed from the file's numbers and rounded once.
--- @param names string[] the endings of the convolutions' names
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

--- Interleaves the four phases.
--- @param y Tensor [N H+1 W+1 4O], contiguous: the convolution with folded weights and padding 1
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
