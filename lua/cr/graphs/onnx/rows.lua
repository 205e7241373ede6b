--- The ONNX operators that are handled, by name. Each has one row in one of the files that this one joins.

local rows = {}
for _, part in ipairs {
  require 'cr.graphs.onnx.elementwise', require 'cr.graphs.onnx.convolution', require 'cr.graphs.onnx.pooling',
  require 'cr.graphs.onnx.normalization', require 'cr.graphs.onnx.moving', require 'cr.graphs.onnx.shapes',
  require 'cr.graphs.onnx.resizing', require 'cr.graphs.onnx.reductions', require 'cr.graphs.onnx.matrices',
} do
  for name, row in pairs(part) do rows[name] = row end
end
return rows
