--- What InsightFace's networks share: opening and checking a file, image planes, single precision.

local ffi = require 'ffi'
local cr = require 'cr'

local M = {}

local cell = ffi.new 'float[1]'

--- Rounds a number to single precision, as the package computes.
--- @param x number
--- @return number
function M.single(x)
  cell[0] = x
  return cell[0]
end

--- The planes of an RGB image in the order of the training data: blue, green, red.
--- @param picture Tensor u8 [H W 3]
--- @return Tensor f32 [1 3 H W], 0 to 255
function M.planes(picture)
  local planes = {}
  for c = 1, 3 do planes[c] = picture:narrow(3, 4 - c, 1) end
  return cr.cat(planes, 3):to 'f32':permute(3, 1, 2):unsqueeze(1)
end

--- Opens one of the files; refuses other networks.
--- @param path string
--- @param what string name for messages: "a face detector of InsightFace's"
--- @param size integer side of its square input
--- @param outputs integer number of outputs
--- @param options table options of cr.onnx.open
--- @return cr.onnx.net
function M.open(path, what, size, outputs, options)
  local net = cr.onnx.open(path, options)
  local ok, err = pcall(function()
    if #net.inputs ~= 1 or #net.outputs ~= outputs then
      error(('%s: not %s: it has %d inputs and %d outputs, not 1 and %d'):format(path, what, #net.inputs, #net.outputs, outputs), 0)
    end
    net:expect_handled()
    -- On a GPU its callers record it. Its constants must not lie in the memory that recordings share, so it runs before.
    if net.device and net.device ~= 'cpu' then
      cr.scope(function() net:run(cr.zeros({ 1, 3, size, size }, { device = net.device })) end)
    end
  end)
  if not ok then
    net:free()
    error(err, 0)
  end
  return net
end

--- Checks the size of a network's output.
--- @param net cr.onnx.net
--- @param what string as for open
--- @param output Tensor
--- @param wanted integer number of elements
--- @return Tensor [wanted]
function M.expect(net, what, output, wanted)
  if output:numel() ~= wanted then
    error(('%s: not %s: an output has %d elements, not %d'):format(net.path, what, output:numel(), wanted), 0)
  end
  return output:reshape(-1)
end

return M
