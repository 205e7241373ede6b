--- Ends a benchmark with one sentence if no GPU can be used.
--- @return table what is known of the card: cr.cuda.info()
return function()
  local cuda = require 'cr.cuda'
  local ok, why = cuda.available()
  if not ok then require 'cr.tools.cli'.fail(why) end
  return cuda.info()
end
