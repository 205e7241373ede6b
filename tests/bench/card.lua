--- Ends a benchmark with one sentence if no GPU can be used.
--- @return table the GPU's properties, as of cr.cuda.info()
return function()
  local cuda = require 'cr.cuda'
  local ok, why = cuda.available()
  if not ok then require 'cr.tools.cli'.fail(why) end
  return cuda.info()
end
