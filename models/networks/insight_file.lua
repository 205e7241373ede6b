--- What the networks of InsightFace's pack share: how a file is opened, the pictures' planes, single precision.

local ffi = require 'ffi'
local cr = require 'cr'

local M = {}

local cell = ffi.new 'float[1]'

--- A number rounded to single precision, in which the package computes.
---@param x number
---@return number
function M.single(x)
  cell[0] = x
  return cell[0]
end

--- The planes of a picture that is RGB, in the order that the networks were trained on: blue, green, red.
---@param picture Tensor u8 [H W 3]
---@return Tensor f32 [1 3 H W], 0 to 255
function M.planes(picture)
  local planes = {}
  for c = 1, 3 do planes[c] = picture:narrow(3, 4 - c, 1) end
  return cr.cat(planes, 3):to 'f32':permute(3, 1, 2):unsqueeze(1)
end

--- Opens one of the files; another network is refused.
---@param path string
---@param what string for people: "a face detector of InsightFace's"
---@param outputs integer how many it has
---@param options table cr.onnx.open's
---@return cr.onnx.net
function M.open(path, what, outputs, options)
  local net = cr.onnx.open(path, options)
  local ok, err = pcall(function()
    if #net.inputs ~= 1 or #net.outputs ~= outputs then
      error(('%s: not %s: it has %d inputs and %d outputs, not 1 and %d'):format(path, what, #net.inputs, #net.outputs, outputs), 0)
    end
    net:expect_handled()
  end)
  if not ok then
    net:free()
    error(err, 0)
  end
  return net
end

--- Refuses a network whose output has another size than it should.
---@param net cr.onnx.net
---@param what string as of open
---@param output Tensor
---@param wanted integer numbers
---@return Tensor [wanted]
function M.expect(net, what, output, wanted)
  if output:numel() ~= wanted then
    error(('%s: not %s: an output has %d numbers, not %d'):format(net.path, what, output:numel(), wanted), 0)
  end
  return output:reshape(-1)
end

return M
